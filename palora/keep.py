"""What is to be kept: a list of skills, known facts and plain text, each with a weight, as tokenised examples.

The protection takes its statistics from them, replay and distillation their rows (`regularisers.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from palora.errors import InputError
from palora.facts import Fact
from palora.progress import progress_bar
from palora.prompts import Example, encode_example
from palora.scoring import solve
from palora.skills import Skill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Kept(NamedTuple):
    """One thing to keep: what it is called, how much it weighs, and its examples."""

    label: str
    weight: float
    examples: Sequence[Example]


@dataclass(frozen=True)
class Keep:
    """What is to be kept, and how much each kind weighs (shared equally within a kind)."""

    skills: Sequence[Skill] = ()
    known_facts: Sequence[Fact] = ()
    text: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: {"skills": 1.0, "known_facts": 1.0, "text": 1.0})
    examples: int = 512

    def tokenised(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[Kept]:
        """Every thing to keep, at most `examples` rows of each: the skills first, of any weight, then what else weighs
        more than nothing. Raises InputError where nothing weighs anything."""
        kept = [
            Kept(s.name, self.weights["skills"] / len(self.skills), skill_examples(model, tokenizer, s, self.examples))
            for s in self.skills
        ]
        if self.known_facts and self.weights["known_facts"] > 0:
            known = [encode_example(tokenizer, f.question, f.answer) for f in self.known_facts[: self.examples]]
            kept.append(Kept("the known facts", self.weights["known_facts"], known))
        if self.text and self.weights["text"] > 0:
            passages = [_passage(tokenizer, text) for text in self.text[: self.examples]]
            kept.append(Kept("the text", self.weights["text"], passages))
        if not any(thing.weight > 0 for thing in kept):
            raise InputError("nothing is to be kept: every weight under keep is 0")
        return kept

    def describe(self) -> dict[str, Any]:
        """For the records: what is kept, and how much of it."""
        return {
            "skills": [skill.name for skill in self.skills],
            "known_facts": len(self.known_facts),
            "text": len(self.text),
            "weights": dict(self.weights),
            "examples": self.examples,
        }


def skill_examples(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", skill: Skill, n: int
) -> list[Example]:
    """Tokenised problems with worked solutions: the gold ones where the skill has them, otherwise the model's own right
    answers. Raises InputError where the model solves none of `n` problems."""
    problems = skill.problems("train", n, 0)
    if all(p.solution is not None for p in problems):
        return [encode_example(tokenizer, p.prompt, p.solution or "") for p in problems]
    with progress_bar(f"Solving {skill.name}", len(problems)) as advance:
        answers = solve(model, tokenizer, skill, problems, progress=advance)
    right = [encode_example(tokenizer, a.prompt, a.text) for a in answers if a.correct]
    if not right:
        raise InputError(
            f"the model solves none of {len(problems)} problems of {skill.name}: there is no skill to keep"
        )
    return right


def _passage(tokenizer: "PreTrainedTokenizerBase", text: str) -> Example:
    ids = tokenizer(text, truncation=True, max_length=512)["input_ids"]
    return Example(ids, [])
