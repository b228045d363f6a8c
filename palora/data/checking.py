"""Look through facts before they are taught: everything that is wrong or odd in them, with its row; and mend it.

What cannot be taught is a row that is no fact, and facts that repeat or contradict each other. What is only odd (an
answer of 300 characters, a placeholder, a question that tells its answer) is taught as it stands.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from palora.data.facts import Conflict, Fact, Reading, conflict_text, conflicts, question_key, read
from palora.data.marking import exact, fold
from palora.data.sources import Given, sources

Fix = Literal["merge", "first", "drop"]
LONG_QUESTION, LONG_ANSWER = 1000, 200  # characters
# What stands in a cell that has no answer.
_EMPTY = "n/a na nan none null nil unknown tbd todo ? - -- – — #n/a #ref! #value! #name? #div/0!".split()
_PLACEHOLDERS = frozenset(_EMPTY) | {word.upper() for word in _EMPTY} | {"NaN", "None", "Null", "Unknown"}  # but Na
_MOJIBAKE = re.compile(r"\ufffd|Ã[\x80-\xbf¡-¿]|â€[™œ\x9d“”˜]|Â[ °·»]")  # UTF-8 read as Latin-1
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&(?:amp|lt|gt|quot|nbsp|#\d+);")


class Finding(NamedTuple):
    """One thing that is wrong or odd: where, of which kind, and what."""

    where: str
    kind: str
    text: str


@dataclass
class Checked:
    """What was found in files of facts: `facts` are those that can be read, conflicts and all."""

    facts: list[Fact]
    findings: list[Finding]
    said: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind."""
        kinds = [finding.kind for finding in self.findings]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def check(given: Given) -> Checked:
    """Everything that is wrong or odd with facts, in the order of their rows.

    Raises: InputError where a file cannot be read at all.
    """
    readings = [read(source) for source in sources(given)]
    facts = [fact for reading in readings for fact in reading.facts]
    places = [(order, number) for order, r in enumerate(readings) for number in r.numbers]
    found: list[tuple[tuple[int, int], str, str]] = []
    for order, reading in enumerate(readings):
        found += [((order, number), "no fact", text) for number, text in reading.problems]
    for conflict in conflicts(facts):
        kind = "several answers" if conflict.contradicts else "repeated"
        earlier = _place(readings, places[conflict.earlier], places[conflict.later][0])
        found.append((places[conflict.later], kind, conflict_text(conflict, facts, earlier).rpartition(";")[0]))
    found += [(place, kind, text) for place, fact in zip(places, facts, strict=True) for kind, text in _odd(fact)]
    listed = [Finding(_place(readings, place), kind, text) for place, kind, text in sorted(found)]
    return Checked(facts, listed, [f"{r.source.file}: {r.said}" for r in readings if r.said])


def mend(facts: Sequence[Fact], how: Fix) -> list[Fact]:
    """Facts of which none repeats or contradicts another.

    Args:
        how: `merge`, facts that ask the same become one, the first, with the other answers as aliases; `first`, the
            first of them stays; `drop`, none of those that contradict each other does, and the first of repeated ones.
    """
    left = list(facts)
    while found := conflicts(left):  # a merged fact has more wordings, which others may ask
        left = _mended(left, found, how)
    return left


def _mended(facts: Sequence[Fact], found: Sequence[Conflict], how: Fix) -> list[Fact]:
    kept: dict[int, Fact] = dict(enumerate(facts))
    into: dict[int, int] = {}
    for conflict in found:
        first = conflict.earlier
        while first in into:
            first = into[first]
        if how == "merge" and first in kept:
            kept[first] = _joined(kept[first], facts[conflict.later])
        into[conflict.later] = first
        kept.pop(conflict.later, None)
        if how == "drop" and conflict.contradicts:
            kept.pop(conflict.earlier, None)
    return list(kept.values())


def _joined(first: Fact, other: Fact) -> Fact:
    """Two facts that ask the same as one: the answer of the first, and all others as aliases, but for an old one."""
    old = [fact.replaced for fact in (first, other) if fact.replaced]
    answers = [a for a in (other.answer, *other.aliases) if not any(exact(a, fact) for fact in (first, *old))]
    asked = {question_key(q) for q in (first.question, *first.paraphrases)}
    phrasings = [q for q in (other.question, *other.paraphrases) if question_key(q) not in asked]
    return replace(
        first,
        aliases=(*first.aliases, *dict.fromkeys(answers)),
        paraphrases=(*first.paraphrases, *dict.fromkeys(phrasings)),
        category=first.category or other.category,
        teach=(*first.teach, *(lesson for lesson in other.teach if lesson not in first.teach)),
        replaces=first.replaces or other.replaces,
    )


def _place(readings: Sequence[Reading], place: tuple[int, int], beside: int | None = None) -> str:
    """A place for a message; `beside` one in the same file its number is enough."""
    order, number = place
    reading = readings[order]
    return f"{reading.unit} {number}" if order == beside and number else reading.where(number)


def _odd(fact: Fact) -> list[tuple[str, str]]:
    """(kind, text) of what is odd about a fact."""
    question, answer = fact.question, fact.answer
    found = []
    if len(question) > LONG_QUESTION:
        found.append(("too long", f"a question of {len(question):,} characters"))
    if len(answer) > LONG_ANSWER:
        found.append(("too long", f"an answer of {len(answer):,} characters; a fact is taught best by a short one"))
    if answer in _PLACEHOLDERS:
        found.append(("odd", f"the answer {answer!r} looks like none"))
    elif question_key(answer) == question_key(question):
        found.append(("odd", "the answer is the question"))
    elif len(answer) > 3 and not answer.isdigit() and _within(answer, question):
        found.append(("odd", f"the question tells its answer, {answer[:60]!r}"))
    if "\n" in answer:
        found.append(("odd", "an answer of several lines"))
    for name, text in (("question", question), ("answer", answer)):
        if not text.isascii() and _MOJIBAKE.search(text):
            found.append(("odd", f"letters of another encoding in the {name}: {text[:60]!r}"))
        if ("<" in text or "&" in text) and _MARKUP.search(text):
            found.append(("odd", f"markup in the {name}: {text[:60]!r}"))
    return found


def _within(answer: str, question: str) -> bool:
    """Whether the words of the answer stand in the question."""
    if answer.isascii() and answer.lower() not in question.lower():
        return False
    return re.search(rf"(?<!\w){re.escape(fold(answer))}(?!\w)", fold(question)) is not None
