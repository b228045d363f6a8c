r"""Scorers a local problem file can name: exact, contains, number, choice, likelihood, math.

Each is a function (completion, problem) -> bool, and right for any completion, also an empty one.
"""

import re
import unicodedata
from collections.abc import Mapping

from palora.data.skills import gsm8k, math
from palora.data.skills.base import Problem, Scorer
from palora.data.skills.numbers import boxed

LETTERS = "ABCDE"

# "the answer is B", "Answer: (b)", "option C"; a small letter only at the end, not "the answer is a dog".
_STATED = re.compile(
    r"(?i:answer|choice|option)[^\w\n]*(?i:is\b|:)?[^\w\n]*?\b([A-E]\b|[a-e](?=\W*$|[).]))", re.MULTILINE
)
# "B", "(B)", "B. a whale"; not "E.g."
_FIRST = re.compile(r"[\s*(\[\"']*([A-E])[*\s]*(?:[):\]\-\"'\n]|\.(?!\w)|\W*$)")
_ALONE = re.compile(r"(?<![\w'’])([B-E]|A(?!\s+(?!is\b)[a-z]))(?!['’\w]|\.\w)")  # not the article of "A whale"


def exact(completion: str, problem: Problem) -> bool:
    """The completion is the answer, but for case, spaces and outer punctuation."""
    return _normal(completion) == _normal(problem.answer)


def contains(completion: str, problem: Problem) -> bool:
    """The answer appears in the completion as whole words, but for case, spaces and outer punctuation."""
    answer = re.escape(_normal(problem.answer))
    return re.search(rf"(?<!\w){answer}(?!\w)", _normal(completion)) is not None


def choice(completion: str, problem: Problem) -> bool:
    """The letter the completion settles on (`letter`) is the answer."""
    return letter(completion) == problem.answer.strip().upper()


number = gsm8k.score
SCORERS: Mapping[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "number": number,
    "choice": choice,
    "likelihood": exact,  # of the choice that the model finds likeliest
    "math": math.score,
}


def letter(completion: str) -> str | None:
    r"""The choice, A to E, a completion settles on.

    In this order: in the last \boxed{}, after the last "answer is", as the first thing said, else the last
    letter that stands alone.
    """
    text = completion.strip()
    if len(text) == 1:
        return text.upper() if text.upper() in LETTERS else None
    inside = boxed(text)
    found = re.findall(r"\b[A-E]\b", inside) if inside else []
    found = found or _STATED.findall(text)
    if not found and (first := _FIRST.match(text)):
        found = [first[1]]
    found = found or _ALONE.findall(text)
    return found[-1].upper() if found else None


def _normal(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'`*") or text
