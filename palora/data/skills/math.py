r"""MATH: competition problems whose worked solutions end in \boxed{answer}. arXiv 2103.03874 (MIT)

A row looks like this:

    problem:  What is the sum of the first two primes, as a fraction of 10?
    level:    Level 1
    solution: They are 2 and 3, so the sum is 5 and the fraction is $\boxed{\frac{1}{2}}$.

Answers are compared by the `math_verify` library (pip install palora[math]): 0.5 is right as well. Splits as
in GSM8K: even rows of the training file (from 0) train, odd ones validate, the test file tests.
"""

import importlib.util
import threading
from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import Problem, Skill, Split, check_request, take
from palora.data.skills.numbers import boxed
from palora.data.skills.rows import Row, read_folder, read_hub

REQUEST = r"Reason step by step, and put the final answer within \boxed{}."
SUBJECTS = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus".split()


def score(completion: str, problem: Problem) -> bool:
    r"""Whether the last \boxed{} of the completion, else what `math_verify` finds in it, is the answer."""
    require_math_verify()
    import math_verify

    inside = boxed(completion)
    if inside is not None and inside.split() == problem.answer.split():
        return True
    # The library's time limit is an alarm signal, which exists in the main thread only; elsewhere it would
    # call every answer wrong.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    gold, guess = (
        math_verify.parse(text, parsing_timeout=limit)
        for text in (rf"\boxed{{{problem.answer}}}", completion if inside is None else rf"\boxed{{{inside}}}")
    )
    return bool(math_verify.verify(gold, guess, timeout_seconds=limit))


def require_math_verify() -> None:
    """Raise InputError where the optional library is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("comparing formulas needs the math_verify library: pip install 'palora[math]'")


def _problem(row: Row) -> Problem:
    solution = row.text("solution").strip()
    answer = boxed(solution)
    if not answer:
        raise InputError(rf"{row.where}: the solution has no \boxed{{answer}}")
    return Problem(f"{row.text('problem').strip()}\n\n{REQUEST}", answer, solution)


def skill(folder: Path | None = None) -> Skill:
    """MATH from `folder` (math_train.jsonl or train.jsonl, the same for test), or from the hub."""
    require_math_verify()

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        check_request(split, n)
        published = "test" if split == "test" else "train"
        if folder is None:
            hub = "EleutherAI/hendrycks_math"
            rows = [row for subject in SUBJECTS for row in read_hub("math", hub, subject, published)]
        else:
            rows = read_folder("math", folder, [f"math_{published}.jsonl", f"{published}.jsonl"])
        part = {"train": rows[::2], "validation": rows[1::2], "test": rows}[split]
        return take([_problem(row) for row in part], n, seed)

    return Skill("math", max_new_tokens=1024, problems=problems, score=score)
