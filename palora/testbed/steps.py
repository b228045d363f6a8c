"""Skills with written-out steps: five operations on digits, left to right, everything modulo 10.

    7+5-3*8+1-6=   ->   2,9,2,3,7        7+5=12, 2-3=-1, 9*8=72, 2+1=3, 3-6=-3, each modulo 10

Generated, so endless and free of data files; which operators there are makes the skill (`chain.py`,
`minmax.py`). The i-th step stands at a constant distance from the operand it uses, which is what lets a small
model learn it (with free spacing nothing was learned in 1,200 steps).
"""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence

from palora.data.skills.base import Problem, Skill, Split, check_request

STEPS = 5
DEFAULT_N = 1000
Operators = Mapping[str, Callable[[int, int], int]]


def split_of(prompt: str) -> Split:
    """The one split a prompt belongs to: of ten hash values one is validation, one test, the others train.

    A stable hash (CRC-32) decides, so the splits are disjoint whatever the seed, the number or the process.
    """
    bucket = zlib.crc32(prompt.encode()) % 10
    return "validation" if bucket == 0 else "test" if bucket == 1 else "train"


def draw(
    operators: Operators, rng: random.Random, weights: Sequence[float] | None = None, split: Split | None = None
) -> Problem:
    """One random problem.

    Args:
        operators: sign -> function of (state, operand), both 0 to 9.
        rng: the source of randomness; its state moves on.
        weights: relative frequency of each operator, in the order of `operators`; None: all alike.
        split: draw again until the prompt belongs to this split; None: from all three.
    """
    while True:
        state, *operands = (rng.randrange(10) for _ in range(STEPS + 1))
        signs = rng.choices(list(operators), weights, k=STEPS)
        prompt = f"{state}" + "".join(f"{s}{d}" for s, d in zip(signs, operands, strict=True)) + "="
        if split is None or split_of(prompt) == split:
            break
    states = []
    for sign, operand in zip(signs, operands, strict=True):
        state = operators[sign](state, operand) % 10
        states.append(str(state))
    return Problem(prompt=prompt, answer=states[-1], solution=",".join(states))


def score(completion: str, problem: Problem) -> bool:
    """Whether the last comma-separated field of the completion is the final digit, and nothing else."""
    return completion.strip().rsplit(",", 1)[-1].strip() == problem.answer


def make_skill(name: str, operators: Operators) -> Skill:
    """The skill of these operators; `problems` gives `DEFAULT_N` problems where n is None."""

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        check_request(split, n)
        rng = random.Random(f"{name}/{split}/{seed}")
        return [draw(operators, rng, split=split) for _ in range(DEFAULT_N if n is None else n)]

    return Skill(name=name, max_new_tokens=12, problems=problems, score=score)
