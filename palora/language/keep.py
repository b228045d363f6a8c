"""What is to be kept: a list of skills, known facts, plain text and prompts, each with a weight, as tokenised examples.

Prompts come without answers: what the model answers to them before stage 2 is what is to be kept. They are the cheapest
thing to give (questions of the kind that must not change), and need nothing that the model knows to be written down.

The protection takes its statistics from them, replay and distillation their rows (`regularisers.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from palora.common.errors import InputError
from palora.common.progress import progress_bar
from palora.data.facts import Fact
from palora.data.skills import Skill
from palora.language.generation import generate
from palora.language.prompts import Example, encode_example
from palora.language.scoring import solve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


KINDS = ("skills", "known_facts", "text", "prompts")
Answers = Literal["gold", "right", "own"]


class Kept(NamedTuple):
    """One thing to keep: of which kind it is, what it is called, how much it weighs, and its examples."""

    kind: str
    label: str
    weight: float
    examples: Sequence[Example]


@dataclass(frozen=True)
class Keep:
    """What is to be kept, and how much each kind weighs (shared equally within a kind)."""

    skills: Sequence[Skill] = ()
    known_facts: Sequence[Fact] = ()
    text: Sequence[str] = ()
    prompts: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    examples: int = 512
    answers: Answers = "gold"

    def tokenised(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[Kept]:
        """Every thing to keep, at most `examples` rows of each, also those that weigh nothing."""
        weights, n = {kind: self.weights.get(kind, 0.0) for kind in KINDS}, self.examples
        share = weights["skills"] / max(1, len(self.skills))
        kept = []
        for skill in self.skills:
            solved = skill_examples(model, tokenizer, skill, n, self.answers)
            kept.append(Kept("skills", skill.name, share, solved))
        if self.known_facts:
            known = [encode_example(tokenizer, f.question, f.answer) for f in self.known_facts[:n]]
            kept.append(Kept("known_facts", "the known facts", weights["known_facts"], known))
        if self.text:
            passages = [_passage(tokenizer, text) for text in self.text[:n]]
            kept.append(Kept("text", "the text", weights["text"], passages))
        if self.prompts:
            answered = own_answers(model, tokenizer, self.prompts[:n])
            kept.append(Kept("prompts", "the prompts", weights["prompts"], answered))
        return kept

    def describe(self) -> dict[str, Any]:
        """For the records: what is kept, and how much of it."""
        return {
            "skills": [skill.name for skill in self.skills],
            "known_facts": len(self.known_facts),
            "text": len(self.text),
            "prompts": len(self.prompts),
            "weights": dict(self.weights),
            "examples": self.examples,
            "answers": self.answers,
        }


def skill_examples(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", skill: Skill, n: int, answers: Answers = "gold"
) -> list[Example]:
    """Tokenised problems with worked solutions.

    Args:
        answers: gold solutions, where the skill has them (otherwise as `right`); the model's own right answers; or all
            that it answers, right or wrong.

    Raises: InputError where the model solves none of `n` problems and only right answers are wanted.
    """
    problems = skill.problems("train", n, 0)
    if answers == "gold" and all(p.solution is not None for p in problems):
        return [encode_example(tokenizer, p.prompt, p.solution or "") for p in problems]
    with progress_bar(f"Solving {skill.name}", len(problems)) as advance:
        solved = solve(model, tokenizer, skill, problems, progress=advance)
    used = [encode_example(tokenizer, a.prompt, a.text) for a in solved if a.correct or answers == "own"]
    if not used:
        raise InputError(
            f"the model solves none of {len(problems)} problems of {skill.name}: there is no skill to keep"
        )
    return used


def own_answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], max_new_tokens: int = 64
) -> list[Example]:
    """Prompts with what the model answers to them, greedily."""
    with progress_bar("Answering the prompts", len(prompts)) as advance:
        texts = generate(model, tokenizer, prompts, max_new_tokens, progress=advance)
    return [encode_example(tokenizer, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def _passage(tokenizer: "PreTrainedTokenizerBase", text: str) -> Example:
    ids = tokenizer(text, truncation=True, max_length=512)["input_ids"]
    return Example(ids, [])
