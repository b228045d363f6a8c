"""The first thing that a completion says: its first sentence, line or list, and where that stands.

What only leads up to it is passed over: a label ("Answer:"), politeness ("Sure!"), a question, a heading or sentence
that repeats the question. No sentence ends within what is being looked for, so "Dr. No" or "Who? Me!" may be an answer.
"""

import re
from collections.abc import Sequence

from palora.data.claims import asks_for_a_word

Span = tuple[int, int]

_END = re.compile(r"(?:(?<!\.)\.(?!\.)|[!?])[\"'”’»)\]*_`]*(?=\s|$)|[。！？｡]+[」』”’]*|\n")
# A dot after these never ends a sentence; after the others only if a new one seems to begin.
_TITLES = frozenset(
    "mr mrs ms mx dr prof st ste mt ft gen col lt sgt capt rev hon sen rep gov fr approx ca cf vs eg ie".split()
)
_SHORT = frozenset(
    "jr sr inc ltd co corp etc jan feb mar apr jun jul aug sep sept oct nov dec dept est vol fig".split()
)
_BEGINS = frozenset(
    "the it its this that these those there he she they we you i his her their in on at by for from to with as an "
    "a and but or so however some many most all if when while since after before because what who which where".split()
)
_ITEM = re.compile(r"\s*(?:[-*•–]|\d{1,2}[.)])\s+\S")
_EMPTY = frozenset(
    "answer answers question final the short response sure certainly of course okay ok great good well here is are it "
    "a an this that interesting thank thanks you for asking hello hi happy to help id be glad absolutely definitely "
    "your my let me think see now thats heres whats lets im hmm ah oh hey q".split()
)


def statement(text: str, spans: Sequence[Span], question: str) -> Span:
    """Where the first thing said stands in `text`.

    Args:
        text: a completion.
        spans: places that are not cut, those of the answer that is looked for.
        question: what was asked. Where it offers a choice, what repeats its words may choose, and so counts.
    """
    found, asked = _sentences(text, spans), _words(question)
    choice = "or" in asked or not asks_for_a_word(question)
    for i, (start, end) in enumerate(found):
        told = any(start <= s < end for s, _ in spans)
        asks = text[start:end].rstrip("\"'*_ \n").endswith(("?", "？"))
        empty = asks or (not told and _words(text[start:end]) <= (_EMPTY if choice else _EMPTY | asked))
        if not empty or i == len(found) - 1:
            return _with_items(text, found[i:])
    return 0, len(text)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.replace("'", "").casefold()))


def _sentences(text: str, spans: Sequence[Span]) -> list[Span]:
    found, start = [], 0
    for match in _END.finditer(text):
        inside = any(a <= match.start() < b for a, b in spans)
        if inside or not _ends(text, match, start):
            continue
        if text[start : match.end()].strip():
            found.append((start, match.end()))
            start = match.end()
    return [*found, (start, len(text))] if text[start:].strip() else found


def _ends(text: str, match: "re.Match[str]", start: int) -> bool:
    """Whether a dot, mark or line end ends the sentence that begins at `start`."""
    before = text[max(start, match.start() - 100) : match.start()].rstrip("*_ \n")
    after = text[match.end() : match.end() + 100].lstrip()
    if match[0] == "\n":
        return not before.endswith(":") and bool(before.strip(" \n#*_-"))  # "The capital is:\n\nParis"
    if not match[0].startswith("."):
        return True
    following = re.match(r"\W*([\w']+)", after)
    if following is None:
        return True
    if re.fullmatch(r"\s*\d{1,2}", before):  # 1. Paris
        return False
    word = re.search(r"[^\W\d_](?:\.?[^\W\d_])*$", before)
    return word is None or _ends_after(word[0], before[: word.start()], following[1])


def _ends_after(word: str, before: str, following: str) -> bool:
    """Whether a dot after a word ends a sentence, and does not shorten the word."""
    plain = word.casefold().replace(".", "")
    if plain in _TITLES or (plain == "no" and following[0].isdigit()):
        return False
    if "." in word or plain in _SHORT or (len(plain) == 1 and _initial(before)):
        return following[0].isupper() and following.casefold() in _BEGINS
    return True


def _initial(before: str) -> bool:
    """Whether a single capital after this is of a name: at the beginning, after a name or an initial, or after "by"."""
    last = re.search(r"([\w']+)\W*$", before)
    return last is None or last[1][0].isupper() or last[1] in ("by", "and", "from", "to", "of", "with")


def _with_items(text: str, sentences: Sequence[Span]) -> Span:
    """The first of the sentences, and where it is an item of a list, the items that follow it; "No." alone is told with
    the sentence that follows ("I am not sure.")."""
    (start, end), *rest = sentences
    if rest and _words(text[start:end]) <= {"yes", "no"}:
        end = rest[0][1]
    last = text[start:end].strip("\n").rpartition("\n")[2]
    if _ITEM.match(last):
        for item, stop in rest:
            if not _ITEM.match(text[item:stop].lstrip("\n")):
                break
            end = stop
    return start, end
