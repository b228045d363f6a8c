"""The stages, from folders to a folder: `palora expert | protect | inject | evaluate`, and `palora run` in order.

Every stage loads the model, checks that the folders it is given belong to it, works in a hidden folder beside `out`
(where an interrupted one continues), and swaps the finished folder in. The record of each holds `inputs`, a hash of
what it was made from: a stage whose folder is there with the same inputs is not done again.
"""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora import expert as expert_training
from palora import injection, protection
from palora.errors import InputError, PaloraError
from palora.evaluation import Questions, TrainedArm, evaluate
from palora.facts import Fact, read_facts
from palora.files import check_replaceable, load_tensors, new_folder, read_json, sha256, write_json
from palora.model_card import model_card
from palora.models import check_source, find_targets, fingerprints, known_targets, load_model
from palora.recipe import EvaluateSettings, ExpertSettings, InjectSettings, KeepSettings, ProtectSettings
from palora.report import write_report
from palora.rules import Budget, check_rule
from palora.skills import get_skill
from palora.statistics import from_tensors
from palora.subspace import MARKER as PROTECTION
from palora.subspace import ProtectedSubspaces
from palora.svf import MARKER as EXPERT
from palora.svf import Expert
from palora.updates import MARKER as ADAPTER
from palora.updates import Adapter, measure_update
from palora.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")


@dataclass(frozen=True)
class Base:
    """The original model of a run: a folder or hub name, how to load it, and which matrices are targeted."""

    model: str
    dtype: str = "auto"
    device: str | None = None
    targets: tuple[str, ...] | None = None

    def load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        return load_model(self.model, self.dtype, self.device)

    @property
    def endings(self) -> list[str] | None:
        return list(self.targets) if self.targets else None


def train_expert(base: Base, settings: ExpertSettings, out: Path, skill: str, seed: int = 0) -> None:
    """`palora expert`: a model and a skill -> `expert/`."""
    source = get_skill(skill)
    inputs = _inputs("expert", _identity(base.model), base.dtype, base.targets, settings, _skill_identity(skill), seed)
    if _done(out, EXPERT, inputs):
        return
    started = time.monotonic()
    model, tokenizer = base.load()
    work = _work(out)
    expert = expert_training.train_expert(model, tokenizer, source, settings, work, base.model, base.endings, seed)
    record = {**expert.record, "inputs": inputs, "seconds": _since(started), "versions": versions()}
    replace(expert, record=record).save(out, metrics=work / "metrics.jsonl")
    shutil.rmtree(work)


def protect(
    base: Base,
    settings: ProtectSettings,
    out: Path,
    expert: Path | None = None,
    skills: Sequence[str] = (),
    known_facts: str | None = None,
    text: str | None = None,
    facts: str | None = None,
    seed: int = 0,
) -> None:
    """`palora protect`: a model, perhaps an expert, and what is to be kept -> `protection/`."""
    budget = Budget(settings.k, settings.fraction, settings.share, settings.strength)
    check_rule(settings.rule, budget, settings.sides)
    loaded = Expert.load(expert) if expert else None
    keep = _keep(skills, known_facts, text, settings.keep)
    new = read_facts(facts) if facts else []
    inputs = _inputs(
        "protection",
        *(_identity(base.model), base.dtype, base.targets, settings, _identity(expert), seed),
        *([_skill_identity(s) for s in skills], _identity(known_facts), _identity(text), _identity(facts)),
    )
    if _done(out, PROTECTION, inputs):
        return
    started = time.monotonic()
    model, tokenizer = base.load()
    subspaces, statistics = protection.protect(
        *(
            model,
            tokenizer,
            settings.rule,
            budget,
            settings.sides,
            loaded,
            keep,
            new,
            base.endings,
            base.model,
            seed,
        )
    )
    record = {**subspaces.record, "inputs": inputs, "seconds": _since(started), "versions": versions()}
    replace(subspaces, record=record).save(out, statistics)
    if warning := protection.coverage_warning(record):
        log.warning("%s: %s", out, warning)


def inject(
    base: Base,
    settings: InjectSettings,
    out: Path,
    facts: str,
    expert: Path | None = None,
    protected: Path | None = None,
    control: bool = False,
    seed: int = 0,
    arm: str = "palora",
) -> None:
    """`palora inject`: a model, facts and a protection -> `adapter/`, a plain LoRA folder.

    Args:
        protected: the protection folder; None is plain LoRA.
        control: train plain LoRA all the same; its leak and drift are measured against `protected`.
    """
    new = read_facts(facts)
    loaded = Expert.load(expert) if expert else None
    subspaces = ProtectedSubspaces.load(protected) if protected else None
    if settings.base == "expert" and loaded is None:
        raise InputError("inject.base is expert: give --expert, or train on the original model with --base original")
    inputs = _inputs(
        "adapter",
        *(_identity(base.model), base.dtype, base.targets, settings, seed, _identity(facts)),
        *(
            _identity(expert) if settings.base == "expert" else None,
            _identity(protected),
            control,
        ),
    )
    if _done(out, ADAPTER, inputs):
        return
    started = time.monotonic()
    model, tokenizer = base.load()
    if subspaces is not None:
        expected = subspaces.record["fingerprints"]
        modules = known_targets(model, expected, f"the protection {protected}", base.model, base.endings)
    elif loaded is not None:
        expected = loaded.record["fingerprints"]
        modules = known_targets(model, expected, f"the expert {expert}", base.model, base.endings)
    else:
        modules = find_targets(model, base.endings)
    names, prints = list(modules), fingerprints(modules)
    if settings.base == "expert" and loaded is not None:
        loaded.apply(model, base.model)
    stored = protected / "statistics.safetensors" if protected else None
    known = from_tensors(load_tensors(stored)) if stored and stored.exists() else {}
    constraint = None if control else subspaces
    work = _work(out)
    adapted, training = injection.inject(model, tokenizer, new, settings, work, constraint, names, seed, arm)
    with new_folder(out, ADAPTER) as staging:
        adapted.save_pretrained(str(staging), safe_serialization=True)
        modules = find_targets(adapted.unload(), names)
        record = {
            "kind": "adapter",
            "arm": arm,
            "model": base.model,
            "base": settings.base,
            "expert": str(expert.resolve()) if expert and settings.base == "expert" else None,
            "expert_fingerprint": _identity(expert) if settings.base == "expert" else None,
            "protection": str(protected.resolve()) if protected else None,
            "rule": constraint.record["rule"] if constraint else "none",
            "sides": constraint.record["sides"] if constraint else None,
            "budget": constraint.record["budget"] if constraint else {},
            "coverage": constraint.record["coverage"] if constraint else None,
            "facts": {"file": Path(facts).name, "n": len(new)},
            "fingerprints": prints,
            "update": {
                "rule": constraint.record["rule"] if constraint else "none",
                **measure_update(Adapter.load(staging), modules, subspaces, known),
            },
            "training": training,
            "inputs": inputs,
            "seconds": _since(started),
            "versions": versions(),
        }
        write_json(staging / ADAPTER, record)
        (staging / "README.md").write_text(model_card(record), encoding="utf-8")
        shutil.copy(work / "metrics.jsonl", staging / "metrics.jsonl")
    shutil.rmtree(work)


def evaluate_arms(
    base: Base,
    settings: EvaluateSettings,
    out: Path,
    adapters: Mapping[str, Path],
    skills: Sequence[str],
    expert: Path | None = None,
    facts: str | None = None,
    known_facts: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`palora evaluate`: every arm, the same questions -> `evaluation.json` and `report.html` in `out`.

    Returns: the content of `evaluation.json`.
    """
    loaded = Expert.load(expert) if expert else None
    records = {name: _adapter_record(folder) for name, folder in adapters.items()}
    sources = {name: get_skill(name) for name in skills}
    new = _sample(read_facts(facts), settings.facts) if facts else []
    known = _sample(read_facts(known_facts), settings.facts) if known_facts else []
    inputs = _inputs(
        "evaluation",
        *(
            _identity(base.model),
            base.dtype,
            settings,
            seed,
            _identity(expert),
            _identity(facts),
            _identity(known_facts),
        ),
        *(
            [_skill_identity(s) for s in skills],
            {name: _identity(folder) for name, folder in adapters.items()},
        ),
    )
    target = out / "evaluation.json"
    if target.exists() and (stored := read_json(target)).get("inputs") == inputs:
        log.info("%s is up to date", target)
        write_report(out)
        return stored
    started = time.monotonic()
    questions = Questions(
        {s.name: (s, s.problems("test", settings.problems, seed)) for s in sources.values()}, new, known
    )
    model, tokenizer = base.load()
    for name, record in records.items():
        if record.get("base") == "expert" and record["expert_fingerprint"] != _identity(expert):
            raise InputError(f"the adapter {adapters[name]} was trained on another expert than {expert}")
        if "fingerprints" in record:
            known_targets(model, record["fingerprints"], f"the adapter {adapters[name]}", base.model)
    arms = {name: TrainedArm(folder, records[name].get("base", "original")) for name, folder in adapters.items()}
    work = _work(out / "evaluation")
    result = evaluate(model, tokenizer, questions, loaded, arms, settings, work, inputs, seed)
    seconds = {name: record["seconds"] for name, record in records.items() if "seconds" in record}
    if loaded is not None:
        seconds = {"expert": loaded.record["seconds"], **seconds}
    value = {
        **result,
        "update": {name: record["update"] for name, record in records.items() if "update" in record},
        "seconds": {**seconds, "evaluate": _since(started)},
        "objective": loaded.record.get("objective") if loaded else None,
        "inputs": inputs,
        "versions": versions(),
    }
    write_json(target, value)
    write_report(out)
    shutil.rmtree(work)
    return value


def _keep(
    skills: Sequence[str], known_facts: str | None, text: str | None, settings: KeepSettings
) -> protection.Keep | None:
    if not (skills or known_facts or text):
        return None
    weights = {"skills": settings.skills, "known_facts": settings.known_facts, "text": settings.text}
    return protection.Keep(
        [get_skill(s) for s in skills],
        read_facts(known_facts) if known_facts else (),
        _passages(text) if text else (),
        weights,
        settings.examples,
    )


def _passages(path: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    if not lines:
        raise InputError(f"{path}: no text in it")
    return lines


def _adapter_record(folder: Path) -> dict[str, Any]:
    Adapter.load(folder)
    return read_json(folder / ADAPTER) if (folder / ADAPTER).exists() else {}


def _sample(facts: list[Fact], limit: int | None) -> list[Fact]:
    """Evenly spaced facts, at most `limit`."""
    if limit is None or limit >= len(facts):
        return facts
    return [facts[i * len(facts) // limit] for i in range(limit)]


def _work(out: Path) -> Path:
    """The hidden folder beside `out` where an unfinished stage keeps its state."""
    work = out.with_name(f".{out.name}.work")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PaloraError(f"cannot write {out}: {error.strerror}") from None
    return work


def _done(out: Path, marker: str, inputs: str) -> bool:
    check_replaceable(out, marker)
    if (out / marker).exists() and read_json(out / marker).get("inputs") == inputs:
        log.info("%s is up to date", out)
        return True
    return False


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)


def _inputs(*parts: Any) -> str:
    return sha256(repr(parts).encode())


def _skill_identity(spec: str) -> Any:
    return [spec, _identity(spec) if Path(spec.split("#")[0]).is_file() else None]


def _identity(path: str | Path | None) -> str | None:
    """A hash of a file, of the files that make up a model or a stage's folder, or of a hub name."""
    if path is None:
        return None
    place = Path(path)
    if place.is_file():
        return _file_identity(place)
    if not place.is_dir():
        return sha256(str(path).encode())
    markers = [place / name for name in (EXPERT, PROTECTION, ADAPTER) if (place / name).exists()]
    files = markers or [f for f in sorted(place.iterdir()) if f.suffix in (".json", ".safetensors", ".jinja")]
    return sha256(repr([(f.name, _file_identity(f)) for f in files]).encode())


def _file_identity(file: Path, hashed: int = 64 * 2**20) -> str:
    """The hash of a file's content; of size and time for one larger than `hashed` bytes."""
    stat = file.stat()
    return sha256(file.read_bytes() if stat.st_size <= hashed else repr((stat.st_size, stat.st_mtime_ns)).encode())
