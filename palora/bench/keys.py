"""What a cell is, and the key of its file: a hash of everything that its numbers depend on.

A cell whose file is there is done. The name of a method is in no key: one that is renamed is not trained again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from palora.bench.comparison import Comparison
from palora.common.hashes import hash_value
from palora.front import stages
from palora.front.recipe import Plan
from palora.language.models import model_hash
from palora.training.protection import check_protection

FORMAT = 5  # of a cell's file; counted up when what is measured changes, or the default of a setting


@dataclass(frozen=True)
class Cell:
    """One training: a method on a fact load at a learning rate, with a seed."""

    method: str
    load: int
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, {self.load} facts, rate {self.learning_rate:g}, seed {self.seed}"


def plan_of(c: Comparison, seed: int, **changes: Any) -> Plan:
    """What a stage works from: the comparison's model, what methods may keep, and `changes`."""
    same = "model dtype device chat_template_kwargs system_message targets facts text prompts".split()
    shared = {key: getattr(c, key) for key in same}
    plan = Plan(**shared, seed=seed, skills=c.keep_skills, kept_facts=c.kept_facts)
    return plan.model_copy(update=changes)


def shared_inputs(c: Comparison) -> str:
    """A hash of what all cells depend on: model, data, expert, and what is measured."""
    files = [stages.identity(f) for f in (c.facts, c.known_facts, c.kept_facts, c.text, c.prompts)]
    skills = [[stages.skill_identity(s) for s in listed] for listed in (c.skills, c.keep_skills)]
    settings: list[Any] = [c.dtype, c.targets, c.expert, c.evaluate, c.milestones, c.validation]
    settings += [chat] if any(chat := (c.chat_template_kwargs, c.system_message)) else []
    return hash_of(FORMAT, model_hash(c.model), files, skills, *settings)


def reference_key(shared: str, seed: int) -> str:
    """The key of base and expert, measured with a seed's problems."""
    return hash_of("reference", shared, seed)


def training_key(c: Comparison, shared: str, cell: Cell) -> str:
    """The key of a training."""
    method, settings = c.methods[cell.method], c.training(cell.method, cell.learning_rate)
    if settings.targets_by == "bare":  # as it always was: no setting
        settings = settings.model_copy(update={"targets_by": None})
    probe = [method.probe, stages.skill_identity(c.probed(cell.method)[0])] if method.probe else []
    rule = [method.rule, *check_protection(method.protect), method.protect.keep] if method.protect else []
    what = (*rule, method.base, method.shuffle, method.tuner, *probe)
    return hash_of("training", shared, *what, settings, cell.load, cell.seed)


def scaled_key(source: str, norms: Mapping[str, float]) -> str:
    """The key of an adapter (of the cell `source`) scaled to the norms by milestone."""
    return hash_of("scaled", source, norms)


def hash_of(*parts: Any) -> str:
    """Settings count by what differs from the defaults: a setting that is new to palora makes no cell undone."""
    plain = [p.model_dump(mode="json", exclude_defaults=True) if isinstance(p, BaseModel) else p for p in parts]
    return hash_value(plain)[:16]
