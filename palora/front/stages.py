"""The stages, from folders to a folder: `palora expert | protect | inject | evaluate`, and `palora run` in order.

Every stage loads the model, checks that the folders it is given belong to it, works in a hidden folder beside `out`
(where an interrupted one continues), and swaps the finished folder in. The record of each holds `inputs`, a hash of
what it was made from: a stage whose folder is there with the same inputs is not done again.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.algebra.rules import Budget, Sides, check_rule
from palora.algebra.statistics import from_tensors
from palora.algebra.subspace import MARKER as PROTECTION
from palora.algebra.subspace import STATISTICS, ProtectedSubspaces
from palora.bench.spectrum import MARKER as SPECTRUM
from palora.bench.spectrum import SpectrumSettings, measure_spectrum
from palora.bench.spectrum_report import render as render_spectrum
from palora.common.errors import InputError
from palora.common.files import (
    atomic_write_text,
    check_replaceable,
    check_writable,
    clear_errors,
    load_tensors,
    new_folder,
    read_json,
    sha256,
    write_json,
)
from palora.common.settings import EvaluateSettings, ExpertSettings, InjectSettings, KeepSettings, ProtectSettings
from palora.common.versions import versions
from palora.data.facts import Fact, read_facts
from palora.data.skills import Skill, get_skill
from palora.front.recipe import ARM_NAME
from palora.language.keep import Keep
from palora.language.models import check_source, fingerprints, known_targets, load_model
from palora.language.scoring import share_correct, solve
from palora.language.targets import find_targets
from palora.results.evaluation import Questions, TrainedArm, evaluate
from palora.results.model_card import model_card
from palora.results.pages.report import write_report
from palora.results.updates import MARKER as ADAPTER
from palora.results.updates import Adapter, measure_update
from palora.training import expert as expert_training
from palora.training import injection, protection
from palora.training.svf import MARKER as EXPERT
from palora.training.svf import Expert

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

    def check(self) -> None:
        """What can be told before the model is loaded. Raises InputError."""
        check_source(self.model, self.dtype, self.device)

    def load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        return load_model(self.model, self.dtype, self.device)

    @property
    def endings(self) -> list[str] | None:
        return list(self.targets) if self.targets else None


@dataclass(frozen=True)
class Sources:
    """Where what is to be kept comes from: skills by name, files of known facts, of text (a passage a line) and of
    prompts (one a line; what the model answers to them is to be kept)."""

    skills: tuple[str, ...] = ()
    known_facts: str | None = None
    text: str | None = None
    prompts: str | None = None

    def load(self, settings: KeepSettings) -> Keep | None:
        """What is to be kept, with its weights; None where nothing is named. Raises InputError."""
        if not (self.skills or self.known_facts or self.text or self.prompts):
            return None
        return Keep(
            [get_skill(s) for s in self.skills],
            read_facts(self.known_facts) if self.known_facts else (),
            read_lines(self.text) if self.text else (),
            read_lines(self.prompts) if self.prompts else (),
            settings.weights,
            settings.examples,
            settings.answers,
        )

    def weighed(self, settings: KeepSettings) -> "Sources":
        """The skills, and of the others only what weighs something: all that a rule looks at."""
        files = ("known_facts", "text", "prompts")
        left_out: dict[str, Any] = {kind: None for kind in files if not getattr(settings, kind)}
        return replace(self, **left_out)

    @property
    def identity(self) -> Any:
        """What tells these sources from others: names, and the content of the files."""
        files = [identity(f) for f in (self.known_facts, self.text, self.prompts)]
        return [skill_identity(s) for s in self.skills], files


def train_expert(base: Base, settings: ExpertSettings, out: Path, skill: str, seed: int = 0) -> None:
    """`palora expert`: a model and a skill -> `expert/`."""
    source = get_skill(skill)
    inputs = _inputs("expert", identity(base.model), base.dtype, base.targets, settings, skill_identity(skill), seed)
    if _done(out, EXPERT, inputs):
        return
    started = time.monotonic()
    model, tokenizer = base.load()
    with _work(out) as work:
        expert = expert_training.train_expert(model, tokenizer, source, settings, work, base.model, base.endings, seed)
        record = {**expert.record, "inputs": inputs, "seconds": _since(started), "versions": versions()}
        replace(expert, record=record).save(out, metrics=work / "metrics.jsonl")


def protect(
    base: Base,
    settings: ProtectSettings,
    out: Path,
    expert: Path | None = None,
    sources: Sources | None = None,
    facts: str | None = None,
    seed: int = 0,
    train_on: str = "expert",
) -> None:
    """`palora protect`: a model, perhaps an expert, and what is to be kept -> `protection/`.

    Args:
        train_on: the weights that stage 2 trains on, whose inputs are kept: expert or original.
    """
    budget, sides = check_protection(settings)
    loaded = Expert.load(expert) if expert else None
    keep = sources.load(settings.keep) if sources else None
    new = read_facts(facts) if facts else []
    inputs = _inputs(
        "protection",
        *(identity(base.model), base.dtype, base.targets, settings.rule, budget, sides, settings.keep),
        *(identity(expert), seed, train_on),
        *(sources and sources.identity, identity(facts)),
    )
    if _done(out, PROTECTION, inputs):
        return
    started = time.monotonic()
    model, tokenizer = base.load()
    subspaces, statistics = protection.protect(
        model,
        tokenizer,
        settings.rule,
        budget,
        sides,
        expert=loaded,
        keep=keep,
        facts=new,
        targets=base.endings,
        model_name=base.model,
        seed=seed,
        base=train_on,
    )
    made = {"inputs": inputs, "seconds": _since(started), "versions": versions()}
    record = {**subspaces.record, "expert_fingerprint": identity(expert), **made}
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in record["coverage"].items() if share is not None)
    if shares:
        log.info("%s covers of the input energy: %s", out, shares)
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
    sources: Sources | None = None,
) -> None:
    """`palora inject`: a model, facts and a protection -> `adapter/`, a plain LoRA folder.

    Args:
        protected: the protection folder; None is plain LoRA. The statistics in it are what `settings.drift` uses.
        control: train plain LoRA all the same; its leak and drift are measured against `protected`.
        sources: what is to be kept, for `settings.replay`, `distil` and `lose_at_most`.
    """
    new = read_facts(facts)
    loaded = Expert.load(expert) if expert else None
    subspaces = ProtectedSubspaces.load(protected) if protected else None
    if settings.base == "expert" and loaded is None:
        raise InputError("inject.base is expert: give --expert, or train on the original model with --base original")
    rehearsed = sources.weighed(settings.keep).load(settings.keep) if sources and settings.rehearses else None
    if settings.rehearses and rehearsed is None:
        raise InputError("replay and distil need something to keep: give --skill, --known-facts, --text or --prompts")
    stored = protected / STATISTICS if protected else None
    kinds = from_tensors(load_tensors(stored)) if stored and stored.exists() else {}
    if settings.drift and not kinds:
        raise InputError("--drift needs the statistics of what is kept: give a --protection that was made with --skill")
    if subspaces is not None and expert is not None:
        marked_by = subspaces.record.get("expert_fingerprint")
        if marked_by not in (None, identity(expert)):
            raise InputError(f"the protection {protected} was made with another expert than {expert}; give that one")
    inputs = _inputs(
        "adapter",
        *(identity(base.model), base.dtype, base.targets, settings, seed, identity(facts)),
        *(
            identity(expert) if settings.base == "expert" else None,
            identity(protected),
            control,
        ),
        sources.identity if sources and (rehearsed or settings.lose_at_most is not None) else None,
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
    names, prints = list(modules), fingerprints(modules, model)
    if settings.base == "expert" and loaded is not None:
        loaded.apply(model, base.model)
    constraint = None if control or (subspaces and subspaces.record["rule"] == "none") else subspaces
    kept = rehearsed.tokenised(model, tokenizer) if rehearsed else []
    with _work(out) as work:
        adapted, training = injection.inject(
            *(model, tokenizer, new, settings, work, constraint, names, seed, arm),
            kept=kept,
            statistics=kinds,
            kept_share=_kept_share(model, tokenizer, sources, settings, seed),
        )
        with new_folder(out, ADAPTER) as staging:
            adapted.save_pretrained(str(staging), safe_serialization=True)
            if settings.base == "expert":  # so that nothing loads it onto the original model and says nothing
                config = read_json(staging / "adapter_config.json")
                config["base_model_name_or_path"] = f"{base.model} (its expert: see README.md)"
                write_json(staging / "adapter_config.json", config)
            modules = find_targets(adapted.unload(), names)
            record = {
                "kind": "adapter",
                "arm": arm,
                "model": base.model,
                "dtype": base.dtype,
                "base": settings.base,
                "expert": str(expert.resolve()) if expert and settings.base == "expert" else None,
                "expert_fingerprint": identity(expert) if settings.base == "expert" else None,
                "protection": str(protected.resolve()) if protected else None,
                "rule": constraint.record["rule"] if constraint else "none",
                "sides": constraint.record["sides"] if constraint else None,
                "budget": constraint.record["budget"] if constraint else {},
                "coverage": constraint.record["coverage"] if constraint else None,
                "facts": {"file": Path(facts).name, "n": len(new)},
                "fingerprints": prints,
                "update": {
                    "rule": constraint.record["rule"] if constraint else "none",
                    "loss": settings.added,
                    **measure_update(Adapter.load(staging), modules, subspaces, kinds.get("skills")),
                },
                "training": training,
                "inputs": inputs,
                "seconds": _since(started),
                "versions": versions(),
            }
            write_json(staging / ADAPTER, record)
            (staging / "README.md").write_text(model_card(record), encoding="utf-8")
            shutil.copy(work / "metrics.jsonl", staging / "metrics.jsonl")


def _kept_share(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sources: Sources | None,
    settings: InjectSettings,
    seed: int,
) -> Callable[[Any], float] | None:
    """How `settings.lose_at_most` is measured: (a model) -> the smallest share of a skill that is left, on validation
    problems, of what the model as it is now solves. None where that is not asked for, or there is no skill."""
    if settings.lose_at_most is None or not sources or not sources.skills:
        return None
    problems = {s: s.problems("validation", settings.lose_problems, seed) for s in get_skills(sources.skills)}

    def solved(model: Any) -> list[float]:
        return [share_correct(solve(model, tokenizer, skill, asked)) for skill, asked in problems.items()]

    start = solved(model)
    return lambda model: min((n / s for n, s in zip(solved(model), start, strict=True) if s), default=1.0)


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
    for name, folder in adapters.items():
        if name in ("base", "expert") or not re.fullmatch(ARM_NAME, name):
            taken = "that is the name of an arm without one" if name in ("base", "expert") else "use letters and digits"
            raise InputError(f"{name!r} cannot be the name of the adapter {folder}: {taken}")
        check_expert(records[name], expert, f"the adapter {folder}")
    sources = get_skills(skills)
    new = _sample(read_facts(facts), settings.facts) if facts else []
    known = _sample(read_facts(known_facts), settings.facts) if known_facts else []
    inputs = _inputs(
        "evaluation",
        *(
            identity(base.model),
            base.dtype,
            settings,
            seed,
            identity(expert),
            identity(facts),
            identity(known_facts),
        ),
        *(
            [skill_identity(s) for s in skills],
            {name: identity(folder) for name, folder in adapters.items()},
        ),
    )
    target = out / "evaluation.json"
    check_writable(out)
    if (out / "report.html").exists() and not (target.exists() or (out / "recipe.yaml").exists()):
        raise InputError(f"{out} has a report.html that is not ours (no evaluation.json); choose another --out")
    if target.exists() and (stored := read_json(target, "arms", "inputs"))["inputs"] == inputs:
        log.info("%s is up to date", target)
        write_report(out)
        return stored
    started = time.monotonic()
    questions = Questions({s.name: (s, s.problems("test", settings.problems, seed)) for s in sources}, new, known)
    model, tokenizer = base.load()
    if loaded is not None:
        loaded.targets(model, base.model)
    for name, record in records.items():
        if record:
            known_targets(model, record["fingerprints"], f"the adapter {adapters[name]}", base.model)
        else:
            Adapter.load(adapters[name]).check(dict(model.named_modules()))
    arms = {name: TrainedArm(folder, records[name].get("base", "original")) for name, folder in adapters.items()}
    with _work(out / "evaluation") as work:
        result = evaluate(model, tokenizer, questions, loaded, arms, settings, work, inputs, seed)
        seconds = {name: record["seconds"] for name, record in records.items() if "seconds" in record}
        if loaded is not None and "seconds" in loaded.record:
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
    return value


def spectrum(
    base: Base,
    settings: SpectrumSettings,
    out: Path,
    skill: str,
    expert: Path | None = None,
    adapter: Path | None = None,
    protected: Path | None = None,
    known_facts: str | None = None,
    text: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`palora spectrum`: where a skill lives -> `spectrum.json` and `spectrum.html` in `out`.

    Args:
        protected: what the adapter's alignment is measured with besides; by default what it was trained under.

    Returns: the content of `spectrum.json`.
    """
    source = get_skill(skill)
    loaded = Expert.load(expert) if expert else None
    record = _adapter_record(adapter) if adapter else {}
    if protected is None and record.get("protection") and Path(record["protection"]).exists():
        protected = Path(record["protection"])
    subspaces = ProtectedSubspaces.load(protected) if protected and adapter else None
    known = _sample(read_facts(known_facts), settings.problems) if known_facts else []
    passages = read_lines(text) if text else []
    inputs = _inputs(
        "spectrum",
        *(identity(base.model), base.dtype, base.targets, settings, skill_identity(skill), seed),
        *(identity(expert), identity(adapter), identity(protected), identity(known_facts), identity(text)),
    )
    if _done(out, SPECTRUM, inputs):
        result = read_json(out / SPECTRUM, "removals", "matrices")
        atomic_write_text(out / "spectrum.html", render_spectrum(result))
    else:
        started = time.monotonic()
        model, tokenizer = base.load()
        if record:
            known_targets(model, record["fingerprints"], f"the adapter {adapter}", base.model)
        with _work(out) as work:
            result = measure_spectrum(
                *(model, tokenizer, source, settings, known, passages, loaded),
                *(Adapter.load(adapter) if adapter else None, subspaces, base.endings, base.model, seed, work, inputs),
            )
            result |= {"inputs": inputs, "seconds": _since(started), "versions": versions()}
            with new_folder(out, SPECTRUM) as staging:
                write_json(staging / SPECTRUM, result)
                (staging / "spectrum.html").write_text(render_spectrum(result), encoding="utf-8")
    return result


def check_protection(settings: ProtectSettings) -> tuple[Budget, Sides]:
    """The budget and the sides of a protection, with the rule's defaults. Raises InputError where they do not go
    together."""
    return check_rule(
        settings.rule, Budget(settings.k, settings.fraction, settings.share, settings.strength), settings.sides
    )


def get_skills(specs: Sequence[str]) -> list[Skill]:
    """The skills, whose results are told apart by their names. Raises InputError where two have the same."""
    skills = [get_skill(spec) for spec in specs]
    for index, skill in enumerate(skills):
        if skill.name in [earlier.name for earlier in skills[:index]]:
            raise InputError(f"two skills are called {skill.name}; name each once, and rename a file of the same name")
    return skills


def check_expert(record: Mapping[str, Any], expert: Path | None, what: str) -> None:
    """Raise InputError unless `expert` is the one that an adapter (its `palora.json`) was trained on, if any."""
    if record.get("base") != "expert":
        return
    if expert is None:
        raise InputError(f"{what} was trained on the weights of an expert: give --expert {record.get('expert') or ''}")
    if record.get("expert_fingerprint") != identity(expert):
        raise InputError(f"{what} was trained on another expert than {expert}; give the one it was trained on")


def read_lines(path: str) -> list[str]:
    """The lines of a plain text file that are not blank. Raises InputError."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    if not lines:
        raise InputError(f"{path}: no text in it; write a passage or prompt a line")
    return lines


def _adapter_record(folder: Path) -> dict[str, Any]:
    Adapter.load(folder)
    return read_json(folder / ADAPTER, "base", "fingerprints") if (folder / ADAPTER).exists() else {}


def _sample(facts: list[Fact], limit: int | None) -> list[Fact]:
    """Evenly spaced facts, at most `limit`."""
    if limit is None or limit >= len(facts):
        return facts
    return [facts[i * len(facts) // limit] for i in range(limit)]


@contextmanager
def _work(out: Path) -> Iterator[Path]:
    """The hidden folder beside `out` where an unfinished stage keeps its state; gone when the stage is finished."""
    work = out.with_name(f".{out.name}.work")
    with clear_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    except BaseException:
        with suppress(OSError):
            work.rmdir()  # where there is no state yet
        raise
    shutil.rmtree(work)


def _done(out: Path, marker: str, inputs: str) -> bool:
    check_replaceable(out, marker)
    check_writable(out.parent)
    if (out / marker).exists() and read_json(out / marker, "kind").get("inputs") == inputs:
        log.info("%s is up to date", out)
        return True
    if (out / marker).exists():
        log.info("%s was made from other inputs or settings: it is made again, and replaced when that is done", out)
    return False


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)


def _inputs(*parts: Any) -> str:
    return sha256(repr(parts).encode())


def skill_identity(spec: str) -> Any:
    """The spec and the content of the files it names: `file.jsonl#scorer` or `name:DIR`."""
    file, folder = Path(spec.partition("#")[0]), Path(spec.partition(":")[2])
    if spec.partition(":")[2] and folder.is_dir():
        return [spec, [(f.name, _file_identity(f)) for f in sorted(folder.iterdir()) if f.is_file()]]
    return [spec, identity(file) if file.is_file() else None]


def identity(path: str | Path | None) -> str | None:
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
