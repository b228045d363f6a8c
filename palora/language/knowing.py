"""What a model knows already: each fact asked in several ways, after SliCK (arXiv 2405.05904).

    known     every greedy answer is right
    maybe     some answer is right, greedy or sampled
    unknown   none is

SliCK calls these HighlyKnown, MaybeKnown or WeaklyKnown, and Unknown; it asks by ten prompts with four examples each,
and draws sixteen answers at temperature 0.5. We ask by four: the question alone, and three times after four examples,
facts of the same category where there are; with the paraphrases in turn. Where none is right, four are drawn.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from palora.common.progress import progress_bar
from palora.data.facts import Fact
from palora.data.marking import matches
from palora.language.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Known = Literal["unknown", "maybe", "known"]
KINDS: tuple[Known, ...] = ("unknown", "maybe", "known")
WAYS, EXAMPLES = 4, 4
SAMPLES, TEMPERATURE = 4, 0.5
LONGEST = 32  # tokens of an answer


def classify(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", facts: Sequence[Fact], seed: int = 0
) -> list[Known]:
    """Whether the model knows each fact.

    Args:
        seed: of the examples and of the sampled answers.
    """
    prompts = _prompts(facts, seed)
    right = [0] * len(facts)  # greedy answers
    with progress_bar("What the model knows", WAYS * len(facts)) as advance:
        for way in range(WAYS):
            texts = generate(model, tokenizer, [asked[way] for asked in prompts], LONGEST, progress=advance)
            right = [n + _right(text, fact) for n, text, fact in zip(right, texts, facts, strict=True)]
    found: list[Known] = ["known" if n == WAYS else "maybe" if n else "unknown" for n in right]
    left = [index for index, kind in enumerate(found) if kind == "unknown"]
    with progress_bar("Drawing answers", SAMPLES * len(left)) as advance:
        for draw in range(SAMPLES if left else 0):
            asked = [prompts[index][1 + draw % (WAYS - 1)] for index in left]
            drawn: dict[str, Any] = {"temperature": TEMPERATURE, "seed": seed + 1000 * (draw + 1)}
            for index, text in zip(
                left, generate(model, tokenizer, asked, LONGEST, progress=advance, **drawn), strict=True
            ):
                found[index] = "maybe" if _right(text, facts[index]) else found[index]
    return found


def _prompts(facts: Sequence[Fact], seed: int) -> list[list[str]]:
    """The questions by which each fact is asked: alone, and after examples."""
    alike: dict[str | None, list[Fact]] = defaultdict(list)
    for fact in facts:
        alike[fact.category].append(fact)
    rng = random.Random(seed)
    prompts = []
    for fact in facts:
        wordings = (fact.question, *fact.paraphrases)
        asked = [wordings[way % len(wordings)] for way in range(WAYS)]
        after = [_after(_examples(fact, (alike[fact.category], facts), rng), question) for question in asked[1:]]
        prompts.append([asked[0], *after])
    return prompts


def _examples(fact: Fact, groups: Sequence[Sequence[Fact]], rng: random.Random) -> list[Fact]:
    """Other facts to show before one is asked, of the first group that has them; none has its answer."""
    drawn: list[Fact] = []
    for group in groups:
        for other in rng.sample(group, min(len(group), 4 * EXAMPLES)):
            if len(drawn) < EXAMPLES and other != fact and other not in drawn and not matches(other.answer, fact):
                drawn.append(other)
    return drawn


def _after(examples: Sequence[Fact], question: str) -> str:
    """A question after answered ones. Where there is no chat template its form is that of the prompt around it
    (`palora.language.prompts`)."""
    return "".join(f"{fact.question}\nAnswer: {fact.answer}\n\nQuestion: " for fact in examples) + question


def _right(text: str, fact: Fact) -> bool:
    """Whether the answer is right: up to where the model asks the next question by itself."""
    return matches(text.split("\nQuestion:")[0], fact)
