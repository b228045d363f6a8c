"""Ask the model and mark its answers: the one place where correctness comes from, for training and evaluation alike."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palora.data.facts import Fact
from palora.data.marking import exact, f1, matches
from palora.data.skills import Problem, Skill
from palora.language.generation import Reply, generate, replies
from palora.language.likelihood import choose
from palora.language.prompts import encode_example, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """One answer, marked. `exact` and `f1` only differ from `correct` for facts; `chosen` is one of given choices; one
    that has not `ended` was cut."""

    prompt: str
    expected: str
    text: str
    correct: bool
    exact: bool
    f1: float
    chosen: bool = False
    ended: bool = True


def ask_facts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    questions: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Ask each fact's question (or the given one in its place) by free greedy generation. An answer may be as long as
    the longest right one, however small `max_new_tokens`.

    `correct`: the model gives the answer or an alias in the first thing that it says; `exact`: it says nothing else;
    `f1`: how many of its words are those of the answer (`data/marking.py`).
    """
    asked = list(questions) if questions is not None else [fact.question for fact in facts]
    longest = max((len(encode_example(tokenizer, f.question, f.answer).answer) for f in facts), default=0)
    texts = generate(model, tokenizer, asked, max(max_new_tokens, longest), batch_size, progress)
    return [
        Answer(question, fact.answer, text, matches(text, fact), exact(text, fact), f1(text, fact))
        for question, fact, text in zip(asked, facts, texts, strict=True)
    ]


AT_ONCE = 256  # facts between two looks at whether a recall can still be reached: fewer are always all asked
SURE = 4.0  # standard deviations: of 30,000 looks one is wrong


def ask_until_missed(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", facts: Sequence[Fact], target: float
) -> list[Answer]:
    """Ask the facts in a random order until it is clear that fewer than `target` of them are answered right; all of
    them where it never is.

    Clear: the target lies over Wilson's interval, at four standard deviations, of those that were asked.
    """
    answers: list[Answer] = []
    order = list(facts) if len(facts) <= AT_ONCE else random.Random(0).sample(facts, len(facts))
    for start in range(0, len(order), AT_ONCE):
        answers += ask_facts(model, tokenizer, order[start : start + AT_ONCE])
        if wilson(sum(a.correct for a in answers), len(answers), SURE)[1] < target:
            break
    return answers


def solve(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    skill: Skill,
    problems: Sequence[Problem],
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Solve a skill's problems by free greedy generation, or by the likeliest choice where they have choices; marked by
    the skill's scorer."""
    chosen = bool(problems and problems[0].choices)
    if chosen:
        answers = [Reply([], text, True) for text in choose(model, tokenizer, problems, batch_size, progress)]
    else:
        prompts = [encode_prompt(tokenizer, p.prompt) for p in problems]
        answers = replies(model, tokenizer, prompts, skill.max_new_tokens, batch_size, progress)
    marks = [skill.score(own.text, problem) for own, problem in zip(answers, problems, strict=True)]
    marked = zip(problems, answers, marks, strict=True)
    return [Answer(p.prompt, p.answer, own.text, m, m, m, chosen, own.ended) for p, own, m in marked]


def share_correct(answers: Sequence[Answer]) -> float:
    """The share of answers marked correct."""
    return sum(a.correct for a in answers) / len(answers)


def beside_recall(answers: Sequence[Answer]) -> dict[str, float | None]:
    """What is told wherever recall is: the share marked `exact`, and the mean F1; None of nothing."""
    n = len(answers)
    return {
        "recall_exact": sum(a.exact for a in answers) / n if n else None,
        "recall_f1": sum(a.f1 for a in answers) / n if n else None,
    }


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of `right` among `n` (> 0), `z` standard deviations to each side: 95% by default."""
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
