"""The cells of a comparison: each reads what was prepared (`prepared.py`), and writes one file.

    cells/KEY.json          one training (or a reference, or a scaled adapter) and what was measured at its milestones
    adapters/KEY/MILESTONE  of a training that another method scales
    work/KEY/               of a training that is not finished: its checkpoints, and what was measured so far
    kept/HASH.json          the rows that methods may be shown, tokenised; made by the first cell that needs them

KEY tells everything that the numbers depend on (`keys.py`): a cell whose file is there is done.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from palora.algebra.statistics import Statistics, weighed
from palora.algebra.subspace import ProtectedSubspaces
from palora.bench.comparison import Comparison, mark
from palora.bench.keys import Cell, hash_of, plan_of
from palora.bench.prepared import KL_ROWS, protection_folder, statistics_folder, taught_facts, taught_model
from palora.bench.quiet import clock, peak_memory, quiet, reset_peak_memory
from palora.bench.tuners import adapt, live_delta
from palora.common.errors import DivergedError
from palora.common.files import read_json, write_json
from palora.common.metrics import read_metrics
from palora.common.settings import KeepSettings, ProtectSettings
from palora.common.versions import machine
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.front import stages
from palora.language.keep import Kept, own_answers
from palora.language.models import model_hash
from palora.language.prompts import Example
from palora.language.scoring import share_correct, solve
from palora.language.targets import find_targets, weight
from palora.results.evaluation import Questions, measure
from palora.training.injection import Beside, inject
from palora.training.terms import kl_from_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def cell_file(out: Path, key: str) -> Path:
    """Where a finished cell is."""
    return out / "cells" / f"{key}.json"


def write_cell(out: Path, key: str, found: Mapping[str, Any]) -> None:
    """Write what a cell found, and on which machine."""
    write_json(cell_file(out, key), {**found, "machine": machine()})


def adapters_folder(out: Path, key: str) -> Path:
    """Where the adapters of a training are, one a milestone, if another method scales them."""
    return out / "adapters" / key


def is_done(c: Comparison, out: Path, cell: Cell, key: str) -> bool:
    """Whether a training was measured, and its adapters are there if another method scales them."""
    file = cell_file(out, key)
    if not file.exists() or not c.is_source(cell.method):
        return file.exists()
    return all((adapters_folder(out, key) / m).is_dir() for m in read_json(file, "moments")["moments"])


class Bench:
    """What a cell works with: the model that the facts are taught on (the expert or the original), what it is asked,
    and what its update is measured against."""

    def __init__(
        self, c: Comparison, out: Path, seed: int, base: str, load: int | None = None, method: str | None = None
    ) -> None:
        self.c, self.out, self.seed, self._statistics = c, out, seed, statistics_folder(out, base, seed)
        self.facts = read_facts(taught_facts(c, out, method) if method else c.facts)[:load] if load else []
        skills = {s.name: (s, stages.problems_of(s, c.evaluate, seed)) for s in map(get_skill, c.skills)}
        known = read_facts(c.known_facts) if c.known_facts else []
        limit = c.evaluate.facts
        self.questions = Questions(skills, self.facts[:limit], known[:limit])
        kept = [get_skill(spec) for spec in c.keep_skills]
        self.validation = {s.name: (s, s.problems("validation", c.validation, seed)) for s in kept}
        self.changes_base = method is not None and c.methods[method].tuner == "corda"
        self.model: PreTrainedModel
        self.tokenizer: PreTrainedTokenizerBase
        self.model_path = taught_model(c, out, base, seed)
        self.model, self.tokenizer = stages.Models().load(plan_of(c, seed, model=self.model_path))
        self.weights = {name: weight(module).clone() for name, module in find_targets(self.model, c.targets).items()}

    @cached_property
    def statistics(self) -> Statistics:
        """Of everything that is to be kept, as this model sees it."""
        return ProtectedSubspaces.load(self._statistics).statistics

    def kept(self, settings: KeepSettings) -> list[tuple[float, Kept]]:
        """What a method may be shown, by its weights; what the model says of it is asked once for all cells."""
        shown = ProtectSettings(rule="none", keep=settings)  # type: ignore[call-arg]
        plan = stages.for_rule(plan_of(self.c, self.seed, protect=shown))
        read = model_hash(self.model_path), self.c.dtype, self.c.chat_template_kwargs, self.c.system_message
        file = self.out / "kept" / f"{hash_of(*read, stages.kept_identity(plan), settings.examples)}.json"
        if not file.exists():
            keep = stages.load_keep(plan, settings.examples)
            assert keep is not None  # keep_skills is never empty
            write_json(file, keep.tokenised(self.model, self.tokenizer))
        rows = [Kept(kind, name, [Example(*e) for e in examples]) for kind, name, examples in read_json(file)]
        return weighed(rows, settings.weights)

    @cached_property
    def told(self) -> dict[str, list[Example]]:
        """What the model says before any training, for KL: to new facts' questions, to prompts, to the skill's."""
        _, problems = next(iter(self.validation.values()))
        asked = {
            "facts": [fact.question for fact in self.facts[:KL_ROWS]],
            "skill": [p.prompt for p in problems[:KL_ROWS]],
        }
        if self.c.prompts:
            asked["prompts"] = stages.read_lines(self.c.prompts)[-KL_ROWS:]
        return {key: own_answers(self.model, self.tokenizer, prompts, 32) for key, prompts in asked.items() if prompts}

    def kl(self, model: Any) -> dict[str, float]:
        """KL(before ‖ now), in nats a token of what the model said before; where it is still there to be asked (CorDA
        changes the model beneath its adapter)."""
        if not hasattr(model, "disable_adapter") or self.changes_base:
            return {}
        return {key: kl_from_base(model, examples) for key, examples in self.told.items()}

    def ask(self, model: Any) -> dict[str, Any]:
        """What a model can do now: test skills, facts, paraphrases, known facts, and the validation skills."""
        found = measure(model, self.tokenizer, self.questions, self.c.evaluate, "a cell")
        size = self.c.evaluate.batch_size
        return {
            **{name: found[name] for name in ("recall", "recall_exact", "recall_f1")},
            "words": {name: skill["words"] for name, skill in found["skills"].items() if "words" in skill},
            "paraphrase_recall": found["paraphrase_recall"],
            "locality": found["locality"],
            "skills": {name: skill["accuracy"] for name, skill in found["skills"].items()},
            "validation": {
                name: share_correct(solve(model, self.tokenizer, skill, problems, size))
                for name, (skill, problems) in self.validation.items()
            },
        }

    def update(self, model: Any, protection: ProtectedSubspaces | None = None) -> dict[str, float | None]:
        """Norm, relative norm, mean drift and largest leak of a model's update, as in `updates.py`."""
        skills, squares, drifts, leaks = self.statistics.skills(), [], [], []
        for name, W in self.weights.items():
            delta = live_delta(model, name, W)
            squares.append(float(delta.norm()) ** 2)
            drifts.append(skills[name].drift(delta, W))
            if protection is not None and protection.hard:
                leaks.append(protection[name].to(delta.device).leak(delta))
        size = sum(float(W.norm()) ** 2 for W in self.weights.values()) ** 0.5
        norm = sum(squares) ** 0.5
        return {
            "norm": norm,
            "relative_norm": norm / size,
            "drift": fmean(drifts),
            "leak": max(leaks) if leaks else None,
        }


def run_reference(c: Comparison, out: Path, key: str, seed: int) -> str:
    """Measure the base and the expert of a seed on the problems of that seed."""

    def asked(base: str) -> dict[str, Any]:
        bench = Bench(c, out, seed, base)
        return bench.ask(bench.model)

    with quiet(out / "logs" / f"{key}.txt"):
        found = {"kind": "reference", "seed": seed, "base": asked("original")}
        found["expert"] = asked("expert") if c.expert else None
        write_cell(out, key, found)
    return _told(found[c.reference_arm]["skills"])  # type: ignore[index]


def run_training(c: Comparison, out: Path, key: str, cell: Cell) -> str:
    """Train a cell, and measure it when recall first passes each milestone. Training stops at the last milestone.

    A rate at which training diverges is a result: the cell says so in `failed`. What was measured before an
    interruption is kept in `work/KEY/` beside the checkpoints, so the cell continues where it was.
    """
    work, started = out / "work" / key, time.monotonic()
    with quiet(out / "logs" / f"{key}.txt"):
        reset_peak_memory()
        bench = Bench(c, out, cell.seed, c.base(cell.method), cell.load, cell.method)
        ruled = c.methods[cell.method].rule != "none"
        protected = ProtectedSubspaces.load(protection_folder(out, cell.method, cell.seed)) if ruled else None
        _ = bench.told  # what the model says before it is trained
        moments = Moments(bench, protected, work, adapters_folder(out, key) if c.is_source(cell.method) else None)
        result = {"kind": "training", **_train(moments, cell)}
        rows = read_metrics(work / "metrics.jsonl")
        result |= {
            "moments": moments.found,
            "curve": [(row["epoch"], row["recall"]) for row in rows if "recall" in row],
            "resumed": moments.resumed,
            "coverage": _coverage(bench.statistics, protected),
            "peak_memory": peak_memory(),
            "seconds": round(time.monotonic() - started, 2),
        }
        write_cell(out, key, result)
    shutil.rmtree(work)
    last = result["final"]
    return f"{_recall(last)}, {_told(last['skills'])}, {result['seconds']:.0f} s" if last else "diverged"


@dataclass
class Moments:
    """What a model in training can do when its recall first passes each milestone, written as soon as it is measured.

    Args:
        protected: what the method may not touch.
        work: the folder of the training.
        adapters: where the adapter of each moment is stored too, if anywhere.
    """

    bench: Bench
    protected: ProtectedSubspaces | None
    work: Path
    adapters: Path | None
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = self.work / "moments.json"
        self.found = read_json(self._file) if self._file.exists() else {}
        if self.adapters and not all((self.adapters / m).exists() for m in self.found):
            shutil.rmtree(self.work)  # it was begun when nothing was to be stored
            self.found = {}
        self.resumed = (self.work / "checkpoints").exists()
        for folder in filter(None, (self.work, self.adapters)):
            folder.mkdir(parents=True, exist_ok=True)
        self._measuring, self._started = 0.0, clock()

    def measured(self, model: Any, epoch: float) -> dict[str, Any]:
        """What a model can do now, and the seconds of training that it took (unknown to a resumed one)."""
        before = clock()
        seconds = None if self.resumed else round(before - self._started - self._measuring, 2)
        found = {
            "epoch": epoch,
            "seconds": seconds,
            **self.bench.update(model, self.protected),
            **self.bench.ask(model),
            "kl": self.bench.kl(model),
        }
        self._measuring += clock() - before
        return found

    def on_recall(self, model: Any, recall: float, epoch: float) -> None:
        """At a recall check: measure, where a milestone is passed that was not before."""
        milestones = map(mark, self.bench.c.milestones)
        passed = [m for m in milestones if recall >= float(m) and m not in self.found]
        if not passed:
            return
        self.found.update(dict.fromkeys(passed, self.measured(model, epoch)))
        for m in passed if self.adapters else []:
            model.save_pretrained(str(self.adapters / m), safe_serialization=True)  # type: ignore[operator]
        write_json(self._file, self.found)


def _train(moments: Moments, cell: Cell) -> dict[str, Any]:
    """Train a cell, in `moments.work`: what came of it in the end, or in `failed` why nothing did."""
    bench, work = moments.bench, moments.work
    method, settings = bench.c.methods[cell.method], bench.c.training(cell.method, cell.learning_rate)
    rows = bench.kept(settings.keep) if settings.rehearses or method.tuner == "corda" else []
    beside = Beside(
        arm=cell.method,
        targets=list(bench.weights),
        statistics=bench.statistics,
        rows=rows,
        on_recall=moments.on_recall,
        adapt=adapt(method.tuner, [example for _, thing in rows for example in thing.examples]),
    )
    try:
        adapted, record = inject(
            bench.model, bench.tokenizer, bench.facts, settings, work, moments.protected, beside, cell.seed
        )
    except DivergedError as error:
        return {"failed": str(error), "final": None, "saved_bytes": None}
    adapted.save_pretrained(str(work / "adapter"), safe_serialization=True)
    return {
        "failed": None,
        "final": moments.found.get(mark(bench.c.milestones[-1])) or moments.measured(adapted, record["epochs"]),
        "steps": record["steps"],
        "saved_bytes": sum(file.stat().st_size for file in (work / "adapter").rglob("*.safetensors")),
    }


def run_scaled(c: Comparison, out: Path, key: str, cell: Cell, source: str, norms: Mapping[str, float]) -> str:
    """Scale the adapters of the cell `source` to the norms by milestone (B times a factor), and measure them."""
    started = time.monotonic()
    with quiet(out / "logs" / f"{key}.txt"):
        bench = Bench(c, out, cell.seed, c.base(cell.method), cell.load)
        moments = {m: _scaled(bench, adapters_folder(out, source) / m, norm) for m, norm in norms.items()}
        result: dict[str, Any] = {"kind": "scaled", "source": source, "moments": moments, "failed": None, "final": None}
        result |= {"seconds": round(time.monotonic() - started, 2), "coverage": _coverage(bench.statistics, None)}
        write_cell(out, key, result)
    return ", ".join(f"x {moment['factor']:.2f}: {_recall(moment)}" for moment in moments.values())


def _scaled(bench: Bench, adapter: Path, norm: float) -> dict[str, Any]:
    """What an adapter can do when B is multiplied so that its update has this norm."""
    adapted = PeftModel.from_pretrained(bench.model, str(adapter)).eval()
    factor = norm / (bench.update(adapted)["norm"] or 0.0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data *= factor
    found = {"epoch": None, "seconds": None, "factor": factor, **bench.update(adapted), **bench.ask(adapted)}
    adapted.unload()
    return found


def _coverage(statistics: Statistics, protected: ProtectedSubspaces | None) -> dict[str, Any]:
    """The share of the skill's and of the facts' input energy that is protected, mean over the matrices."""
    if protected is None:
        return {"skill": 0.0, "facts": 0.0}
    skills = statistics.skills()
    found = [1 - own.scale * (1 - skills[name].coverage(own.input)) for name, own in protected.items()]
    return {"skill": fmean(found), "facts": protected.record["coverage"]["facts"]}


def _recall(found: Mapping[str, Any]) -> str:
    """recall 95% (exact 40%, F1 62%)"""
    return f"recall {found['recall']:.0%} (exact {found['recall_exact']:.0%}, F1 {found['recall_f1']:.0%})"


def _told(skills: Mapping[str, float]) -> str:
    """chain 93%, minmax 88%"""
    return ", ".join(f"{name} {share:.0%}" for name, share in skills.items())
