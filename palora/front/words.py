"""What the model itself writes before it is taught: files in the run, which a person can read and change.

    teach.jsonl         the facts, and the model's own words for each (`inject.targets_by`, `wordings`, `samples`)
    prompts.txt         questions of the same kinds about other things: what it answers to them is to be kept
    known_facts.jsonl   others of that sort that it answers alike three times: locality is measured on them
    kept_facts.jsonl    a third of the known facts that were given, to keep; the others are measured

`words.json` says what each was made of. With the same inputs a file stays as it is, changed by hand or not.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palora.common.errors import InputError
from palora.common.files import atomic_write_text, read_json, write_json
from palora.common.hashes import hash_file
from palora.data.facts import read_facts, write_facts
from palora.data.sources import files_of, identity
from palora.front import stages
from palora.front.recipe import Plan
from palora.language import questions, words
from palora.language.models import has_chat_template

log = logging.getLogger("palora")

MARKER = "words.json"
FILES = {
    "kept_facts": "kept_facts.jsonl",
    "facts": "teach.jsonl",
    "prompts": "prompts.txt",
    "known_facts": "known_facts.jsonl",
}
PROMPTS, KNOWN = 128, 96  # questions that are written at most, and those that known facts are looked for among


@dataclass(frozen=True)
class Wanted:
    """What the model is to write: its own words in the way `how` (None: none), as many `prompts`, known facts; and
    whether the known facts that were given are to be split. All of it for the `first` facts (None: all)."""

    how: str | None = None
    prompts: int = 0
    known_facts: bool = False
    split: bool = False
    first: int | None = None

    @property
    def anything(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.how or self.prompts or self.known_facts or self.split)


def wanted(plan: Plan) -> Wanted:
    """What a plan does not bring, and the model can write. Raises InputError where known facts cannot be split."""
    chat = has_chat_template(plan.model)
    how = words.taught_by(plan.inject, chat)
    split = plan.known_facts is not None and plan.kept_facts is None and _keeps(plan, "known_facts")
    if split and len(read_facts(plan.known_facts or "")) < 2:
        raise InputError(
            f"{files_of(plan.known_facts)[0]}: one fact cannot be kept and measured; give kept_facts, or more facts"
        )
    return Wanted(
        how if how in words.WRITTEN else None,
        min(PROMPTS, plan.inject.keep.examples) if chat and plan.prompts is None and _keeps(plan, "prompts") else 0,
        chat and plan.known_facts is None,
        split,
    )


def _keeps(plan: Plan, kind: str) -> bool:
    """Whether the loss or the rule looks at a kind of thing that is kept."""
    in_loss = bool(plan.inject.added or _distils(plan)) and bool(getattr(plan.inject.keep, kind))
    return in_loss or bool(getattr(plan.protect.keep, kind))


def _distils(plan: Plan) -> bool:
    """Whether `distil` is on by its default (`stages.with_distillation`)."""
    own = words.taught_by(plan.inject, has_chat_template(plan.model)) in words.WRITTEN
    return plan.inject.distil is None and own


def write_words(plan: Plan, folder: Path, models: stages.Models | None = None, want: Wanted | None = None) -> Plan:
    """Let the model of a plan write what is wanted (by default `wanted(plan)`), in `folder`.

    Returns: the plan with these files in it.

    Raises: InputError where a file that was given is one that would be written.
    """
    assert plan.facts is not None
    named = [name for given in (plan.facts, plan.known_facts, plan.kept_facts) for name in files_of(given)]
    for given in filter(None, (*named, plan.prompts)):
        if Path(given).resolve() in [(folder / name).resolve() for name in FILES.values()]:
            raise InputError(f"{given} is written by the run itself; copy it elsewhere, or choose another --out")
    writing = _Writing(plan, plan, wanted(plan) if want is None else want, folder, models or stages.Models())
    for step in (writing.split, writing.own_words, writing.prompts, writing.known_facts):
        step()
    return writing.made


@dataclass
class _Writing:
    """The files of a folder, one after the other; `made` is the plan with those that are there."""

    plan: Plan
    made: Plan
    want: Wanted
    folder: Path
    models: stages.Models

    def file(self, key: str, made_of: Any, make: Callable[[Path], Any]) -> None:
        """Write a file, unless it is there and was made of the same: `make(path)` writes it, or finds nothing to."""
        path, marker = self.folder / FILES[key], self.folder / MARKER
        record: dict[str, Any] = read_json(marker, "files") if marker.exists() else {"kind": "words", "files": {}}
        old = record["files"].get(path.name)
        if old and old["inputs"] == made_of and path.exists() == bool(old["hash"]):
            log.info("%s is up to date", path)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and old is None:
                raise InputError(f"{path} was not written by palora and would be lost; choose another --out")
            if path.exists() and hash_file(path) != old["hash"]:
                mine = path.with_name(f"{path.stem}.mine{path.suffix}")
                os.replace(path, mine)
                log.warning("%s was changed by hand and is made of other things now: yours is %s", path, mine)
            found = make(path)
            digest = hash_file(path) if path.exists() else None
            record["files"][path.name] = {"inputs": made_of, "hash": digest, "found": found}
            write_json(marker, record)
        if path.exists():
            self.made = self.made.model_copy(update={key: str(path)})

    def _made_of(self, *parts: Any) -> dict[str, Any]:
        facts = [identity(self.plan.facts), self.want.first]
        made_of = stages.inputs_of(self.plan, self.plan.inject, facts=facts, how=list(parts))
        return {key: value for key, value in made_of.items() if key not in ("settings", "targets")}

    def split(self) -> None:
        if not self.want.split:
            return
        known = read_facts(self.plan.known_facts or "")
        made_of = {"known_facts": identity(self.plan.known_facts)}
        self.file("kept_facts", made_of, lambda path: write_facts(path, known[::3]))
        rest = [fact for i, fact in enumerate(known) if i % 3]
        self.file("known_facts", made_of, lambda path: write_facts(path, rest))

    def own_words(self) -> None:
        if self.want.how not in words.WRITTEN:
            return
        settings = self.plan.inject
        made_of = self._made_of(self.want.how, settings.wordings, settings.samples)

        def make(path: Path) -> dict[str, int]:
            model, tokenizer = self.models.load(self.plan)
            facts = read_facts(self.plan.facts or "")[: self.want.first]
            taught = words.write_own_words(model, tokenizer, facts, settings, self.plan.seed, path, made_of)
            log.info("taught %s (%s can be changed)", words.said(words.told(taught)), path)
            return words.told(taught)

        self.file("facts", made_of, make)

    def prompts(self) -> None:
        if not self.want.prompts:
            return

        def make(path: Path) -> None:
            if asked := self._similar(self.want.prompts, ()):
                atomic_write_text(path, "".join(f"{question}\n" for question in asked))
            else:
                log.warning("the model wrote no questions like the facts: give prompts=FILE, or only the skill is kept")

        self.file("prompts", self._made_of(self.want.prompts), make)

    def known_facts(self) -> None:
        if not self.want.known_facts:
            return
        kept = stages.read_lines(self.made.prompts) if self.made.prompts else []

        def make(path: Path) -> None:
            model, tokenizer = self.models.load(self.plan)
            asked = self._similar(KNOWN, kept)
            if known := questions.known_to(model, tokenizer, asked, self.plan.seed) if asked else []:
                write_facts(path, known)
            else:
                log.warning("no question was found that the model answers alike three times: give known_facts=FILE")

        self.file("known_facts", self._made_of(KNOWN, stages.identity(self.made.prompts)), make)

    def _similar(self, n: int, besides: list[str] | tuple[()]) -> list[str]:
        model, tokenizer = self.models.load(self.plan)
        facts = read_facts(self.plan.facts or "")[: self.want.first]
        return questions.similar_questions(model, tokenizer, facts, n, self.plan.seed, besides)


def rephrase(plan: Plan, file: Path) -> dict[str, int]:
    """`palora facts rephrase`: the facts of a plan with the model's own words -> `file`, facts that can be taught.

    Returns: how many lessons come from where.
    """
    assert plan.facts is not None
    if file.suffix != ".jsonl":
        raise InputError(f"{file}: facts are written as JSONL; name the file *.jsonl")
    facts, settings = read_facts(plan.facts), plan.inject
    how = words.taught_by(settings, has_chat_template(plan.model))
    if how not in words.WRITTEN:
        raise InputError(
            f"targets_by={how} rephrases nothing; use model or mixed, with a model that has a chat template"
        )
    model, tokenizer = stages.Models().load(plan)
    made_of = stages.inputs_of(plan, settings, facts=identity(plan.facts))
    return words.told(words.write_own_words(model, tokenizer, facts, settings, plan.seed, file, made_of))
