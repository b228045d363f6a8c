"""What a skill is: problems with a known answer, and a rule that says whether a completion is right.

    skill = get_skill("chain")
    problem = skill.problems("train", 1, 0)[0]  # Problem("7+5-3*8+1-6=", answer="7", solution="2,9,2,3,7")
    skill.score("2,9,2,3,7", problem)           # True

Prompts and completions are plain text: chat templates and tokens are the business of `palora.language.prompts`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from palora.common.errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Problem:
    """One problem of a skill.

    Args:
        prompt: what the model is asked, without chat template.
        answer: the right answer, in its shortest form.
        solution: a whole right completion, what next-token training learns and `score` accepts; None: there
            is none.
        context: what the scorer needs besides the answer, such as tests; the model never sees it.
        choices: what there is to choose from. With them the model writes nothing: the likeliest one is its answer
            (`palora.language.likelihood`).
    """

    prompt: str
    answer: str
    solution: str | None = None
    context: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skill:
    """A named set of problems and their scorer.

    Args:
        name: its name in files and tables.
        max_new_tokens: how long a completion may get.
        problems: (split, n, seed) -> problems. n: how many, at least 1; fewer where there are fewer; None:
            all there are. The same arguments give the same problems, a larger n extends a smaller one, and no
            problem stands in two splits. Raises InputError where the data cannot be had.
        score: (completion, problem) -> right or wrong, for any completion whatever. Raises InputError only
            where scoring is not possible at all on this machine.
    """

    name: str
    max_new_tokens: int
    problems: Callable[[Split, int | None, int], list[Problem]]
    score: Callable[[str, Problem], bool]


Scorer = Callable[[str, Problem], bool]


def check_request(split: str, n: int | None) -> None:
    """Raise InputError unless `split` is one of `SPLITS` and `n` is None or at least 1."""
    if split not in SPLITS:
        raise InputError(f"split '{split}' is unknown; there are {', '.join(SPLITS)}")
    if n is not None and n < 1:
        raise InputError(f"the number of problems must be at least 1, not {n}")


def few_shot(skill: Skill, problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """The problems, each after `n` solved ones of the training split, in the form of lm-eval's `num_fewshot`:

        Question: …        (a base model; a chat model is shown the same text in one message)
        Answer: …

        Question: …

    Raises: InputError where the split has too few problems, or one without a solution.
    """
    shown = skill.problems("train", n, seed) if n else []
    solved = [(p.prompt, p.solution or (p.answer if p.choices else "")) for p in shown]
    if len(solved) < n or not all(solution for _, solution in solved):
        raise InputError(f"num_fewshot: {skill.name} has no {n} training problems with a solution; lower it")
    before = "".join(f"{prompt}\nAnswer: {solution}\n\nQuestion: " for prompt, solution in solved)
    return [replace(problem, prompt=before + problem.prompt) for problem in problems]


def take(problems: Sequence[Problem], n: int | None, seed: int) -> list[Problem]:
    """The first `n` of `problems` in an order shuffled by `seed`; None: all of them, as they stand.

    Raises:
        InputError: there is not one.
    """
    if not problems:
        raise InputError("the data of this skill leave no problem for this split")
    if n is None:
        return list(problems)
    order = list(range(len(problems)))
    random.Random(seed).shuffle(order)
    return [problems[i] for i in order[:n]]
