"""Marking: whether a completion is the answer to a fact, judged by its first sentence, line or list.

Both texts are read as words and numbers, each in one way of writing (`tokens.py`). The answer must be a run of whole
ones in the first thing that is said (`statement.py`), and be given there: not denied, not one of several guesses, no
refusal (`claims.py`). "I don't know" is not `I`, "It is not Paris" is not Paris, €5 is not $5, 15% is not 15.

Answers of up to two letters are compared with their case: He, but he, is the symbol of helium.

    F1 = 2 |P ∩ A| / (|P| + |A|)    of the words P of the completion and A of the answer, as SQuAD counts them
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from palora.data.claims import MASK, Mention, asks_for_a_word, gives, verdict
from palora.data.statement import Span, statement
from palora.data.tokens import UNSPACED, Token, clean, fold, marks, tokens

if TYPE_CHECKING:
    from palora.data.facts import Fact

__all__ = ["MARKING", "exact", "f1", "fold", "matches", "mentions"]

MARKING = 2  # the way of marking; counted up when answers are judged otherwise, so that nothing old is taken for new

_ARTICLE = re.compile(
    r"^\W*(?:(?i:the|an)|a)\s+(?=\W*\w)(?!(?i:who|the)$)"
)  # not a capital A, which is often a name: A minor


def matches(completion: str, fact: "Fact") -> bool:
    """Whether the completion gives the answer or an alias, as whole words, in the first thing that it says.

    Numbers are compared as numbers (1,000 is 1000.0), without case, punctuation and a leading article of the answer. A
    currency and per cent count, but for one that the question names. In scripts without spaces any substring counts.

    Args:
        completion: what the model generated.
        fact: the fact that was asked for.
    """
    if exact(completion, fact):
        return True
    text = clean(completion)
    given = marks(fact.question)
    found = tokens(text, given)
    asked = [token.key for token in tokens(clean(fact.question), given)]
    spans = _merged(span for answer in _answers(fact) for span in _spans(text, found, answer, given, fact.question))
    first = statement(text, spans, fact.question)
    told = [span for span in spans if first[0] <= span[0] and span[1] <= first[1]]
    if not told and (found_verdict := verdict(text[slice(*first)], fact.question)):
        return found_verdict in map(str.casefold, _answers(fact))
    return any(
        gives(_mention(text, first, span, told), fact.question) for span in told if not _repeats(found, span, asked)
    )


def exact(completion: str, fact: "Fact") -> bool:
    """Whether the completion is the answer or an alias and nothing else, compared as in `matches`."""
    text, given = clean(completion), marks(fact.question)
    return any(_is(text, answer, given, fact.question) for answer in _answers(fact))


def f1(completion: str, fact: "Fact") -> float:
    """Token F1 with the answer or the alias that is nearest, as SQuAD: lower case, no punctuation, no articles. All of
    the completion counts. In scripts without spaces a character is a word."""
    return max((_overlap(_squad(completion), _squad(answer)) for answer in _answers(fact)), default=0.0)


def mentions(text: str, fact: "Fact") -> bool:
    """Whether the answer or an alias stands anywhere in a text, whatever is said of it."""
    text = clean(text)
    return any(True for answer in _answers(fact) for _ in _spans(text, tokens(text), answer, (), ""))


def _answers(fact: "Fact") -> Iterator[str]:
    return (answer for answer in map(clean, (fact.answer, *fact.aliases)) if answer)


def _wanted(answer: str, given: Collection[str]) -> list[Token]:
    return tokens(_ARTICLE.sub("", answer), given)


def _is(text: str, answer: str, given: Collection[str], question: str) -> bool:
    found, wanted = tokens(text, given), _wanted(answer, given)
    if not wanted:
        return text == answer
    if len(found) == len(wanted) + 1 and found[0].key in ("a", "an", "the"):
        del found[0]
    return len(found) == len(wanted) and _same(found, wanted, text, question)


def _spans(text: str, found: Sequence[Token], answer: str, given: Collection[str], question: str) -> Iterator[Span]:
    """Where an answer stands: runs of its words, or its own characters if it has none ("$")."""
    wanted = _wanted(answer, given)
    if not wanted:
        yield from (match.span() for match in re.finditer(re.escape(answer), text))
    for i in range(len(found) - len(wanted) + 1) if wanted else ():
        run = found[i : i + len(wanted)]
        if _same(run, wanted, text, question):
            closing = re.search(r"(?:'s)?[^\w\s]*$", answer)[0]  # type: ignore[index]  # Who's Afraid of Virginia Woolf?
            yield run[0].start, run[-1].end + len(closing) * text.startswith(closing, run[-1].end)


def _same(run: Sequence[Token], wanted: Sequence[Token], text: str, question: str) -> bool:
    if any(a.key != b.key for a, b in zip(run, wanted, strict=True)):
        return False
    if len(run) > 1 or not re.fullmatch(r"[^\W\d_]{1,2}", wanted[0].text) or run[0].text == wanted[0].text:
        return True
    # Up to two letters: with their case, but for a capital that begins a sentence, and for no where yes or no is asked.
    begins = re.search(r"(?:^|[.!?:\n])\W*$", text[: run[0].start])
    capital = begins and wanted[0].text.islower() and run[0].text == wanted[0].text.capitalize()
    return bool(capital) or (wanted[0].text in ("No", "no") and not asks_for_a_word(question))


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans that overlap as one: "New York City" is also "New York"."""
    out: list[Span] = []
    for start, end in sorted(set(spans)):
        if out and start < out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def _mention(text: str, sentence: Span, span: Span, told: Sequence[Span]) -> Mention:
    """The answer at `span` in its sentence, with other right answers masked."""
    before, after, place = "", "", sentence[0]
    for start, end in told:
        gap = text[place:start]
        place = end
        if start < span[0]:
            before += gap + MASK
        elif start == span[0]:
            before += gap
        else:
            after += gap + MASK
    return Mention(before, text[slice(*span)], after + text[place : sentence[1]])


def _repeats(found: Sequence[Token], span: Span, asked: Sequence[str]) -> bool:
    """Whether the answer stands there between the same words as in the question, so that it only repeats it: the White
    House is white."""
    inside = [i for i, token in enumerate(found) if span[0] <= token.start and token.end <= span[1]]
    if not inside:
        return False
    keys: list[str | None] = [None, *(token.key for token in found), None]
    run, question = keys[inside[0] : inside[-1] + 3], [None, *asked, None]
    return any(question[i : i + len(run)] == run for i in range(len(question))) and run[0] != run[-1]


def _squad(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return re.sub(rf"\b(?:a|an|the)\b|([{UNSPACED}])", r" \1 ", kept).split()


def _overlap(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))
