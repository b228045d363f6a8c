"""The work of `palora compare`, one piece a function: each reads folders, writes one file or folder, and is done in a
process of its own.

    experts/seed-S          the expert of a seed, shared by all methods; probe-HASH-S one that only rules look at
    statistics/BASE-S       of everything that is to be kept, on the weights BASE: expert or original
    protections/NAME-S      what a method protects
    adapters/KEY/MILESTONE  of a training that another method scales
    cells/KEY.json          one training (or a reference, or a scaled adapter) and what was measured at its milestones

KEY is a hash of everything that a cell's numbers depend on: a cell whose file is there is done.
"""

import contextlib
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from pydantic import BaseModel

from palora.algebra.statistics import InputStatistics, from_tensors
from palora.algebra.subspace import STATISTICS, ProtectedSubspaces
from palora.bench.comparison import SCALE_RULES, Comparison
from palora.bench.tuners import live_delta
from palora.common.errors import DivergedError
from palora.common.files import load_tensors, read_json, sha256, write_json
from palora.common.metrics import read_metrics
from palora.common.settings import KeepSettings, ProtectSettings
from palora.common.versions import machine
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.front import stages
from palora.language.keep import Kept
from palora.language.scoring import share_correct, solve
from palora.language.targets import weight
from palora.results.evaluation import Questions, measure
from palora.training.injection import inject
from palora.training.svf import Expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 3  # of a cell's file; counted up when what is measured changes, or the default of a setting
NONE = ProtectSettings(rule="none")  # type: ignore[call-arg]


@dataclass(frozen=True)
class Cell:
    """One training: a method on a fact load at a learning rate, with a seed."""

    method: str
    load: int
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, {self.load} facts, rate {self.learning_rate:g}, seed {self.seed}"


def base_of(c: Comparison) -> stages.Base:
    """The model of a comparison."""
    return stages.Base(c.model, c.dtype, c.device, tuple(c.targets) if c.targets else None)


def sources_of(c: Comparison) -> stages.Sources:
    """What methods may keep."""
    return stages.Sources(tuple(c.keep_skills), c.kept_facts, c.text, c.prompts)


# --- what a cell depends on -----------------------------------------------------------------------


def shared_inputs(c: Comparison) -> str:
    """A hash of what all cells depend on: model, data, expert, and what is measured."""
    files = [stages.identity(f) for f in (c.model, c.facts, c.known_facts, c.kept_facts, c.text, c.prompts)]
    skills = [[stages.skill_identity(s) for s in listed] for listed in (c.skills, c.keep_skills)]
    return _hash(FORMAT, files, skills, c.dtype, c.targets, c.expert, c.evaluate, c.milestones, c.validation)


def reference_key(c: Comparison, shared: str, seed: int) -> str:
    """The key of base and expert, measured with a seed's problems."""
    return _hash("reference", shared, seed)


def training_key(c: Comparison, shared: str, cell: Cell) -> str:
    """The key of a training. The method's name is not in it: a method that is renamed is not trained again."""
    method, settings = c.methods[cell.method], c.training(cell.method, cell.learning_rate)
    probe = [method.probe, stages.skill_identity(c.probed(cell.method)[0])] if method.probe else []
    rule = [method.rule, *stages.check_protection(method.protect), method.protect.keep] if method.protect else []
    what = (*rule, method.shuffle, method.tuner, *probe)
    return _hash("training", shared, *what, settings, cell.load, cell.seed)


def is_done(c: Comparison, out: Path, cell: Cell, key: str) -> bool:
    """Whether a training was measured, and its adapters are there if another method scales them."""
    file = cell_file(out, key)
    if not file.exists() or not c.is_source(cell.method):
        return file.exists()
    return all((adapters_folder(out, key) / m).is_dir() for m in read_json(file, "moments")["moments"])


def scaled_key(source: str, norms: Mapping[str, float]) -> str:
    """The key of an adapter (of the cell `source`) scaled to the norms by milestone."""
    return _hash("scaled", source, sorted(norms.items()))


def _hash(*parts: Any) -> str:
    """Settings count by what differs from the defaults: a setting that is new to palora makes no cell undone."""
    plain = [p.model_dump(mode="json", exclude_defaults=True) if isinstance(p, BaseModel) else p for p in parts]
    return sha256(repr(plain).encode())


# --- prepared once, shared by the cells -----------------------------------------------------------


def expert_folder(out: Path, seed: int) -> Path:
    return out / "experts" / f"seed-{seed}"


def cell_file(out: Path, key: str) -> Path:
    return out / "cells" / f"{key}.json"


def write_cell(out: Path, key: str, found: Mapping[str, Any]) -> None:
    """Write what a cell found, and on which machine."""
    write_json(cell_file(out, key), {**found, "machine": machine()})


def protection_folder(out: Path, method: str, seed: int) -> Path:
    return out / "protections" / f"{method}-{seed}"


def adapters_folder(out: Path, key: str) -> Path:
    """Where the adapters of a training are, one a milestone, if another method scales them."""
    return out / "adapters" / key


def statistics_file(c: Comparison, out: Path, method: str, seed: int) -> Path:
    """The statistics of everything that is to be kept, as the weights that a method is taught on see it."""
    return out / "statistics" / f"{c.base(method)}-{seed}" / STATISTICS


def probe_folder(c: Comparison, out: Path, method: str, seed: int) -> Path | None:
    """The expert of its own that a method's rule looks at, if it does."""
    if c.methods[method].probe is None or c.methods[method].rule not in SCALE_RULES:
        return None
    return out / "experts" / f"probe-{_hash(*c.probed(method))[:12]}-{seed}"


def prepare_expert(c: Comparison, out: Path, seed: int) -> None:
    """Train the expert of a seed."""
    with quiet(out / "logs" / f"expert-{seed}.txt"):
        stages.train_expert(base_of(c), c.expert, expert_folder(out, seed), c.keep_skills[0], seed)


def prepare_probe(c: Comparison, out: Path, method: str, seed: int) -> None:
    """Train the expert that only a method's rule looks at."""
    folder, (skill, settings) = probe_folder(c, out, method, seed), c.probed(method)
    assert folder is not None
    with quiet(out / "logs" / f"{folder.name}.txt"):
        stages.train_expert(base_of(c), settings, folder, skill, seed)


def prepare_statistics(c: Comparison, out: Path, base: str, seed: int) -> None:
    """Collect the statistics of everything that is to be kept, on the weights `base` (expert or original)."""
    folder, expert = out / "statistics" / f"{base}-{seed}", expert_folder(out, seed)
    with quiet(out / "logs" / f"statistics-{base}-{seed}.txt"):
        stages.protect(base_of(c), NONE, folder, expert, sources_of(c), c.facts, seed, base)


def prepare_protection(c: Comparison, out: Path, method: str, seed: int) -> None:
    """Find what a method protects.

    The rule looks at the expert that the facts are taught on, unless the method brings a probe of its own. A probe's
    scales, or shuffled ones, are only looked at by the rule: no model is made of them, so no statistics are collected.
    """
    own, base = c.methods[method], base_of(c)
    assert own.protect is not None
    folder, expert = protection_folder(out, method, seed), expert_folder(out, seed)
    train_on = (own.probe.base if own.probe else None) or c.base(method)
    with quiet(out / "logs" / f"protection-{method}-{seed}.txt"):
        if own.shuffle:
            shuffled = expert.with_name(f"shuffled-{seed}")
            shuffle_scales(Expert.load(expert), seed).save(shuffled)
            stages.protect(base, own.protect, folder, shuffled, seed=seed, train_on=train_on)
        elif probe := probe_folder(c, out, method, seed):
            stages.protect(base, own.protect, folder, probe, seed=seed, train_on=train_on)
        else:
            sources = sources_of(c).weighed(own.protect.keep)
            if own.probe:
                sources = replace(sources, skills=(c.probed(method)[0],))
            stages.protect(base, own.protect, folder, expert, sources, c.facts, seed, train_on)


def shuffle_scales(expert: Expert, seed: int) -> Expert:
    """The same scales on other components, in every matrix: how far the expert moved things, but not which."""
    generator = torch.Generator().manual_seed(seed)
    scales = {name: z[torch.randperm(len(z), generator=generator)] for name, z in expert.scales.items()}
    return replace(expert, scales=scales, record={**expert.record, "shuffled": seed, "inputs": None})


# --- cells ----------------------------------------------------------------------------------------


class Bench:
    """What a cell works with: the model (turned into the expert where the facts are taught on it), what it is asked,
    and what its update is measured against."""

    def __init__(self, c: Comparison, out: Path, seed: int, load: int | None = None, base: str = "expert") -> None:
        self.c, self.seed = c, seed
        self.facts = read_facts(c.facts)[:load] if load else []
        skills = {s.name: (s, s.problems("test", c.evaluate.problems, seed)) for s in map(get_skill, c.skills)}
        known = read_facts(c.known_facts) if c.known_facts else []
        limit = c.evaluate.facts
        self.questions = Questions(skills, self.facts[:limit], known[:limit])
        kept = [get_skill(spec) for spec in c.keep_skills]
        self.validation = {s.name: (s, s.problems("validation", c.validation, seed)) for s in kept}
        self.model: PreTrainedModel
        self.tokenizer: PreTrainedTokenizerBase
        self.model, self.tokenizer = base_of(c).load()
        self.expert = Expert.load(expert_folder(out, seed))
        self.modules = self.expert.targets(self.model, c.model)
        if load and base == "expert":
            self.expert.apply(self.model, c.model)
        self.weights = {name: weight(module).clone() for name, module in self.modules.items()}

    def kept(self, weights: KeepSettings) -> list[Kept]:
        """What a method may be shown, by its weights."""
        keep = sources_of(self.c).weighed(weights).load(weights)
        assert keep is not None  # keep_skills is never empty
        return keep.tokenised(self.model, self.tokenizer)

    def ask(self, model: Any) -> dict[str, Any]:
        """What a model can do now: test skills, facts, paraphrases, known facts, and the validation skills."""
        found = measure(model, self.tokenizer, self.questions, self.c.evaluate, "a cell")
        size = self.c.evaluate.batch_size
        return {
            "recall": found["recall"],
            "paraphrase_recall": found["paraphrase_recall"],
            "locality": found["locality"],
            "skills": {name: skill["accuracy"] for name, skill in found["skills"].items()},
            "validation": {
                name: share_correct(solve(model, self.tokenizer, skill, problems, size))
                for name, (skill, problems) in self.validation.items()
            },
        }

    def update(
        self,
        model: Any,
        statistics: Mapping[str, InputStatistics],
        protection: ProtectedSubspaces | None = None,
    ) -> dict[str, float | None]:
        """Norm, relative norm, mean drift and largest leak of a model's update, as in `updates.py`."""
        squares, drifts, leaks = [], [], []
        for name, W in self.weights.items():
            delta = live_delta(model, name, W)
            squares.append(float(delta.norm()) ** 2)
            if name in statistics:
                drifts.append(statistics[name].drift(delta, W))
            if protection is not None and protection.hard:
                leaks.append(protection[name].leak(delta))
        size = sum(float(W.norm()) ** 2 for W in self.weights.values()) ** 0.5
        norm = sum(squares) ** 0.5
        return {
            "norm": norm,
            "relative_norm": norm / size,
            "drift": fmean(drifts) if drifts else None,
            "leak": max(leaks) if leaks else None,
        }


def run_reference(c: Comparison, out: Path, key: str, seed: int) -> str:
    """Measure the base and the expert of a seed on the problems of that seed."""
    with quiet(out / "logs" / f"{key}.txt"):
        bench = Bench(c, out, seed)
        found: dict[str, Any] = {"kind": "reference", "seed": seed, "base": bench.ask(bench.model)}
        bench.expert.apply(bench.model, c.model)
        found["expert"] = bench.ask(bench.model)
        write_cell(out, key, found)
    return ", ".join(f"{name} {share:.0%}" for name, share in found["expert"]["skills"].items())


def run_training(c: Comparison, out: Path, key: str, cell: Cell) -> str:
    """Train a cell, and measure it when recall first passes each milestone. Training stops at the last milestone.

    A rate at which training diverges is a result: the cell says so in `failed`. What was measured before an
    interruption is kept in `work/KEY/` beside the checkpoints, so the cell continues where it was.
    """
    work = out / "work" / key
    started = time.monotonic()
    with quiet(out / "logs" / f"{key}.txt"):
        reset_peak_memory()
        stored = work / "moments.json"
        moments: dict[str, Any] = read_json(stored) if stored.exists() else {}
        adapters = adapters_folder(out, key) if c.is_source(cell.method) else None
        if adapters and not all((adapters / m).exists() for m in moments):  # begun when nothing was to be stored
            shutil.rmtree(work)
            moments = {}
        resumed = (work / "checkpoints").exists()
        method, settings = c.methods[cell.method], c.training(cell.method, cell.learning_rate)
        bench = Bench(c, out, cell.seed, cell.load, c.base(cell.method))
        kinds = from_tensors(load_tensors(statistics_file(c, out, cell.method, cell.seed)))
        statistics = kinds["skills"]
        folder = protection_folder(out, cell.method, cell.seed)
        protected = ProtectedSubspaces.load(folder) if method.rule != "none" else None
        kept = bench.kept(settings.keep) if settings.rehearses or method.tuner == "corda" else []
        measuring, training_started = 0.0, clock()

        def moment(model: Any, epoch: float) -> dict[str, Any]:
            nonlocal measuring
            before = clock()
            seconds = None if resumed else round(before - training_started - measuring, 2)
            found = {"epoch": epoch, "seconds": seconds, **bench.update(model, statistics, protected)}
            found |= bench.ask(model)
            measuring += clock() - before
            return found

        def on_recall(model: Any, recall: float, epoch: int) -> None:
            passed = [m for m in map(mark, c.milestones) if recall >= float(m) and m not in moments]
            if passed:
                moments.update(dict.fromkeys(passed, moment(model, epoch)))
                for m in passed if adapters else []:
                    model.save_pretrained(str(adapters_folder(out, key) / m), safe_serialization=True)
                write_json(stored, moments)

        for folder in filter(None, (work, adapters)):
            folder.mkdir(parents=True, exist_ok=True)
        names = list(bench.modules)
        result: dict[str, Any] = {"kind": "training", "failed": None, "final": None, "saved_bytes": None}
        try:
            adapted, record = inject(
                *(bench.model, bench.tokenizer, bench.facts, settings, work, protected, names, cell.seed, cell.method),
                on_recall=on_recall,
                tuner=method.tuner,
                kept=kept,
                statistics=kinds,
            )
        except DivergedError as error:
            result["failed"] = str(error)
        else:
            done = moments.get(mark(c.milestones[-1]))
            adapted.save_pretrained(str(work / "adapter"), safe_serialization=True)
            files = (work / "adapter").rglob("*.safetensors")
            result |= {
                "final": done or moment(adapted, record["epochs"]),
                "steps": record["steps"],
                "saved_bytes": sum(file.stat().st_size for file in files),
            }
        curve = [(row["epoch"], row["recall"]) for row in read_metrics(work / "metrics.jsonl") if "recall" in row]
        result |= {
            **{"moments": moments, "curve": curve, "resumed": resumed},
            "coverage": _coverage(statistics, protected),
            "peak_memory": peak_memory(),
            "seconds": round(time.monotonic() - started, 2),
        }
        write_cell(out, key, result)
    shutil.rmtree(work)
    last = result["final"]
    if last is None:
        return "diverged"
    skills = ", ".join(f"{name} {share:.0%}" for name, share in last["skills"].items())
    return f"recall {last['recall']:.0%}, {skills}, {result['seconds']:.0f} s"


def run_scaled(c: Comparison, out: Path, key: str, cell: Cell, source: str, norms: Mapping[str, float]) -> str:
    """Scale the adapters of the cell `source` to the norms by milestone (B times a factor), and measure them."""
    started = time.monotonic()
    with quiet(out / "logs" / f"{key}.txt"):
        bench = Bench(c, out, cell.seed, cell.load, c.base(cell.method))
        statistics = from_tensors(load_tensors(statistics_file(c, out, cell.method, cell.seed)))["skills"]
        moments: dict[str, Any] = {}
        for m, norm in norms.items():
            adapted = PeftModel.from_pretrained(bench.model, str(adapters_folder(out, source) / m)).eval()
            own = bench.update(adapted, {})["norm"] or 0.0
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.data *= norm / own
            moments[m] = {"epoch": None, "seconds": None, "factor": norm / own, **bench.update(adapted, statistics)}
            moments[m] |= bench.ask(adapted)
            adapted.unload()
        result: dict[str, Any] = {"kind": "scaled", "source": source, "moments": moments, "failed": None, "final": None}
        result |= {"seconds": round(time.monotonic() - started, 2), "coverage": {"skill": 0.0, "facts": 0.0}}
        write_cell(out, key, result)
    return ", ".join(f"x {moment['factor']:.2f}: recall {moment['recall']:.0%}" for moment in moments.values())


def mark(milestone: float) -> str:
    """A milestone as a key of JSON: 0.95 -> "0.95"."""
    return f"{milestone:g}"


def _coverage(statistics: Mapping[str, InputStatistics], protected: ProtectedSubspaces | None) -> dict[str, Any]:
    """The share of the skill's and of the facts' input energy that is protected, mean over the matrices."""
    if protected is None:
        return {"skill": 0.0, "facts": 0.0}
    found = [own.coverage(protected[name].input) for name, own in statistics.items()]
    return {"skill": fmean(found), "facts": protected.record["coverage"]["facts"]}


# --- the process of a cell ------------------------------------------------------------------------


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what the block writes to standard error (bars of several processes at once) to a file, which is removed
    when the block ends well; with one thread, so that the numbers do not depend on how many work beside it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            yield
    finally:
        torch.set_num_threads(threads)
    log.unlink()


def clock() -> float:
    """Seconds, for the cost of a training: CPU time, in which neighbours do not count; on a GPU the time of day."""
    return time.monotonic() if torch.cuda.is_available() else time.process_time()


def reset_peak_memory() -> None:
    """Start counting anew, where the system lets us (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
