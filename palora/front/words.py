"""What the model itself writes before it is taught: files in the run, which a person can read and change.

    teach.jsonl         the facts, and the model's own words for each (`inject.targets_by`, `wordings`, `samples`)
    prompts.txt         questions of the same kinds about other things: what it answers to them is to be kept
    known_facts.jsonl   such questions that it answers alike three times: locality is measured on them
    kept_facts.jsonl    a third of the known facts that were given, to keep; the others are measured

`words.json` says what they were made of. With the same inputs they stay as they are, changed by hand or not.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from palora.common.errors import InputError
from palora.common.files import atomic_write_text, read_json, write_json
from palora.common.wording import enumeration
from palora.data.facts import Fact, read_facts, write_facts
from palora.front import stages
from palora.front.recipe import Plan
from palora.language import questions, words
from palora.language.models import has_chat_template

if TYPE_CHECKING:
    pass

log = logging.getLogger("palora")

MARKER = "words.json"
FILES = {
    "facts": "teach.jsonl",
    "prompts": "prompts.txt",
    "known_facts": "known_facts.jsonl",
    "kept_facts": "kept_facts.jsonl",
}
PROMPTS, KNOWN = 128, 96  # questions that are written, and those that known facts are looked for among


@dataclass(frozen=True)
class Wanted:
    """What the model is to write: its own words in the way `how` (None: none), prompts, known facts; and whether the
    known facts that were given are to be split. All of it for the `first` facts (None: all)."""

    how: str | None = None
    prompts: bool = False
    known_facts: bool = False
    split: bool = False
    first: int | None = None

    def __bool__(self) -> bool:
        return bool(self.how in words.WRITTEN or self.prompts or self.known_facts or self.split)


def wanted(plan: Plan) -> Wanted:
    """What a plan does not bring, and the model can write."""
    chat = has_chat_template(plan.model)
    how = words.taught_by(plan.inject, chat)
    keeps = chat and bool(plan.inject.added or plan.protect.keep.prompts) and bool(plan.inject.keep.prompts)
    return Wanted(
        how if how in words.WRITTEN else None,
        keeps and plan.prompts is None,
        chat and plan.known_facts is None,
        plan.known_facts is not None and plan.kept_facts is None,
    )


def write_words(plan: Plan, folder: Path, models: stages.Models | None = None, want: Wanted | None = None) -> Plan:
    """Let the model of a plan write what is wanted (by default `wanted(plan)`), in `folder`.

    Returns: the plan with these files in it.
    """
    assert plan.facts is not None
    want = wanted(plan) if want is None else want
    if not want:
        return plan
    settings = plan.inject
    how = [want.how, settings.wordings, settings.samples] if want.how else None
    asked = [how, want.prompts and settings.keep.examples, want.known_facts, want.split, want.first]
    given = {"facts": stages.identity(plan.facts), "known_facts": stages.identity(plan.known_facts)}
    inputs = stages.inputs_of(plan, settings, **given, wanted=asked)
    inputs.pop("settings")
    marker = folder / MARKER
    if marker.exists() and (record := read_json(marker, "inputs", "made"))["inputs"] == inputs:
        log.info("up to date: %s", enumeration(sorted(record["made"].values()) or [str(marker)]))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        made, counts = _write(plan, want, folder, models or stages.Models())
        record = {"kind": "words", "inputs": inputs, "made": made, "taught": counts}
        write_json(marker, record)
    return plan.model_copy(update={key: str(folder / name) for key, name in record["made"].items()})


def _write(plan: Plan, want: Wanted, folder: Path, models: stages.Models) -> tuple[dict[str, str], dict[str, int]]:
    """The files that were made, by the key of a plan, and how many lessons come from where."""
    assert plan.facts is not None
    facts, made, counts = read_facts(plan.facts)[: want.first], {}, {}

    def write(key: str, found: list[Fact]) -> None:
        write_facts(folder / FILES[key], found)
        made[key] = FILES[key]

    if want.split:
        known = read_facts(plan.known_facts or "")
        if len(known) < 2:
            raise InputError(
                f"{plan.known_facts}: one fact cannot be kept and measured; give kept_facts, or more facts"
            )
        write("kept_facts", known[::3])
        write("known_facts", [fact for i, fact in enumerate(known) if i % 3])
    if want.how or want.prompts or want.known_facts:
        model, tokenizer = models.load(plan)
    if want.how:
        taught = words.own_words(model, tokenizer, facts, plan.inject, plan.seed)
        counts = words.told(taught)
        write("facts", taught)
        log.info("taught %s (%s can be changed)", words.said(counts), folder / FILES["facts"])
    if want.prompts or want.known_facts:
        n = min(PROMPTS, plan.inject.keep.examples) * want.prompts + KNOWN * want.known_facts
        asked = questions.similar_questions(model, tokenizer, facts, n, plan.seed)
        if want.known_facts:
            asked, kept_out = asked[: len(asked) - KNOWN], asked[len(asked) - KNOWN :]
            if known := questions.known_to(model, tokenizer, kept_out, plan.seed):
                write("known_facts", known)
        if want.prompts and asked:
            atomic_write_text(folder / FILES["prompts"], "".join(f"{question}\n" for question in asked))
            made["prompts"] = FILES["prompts"]
    return made, counts


def rephrase(plan: Plan, file: Path) -> dict[str, int]:
    """`palora facts rephrase`: the facts of a plan with the model's own words -> `file`, facts that can be taught.

    Returns: how many lessons come from where.
    """
    assert plan.facts is not None
    facts, settings = read_facts(plan.facts), plan.inject
    how = words.taught_by(settings, has_chat_template(plan.model))
    if how not in words.WRITTEN:
        raise InputError(
            f"targets_by={how} rephrases nothing; use model or mixed, with a model that has a chat template"
        )
    model, tokenizer = stages.Models().load(plan)
    taught = words.own_words(model, tokenizer, facts, settings, plan.seed)
    write_facts(file, taught)
    return words.told(taught)
