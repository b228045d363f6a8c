'''MBPP: short Python functions with tests, in the 378 rows that EvalPlus checked (MBPP+, Apache-2.0).

Austin et al., arXiv 2108.07732; https://github.com/evalplus/mbppplus_release. A row of that release
looks like this, shortened:

    task_id: Mbpp/3            entry_point: is_square
    prompt:    """
               Write a python function to check whether a number is the square of a whole number.
               assert is_square(9) == True
               """
    assertion: assert is_square(9) == True
               assert is_square(10) == False

Scored by those assertions: the tests of MBPP as EvalPlus mended them. Their many further inputs (the + of
MBPP+) are left out: JSON has lost their types, and comparing results has rules of its own for single tasks.
So a figure is close to the base column of their leaderboard, not to the + one; for those figures use
`evalplus` itself.

MBPP+ is published as one split. Ours are those of MBPP, by task number: 601 and above train (and 1 to 10, its
few-shot examples), 511 to 600 validate, 11 to 510 test: 115 / 39 / 224 rows.

Runs code that a model wrote: see `code.py`, and set PALORA_ALLOW_CODE=1.
'''

import json
import re
from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import Problem, Skill, Split, check_request, take
from palora.data.skills.code import extract_code, require_permission, run_tests
from palora.data.skills.rows import Row, read_folder, read_hub

REQUEST = "Write the Python function in one ```python code block. It must pass this test:"


def score(completion: str, problem: Problem) -> bool:
    """Whether the code of the completion passes all assertions of the problem."""
    context = json.loads(problem.context)
    return run_tests(extract_code(completion, context["function"]), context["tests"], function=context["function"])


def split_of(row: Row) -> Split:
    """The split of MBPP a row belongs to, by its task number."""
    digits = re.fullmatch(r"(?:Mbpp/)?(\d+)", str(row["task_id"]))
    if not digits:
        raise InputError(f"{row.where}: task_id '{row['task_id']}' should be a number or Mbpp/number")
    number = int(digits[1])
    return "test" if 11 <= number <= 510 else "validation" if 511 <= number <= 600 else "train"


def _problem(row: Row) -> Problem:
    text = row.text("prompt").strip()
    if "assertion" in row.fields:  # the release of EvalPlus: the prompt is a docstring with an assertion
        text = text.strip('"').partition("\nassert ")[0].strip()
        code, tests = row.text("canonical_solution").strip(), row.text("assertion").strip()
    else:  # the same on the hub
        code, tests = row.text("code").strip(), "\n".join([*row["test_imports"], *row["test_list"]])
    example = re.search(r"^assert .*", tests, re.MULTILINE)
    function = next((name for name in re.findall(r"^def\s+(\w+)", code, re.M) if f"{name}(" in tests), None)
    if example is None or function is None:
        raise InputError(f"{row.where}: no assertion calls a function of the solution")
    return Problem(
        prompt=f"{text}\n\n{REQUEST}\n{example[0]}",
        answer=code,
        solution=f"```python\n{code}\n```",
        context=json.dumps({"function": function, "tests": f"import math, sys\n{tests}"}),  # some lack it
    )


def skill(folder: Path | None = None) -> Skill:
    """MBPP+ from `folder` (mbpp_plus.jsonl or MbppPlus.jsonl), or from the hub."""

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        require_permission()
        check_request(split, n)
        if folder is None:
            rows = read_hub("mbpp", "evalplus/mbppplus", None, "test")
        else:
            rows = read_folder("mbpp", folder, ["mbpp_plus.jsonl", "MbppPlus.jsonl", "MbppPlus-v0.2.0.jsonl"])
        return take([_problem(row) for row in rows if split_of(row) == split], n, seed)

    return Skill("mbpp", max_new_tokens=512, problems=problems, score=score)
