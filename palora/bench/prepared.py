"""What the cells of a comparison share, each made once, in a folder of its own:

experts/seed-S          the expert of a seed, shared by all methods; probe-HASH-S one that only rules look at
words/BASE-HOW          the facts in the model's own words; words/prompts: the prompts that may be kept
statistics/BASE-S       of everything that is to be kept, on the weights BASE: expert or original
protections/NAME-S      what a method protects
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from palora.algebra.rules import EXPERT_RULES
from palora.bench.comparison import Comparison
from palora.bench.keys import hash_of, plan_of
from palora.bench.quiet import quiet
from palora.common.settings import KeepSettings, ProtectSettings
from palora.front import stages
from palora.front.words import FILES, PROMPTS, Wanted, write_words
from palora.training.svf import MODEL, Expert

NOTHING: dict[str, Any] = {"skills": [], "kept_facts": None, "text": None, "prompts": None, "facts": None}


KL_ROWS = 8  # questions of each kind that KL from the base is measured on


def expert_folder(out: Path, seed: int) -> Path:
    """The expert of a seed."""
    return out / "experts" / f"seed-{seed}"


def probe_folder(c: Comparison, out: Path, method: str, seed: int) -> Path | None:
    """The expert of its own that a method's rule looks at, if it does."""
    if c.methods[method].probe is None or c.methods[method].rule not in EXPERT_RULES:
        return None
    return out / "experts" / f"probe-{hash_of(*c.probed(method))[:12]}-{seed}"


def statistics_folder(out: Path, base: str, seed: int) -> Path:
    """The statistics of everything that is to be kept, as the weights `base` (expert or original) see it."""
    return out / "statistics" / f"{base}-{seed}"


def protection_folder(out: Path, method: str, seed: int) -> Path:
    """What a method protects."""
    return out / "protections" / f"{method}-{seed}"


def taught_model(c: Comparison, out: Path, base: str, seed: int) -> str:
    """The model that facts are taught on: the expert of a seed, or the original."""
    return str(expert_folder(out, seed) / MODEL) if base == "expert" else c.model


def prepare_expert(c: Comparison, out: Path, seed: int) -> None:
    """Train the expert of a seed."""
    with quiet(out / "logs" / f"expert-{seed}.txt"):
        stages.train_expert(plan_of(c, seed, expert=c.expert), expert_folder(out, seed))


def prepare_probe(c: Comparison, out: Path, method: str, seed: int) -> None:
    """Train the expert that only a method's rule looks at."""
    folder, (skill, settings) = probe_folder(c, out, method, seed), c.probed(method)
    assert folder is not None
    with quiet(out / "logs" / f"{folder.name}.txt"):
        stages.train_expert(plan_of(c, seed, expert=settings, skills=[skill]), folder)


def words_folder(c: Comparison, out: Path, method: str) -> Path | None:
    """The model's own words that a method teaches, if it does; of the first seed, for all seeds."""
    how = c.words(method)
    return out / "words" / f"{c.base(method)}-{'-'.join(map(str, how))}" if how else None


def prepare_words(c: Comparison, out: Path, method: str) -> None:
    """Let the model write its own words for the facts of the largest load."""
    folder, seed = words_folder(c, out, method), c.seeds[0]
    assert folder is not None
    settings = c.training(method, c.methods[method].learning_rates[0])
    plan = plan_of(c, seed, model=taught_model(c, out, c.base(method), seed), inject=settings)
    with quiet(out / "logs" / f"words-{folder.name}.txt"):
        write_words(plan, folder, want=Wanted(settings.targets_by, first=max(c.loads)))


def taught_facts(c: Comparison, out: Path, method: str) -> str:
    """The file of facts that a method teaches."""
    folder = words_folder(c, out, method)
    return str(folder / FILES["facts"]) if folder else c.facts


def prepare_prompts(c: Comparison, out: Path) -> None:
    """Let the model write the prompts that may be kept."""
    plan, n = plan_of(c, c.seeds[0], inject=c.inject, prompts=None), min(PROMPTS, c.inject.keep.examples)
    with quiet(out / "logs" / "prompts.txt"):
        # A few more than are kept: KL is measured on the last ones.
        write_words(plan, out / "words" / "prompts", want=Wanted(prompts=n + KL_ROWS, first=max(c.loads)))


def prompts_file(out: Path) -> str | None:
    """The prompts that the model has written; None where it found none."""
    file = out / "words" / "prompts" / FILES["prompts"]
    return str(file) if file.exists() else None


def prepare_statistics(c: Comparison, out: Path, base: str, seed: int) -> None:
    """Collect the statistics of everything that is to be kept, on the weights `base` (expert or original)."""
    looked_at = KeepSettings(examples=c.inject.keep.examples)  # type: ignore[call-arg]
    nothing = ProtectSettings(rule="none", keep=looked_at)  # type: ignore[call-arg]
    plan = plan_of(c, seed, protect=nothing, model=taught_model(c, out, base, seed))
    with quiet(out / "logs" / f"statistics-{base}-{seed}.txt"):
        stages.protect(plan, statistics_folder(out, base, seed))


def prepare_protection(c: Comparison, out: Path, method: str, seed: int) -> None:
    """Find what a method protects, on the model that the facts are taught on, unless it brings a probe of its own.

    A probe's scales, or shuffled ones, are only looked at by the rule, on the original model that they were made of.
    """
    own, folder = c.methods[method], protection_folder(out, method, seed)
    assert own.protect is not None
    plan = plan_of(c, seed, protect=own.protect)
    with quiet(out / "logs" / f"protection-{method}-{seed}.txt"):
        scales = shuffled_expert(out, method, seed) if own.shuffle else probe_folder(c, out, method, seed)
        if scales is not None:
            stages.protect(plan.model_copy(update=NOTHING), folder, scales)
            return
        base = (own.probe.base if own.probe else None) or c.base(method)
        here = {
            "model": taught_model(c, out, base, seed),
            "skills": [c.probed(method)[0]] if own.probe else plan.skills,
        }
        expert = expert_folder(out, seed) if own.rule in EXPERT_RULES else None
        stages.protect(stages.for_rule(plan.model_copy(update=here)), folder, expert)


def shuffled_expert(out: Path, method: str, seed: int) -> Path:
    """The folder of a seed's expert with its scales shuffled, for one method (others may be at it too)."""
    expert = expert_folder(out, seed)
    folder = expert.with_name(f"shuffled-{method}-{seed}")
    shuffle_scales(Expert.load(expert), seed).save(folder)
    return folder


def shuffle_scales(expert: Expert, seed: int) -> Expert:
    """The same scales on other components, in every matrix: how far the expert moved things, but not which."""
    generator = torch.Generator().manual_seed(seed)
    scales = {name: z[torch.randperm(len(z), generator=generator)] for name, z in expert.scales.items()}
    return replace(expert, scales=scales, record={**expert.record, "shuffled": seed, "inputs": None})
