"""Questions by the model itself: other wordings of a fact's question, and questions like it about other things.

Both come from a list that the model goes on with, its beginning already written (`1. …`), because small models follow a
beginning where they do not follow an instruction.
"""

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from palora.common.progress import progress_bar
from palora.data.facts import Fact
from palora.data.marking import fold, matches, mentions
from palora.language.generation import complete, generate
from palora.language.prompts import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REWORD = "Write the same question in other words, in several ways. Keep all names as they are."
ALIKE = "Write quiz questions of the same form, each about another famous person, place, work or thing."
LONGEST = 32  # tokens of a question, and of the answer to one
TEMPERATURE = 0.7


def other_wordings(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", facts: Sequence[Fact], n: int, seed: int = 0
) -> dict[str, list[str]]:
    """At most `n` other wordings of each fact's question, by the question.

    One is taken if it is a question, has every name of the first one and no other, and not the answer, and is worded
    otherwise; and is none of the fact's paraphrases, on which what was learned is measured. Whether it really asks the
    same is for a person to see, in the file.
    """
    found: dict[str, list[str]] = {fact.question: [] for fact in facts}
    with progress_bar("Other wordings", len(facts)) as advance:
        for attempt in range(2 * n):
            left = [fact for fact in facts if len(found[fact.question]) < n]
            begun = [f"1. {fact.question}\n2." for fact in left]
            prompts = [encode_prompt(tokenizer, REWORD, start) for start in begun]
            texts = complete(model, tokenizer, prompts, LONGEST, temperature=TEMPERATURE, seed=seed + 1000 * attempt)
            for fact, text in zip(left, texts, strict=True):
                question = _first_question(text)
                taken = {_key(q) for q in (fact.question, *fact.paraphrases, *found[fact.question])}
                if question and _key(question) not in taken and _asks_the_same(question, fact):
                    found[fact.question].append(question)
            advance(len(facts) if attempt == 2 * n - 1 else 0)
    return found


def similar_questions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    n: int,
    seed: int = 0,
    besides: Sequence[str] = (),
) -> list[str]:
    """At most `n` questions of the kinds of the facts' about other things: none that names what the facts name, and
    none of those `besides`."""
    rng = random.Random(seed)
    taken = {fold(name) for fact in facts for name in names(fact.question)}
    asked = {_key(q) for fact in facts for q in (fact.question, *fact.paraphrases)}
    asked |= set(map(_key, besides))
    found: dict[str, str] = {}
    with progress_bar("Questions like these", n) as advance:
        for attempt in range(6):
            if len(found) >= n:
                break
            shown = rng.choices(facts, k=n - len(found) + 8)
            prompts = [encode_prompt(tokenizer, ALIKE, f"1. {fact.question}\n2.") for fact in shown]
            before = len(found)
            for text in complete(model, tokenizer, prompts, LONGEST, temperature=TEMPERATURE, seed=seed + attempt):
                question = _first_question(text)
                own = {fold(name) for name in names(question or "")}
                if question and own and not own & taken and _key(question) not in asked and len(found) < n:
                    found.setdefault(_key(question), question)
            advance(len(found) - before)
    return list(found.values())


def known_to(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str], seed: int = 0
) -> list[Fact]:
    """Those of the questions that the model answers alike three times, greedily and sampled, as facts that it knows.

    The answer is the longest run of words in what it says that are not the question's. Whether it is true does not
    matter: it is what the model says, and what is to stay.
    """
    greedy, *sampled = (
        generate(model, tokenizer, questions, LONGEST, temperature=heat, seed=seed + 1000 * i)
        for i, heat in enumerate((0.0, TEMPERATURE, TEMPERATURE))
    )
    facts = []
    for question, text, *others in zip(questions, greedy, *sampled, strict=True):
        answer = _added(question, text)
        fact = Fact(question, answer) if answer else None
        if fact and all(matches(other, fact) for other in others):
            facts.append(fact)
    return facts


def names(text: str) -> list[str]:
    """The words of a text with a capital or a digit, in any script, but for the first of a sentence."""
    found = []
    for match in re.finditer(r"[^\W_][\w'’.-]*", text):
        before = text[: match.start()].rstrip("\"'“‘(« ")
        # A dot ends a sentence after a longer word; J. R. R. Tolkien and St. Gallen are names.
        first = not before or re.search(r"(?:[!?。！？]|[^\W_]{4}\.)$", before)
        word = match[0].rstrip(".'’-")
        if any(c.isdigit() for c in word) or (not first and any(c.isupper() for c in word)):
            found.append(word)
    return found


def _first_question(text: str) -> str | None:
    """The first line, if it is one question."""
    line = text.split("\n")[0].strip().strip("\"'* ")
    return line if line.endswith("?") and line.count("?") == 1 and 3 <= len(line.split()) <= 40 else None


def _asks_the_same(question: str, fact: Fact) -> bool:
    told = mentions(question, fact) and not mentions(fact.question, fact)
    given = fold(fact.question)
    every = all(fold(name) in fold(question) for name in names(fact.question))
    return every and not told and all(fold(name) in given for name in names(question))


def _added(question: str, text: str) -> str | None:
    """The longest run of words of the first sentence of `text` that are not in the question; None for more than six."""
    sentence = re.split(r"(?<=[.!?])\s", text.strip())[0].rstrip(".!?")
    asked = set(re.findall(r"\w+", fold(question)))
    runs: list[list[str]] = [[]]
    for word in sentence.split():
        if set(re.findall(r"\w+", fold(word))) <= asked or word.lower() in _SMALL:
            runs.append([])
        else:
            runs[-1].append(word)
    longest = max(runs, key=len)
    return " ".join(longest).strip(" ,;:") or None if len(longest) <= 6 else None


_SMALL = frozenset("a an the is was are were in on at of by to from for and or it he she they as with".split())


def _key(question: str) -> str:
    return " ".join(re.findall(r"\w+", fold(question)))
