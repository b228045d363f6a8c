"""What is to be kept: skills, known facts, plain text and prompts, as tokenised examples.

Prompts come without answers: what the model answers to them before stage 2 is what is to be kept. They are the cheapest
thing to give (questions of the kind that must not change), and need nothing that the model knows to be written down.

How much each kind weighs is a setting of whoever uses them: the protection's rule, drift, replay and distillation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from palora.common.errors import InputError
from palora.common.progress import progress_bar
from palora.data.facts import Fact
from palora.data.skills import Skill
from palora.language.generation import replies
from palora.language.prompts import Example, encode_example, encode_prompt
from palora.language.scoring import solve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Kept(NamedTuple):
    """One thing to keep: its kind (skills, known_facts, text, prompts), its name, and its examples."""

    kind: str
    name: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Keep:
    """What is to be kept, before a model has read it.

    Args:
        skills: their problems, with solutions.
        known_facts: questions and answers that the model knows.
        text: passages; of each the first 512 tokens count.
        prompts: questions without answers: what the model says to them now is kept.
        examples: at most so many rows of each thing.
    """

    skills: Sequence[Skill] = ()
    known_facts: Sequence[Fact] = ()
    text: Sequence[str] = ()
    prompts: Sequence[str] = ()
    examples: int = 512

    def tokenised(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[Kept]:
        """Every thing to keep, as this model reads it."""
        n = self.examples
        kept = [Kept("skills", skill.name, skill_examples(model, tokenizer, skill, n)) for skill in self.skills]
        if self.known_facts:
            known = [encode_example(tokenizer, f.question, f.answer) for f in self.known_facts[:n]]
            kept.append(Kept("known_facts", "known facts", known))
        if self.text:
            kept.append(Kept("text", "text", [_passage(tokenizer, text) for text in self.text[:n]]))
        if self.prompts:
            kept.append(Kept("prompts", "prompts", own_answers(model, tokenizer, self.prompts[:n])))
        return kept

    def describe(self) -> dict[str, Any]:
        """For the records: what is kept, and how much of it."""
        return {
            "skills": [skill.name for skill in self.skills],
            "known_facts": len(self.known_facts),
            "text": len(self.text),
            "prompts": len(self.prompts),
            "examples": self.examples,
        }


def skill_examples(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", skill: Skill, n: int
) -> list[Example]:
    """Tokenised problems with worked solutions: the published ones, or where there are none the model's own right
    answers.

    Raises: InputError where it has to, and the model solves none of `n` problems.
    """
    problems = skill.problems("train", n, 0)
    if all(p.solution is not None for p in problems):
        return [encode_example(tokenizer, p.prompt, p.solution or "") for p in problems]
    with progress_bar(f"Solving {skill.name}", len(problems)) as advance:
        solved = solve(model, tokenizer, skill, problems, progress=advance)
    used = [encode_example(tokenizer, a.prompt, a.text, a.ended) for a in solved if a.correct]
    if not used:
        raise InputError(
            f"the model solves none of {len(problems)} problems of {skill.name}: there is no skill to keep"
        )
    return used


def own_answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], max_new_tokens: int = 64
) -> list[Example]:
    """Prompts with what the model answers to them, greedily; an answer that was cut has no end. Where it says nothing,
    the prompt is left out."""
    asked = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    with progress_bar("Answering the prompts", len(prompts)) as advance:
        said = replies(model, tokenizer, asked, max_new_tokens, progress=advance)
    rows = zip(prompts, said, strict=True)
    return [encode_example(tokenizer, prompt, own.text, own.ended) for prompt, own in rows if own.text]


def _passage(tokenizer: "PreTrainedTokenizerBase", text: str) -> Example:
    ids = tokenizer(text, truncation=True, max_length=512)["input_ids"]
    return Example(ids, [])
