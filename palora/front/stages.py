"""The stages, from folders to a folder: `palora expert | protect | inject | evaluate`, and `palora run` in order.

Every stage works from a plan (`recipe.py`), checks that the folders it is given belong to the model, works in a hidden
folder beside `out` (where an interrupted one continues), and swaps the finished folder in. The marker of each holds
`inputs`, what it was made from: a stage whose folder is there with the same inputs is not done again.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.algebra.statistics import weighed
from palora.algebra.subspace import MARKER as PROTECTION
from palora.algebra.subspace import ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.files import clear_errors, read_json, write_json
from palora.common.folders import (
    alone,
    check_replaceable,
    check_unchanged,
    check_writable,
    folder_hash,
    new_folder,
    same_inputs,
    seal,
)
from palora.common.hashes import hash_file, hash_value
from palora.common.progress import waiting
from palora.common.ranks import processes, rank
from palora.common.settings import EvaluateSettings, InjectSettings, KeepSettings
from palora.common.versions import command, versions
from palora.data.facts import Fact, besides, read_facts, write_facts
from palora.data.marking import MARKING
from palora.data.skills import Problem, Skill, few_shot, get_skill
from palora.data.sources import Given, files_of
from palora.data.sources import identity as facts_identity
from palora.front.recipe import ARM_NAME, Plan
from palora.language.generation import prompts_record
from palora.language.keep import Keep
from palora.language.models import (
    checkpoint_activations,
    fingerprints,
    has_chat_template,
    known_targets,
    load_model,
    model_hash,
    whole_path,
)
from palora.language.prompts import set_chat
from palora.language.scoring import share_correct, solve
from palora.language.targets import find_targets
from palora.language.words import WRITTEN, said, taught_by, told, write_own_words
from palora.results.answers import FILE as ANSWERS
from palora.results.answers import write_answers
from palora.results.evaluation import Base, Questions, evaluate
from palora.results.harness import check_harness, harness_identity
from palora.results.model_card import model_card
from palora.results.pages.report import write_report
from palora.results.updates import MARKER as ADAPTER
from palora.results.updates import Adapter, measure_update, read_record
from palora.training import expert as expert_training
from palora.training import injection, protection
from palora.training.injection import Beside, with_drift_where_possible
from palora.training.sharding import gathered
from palora.training.sharding import prepare as prepare_together
from palora.training.svf import MARKER as EXPERT
from palora.training.svf import MODEL, Expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")

DISTIL = 1.0  # the default of `inject.distil` where own words are taught
TEACH = "teach.jsonl"  # what was taught, in which words


@dataclass
class Models:
    """The model in memory: stages that follow each other on the same one load it once."""

    _held: dict[tuple[str, ...], "tuple[PreTrainedModel, PreTrainedTokenizerBase]"] = field(default_factory=dict)

    def load(self, plan: Plan) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model of a plan and its tokenizer, as they were loaded: whoever changes the weights calls `drop`."""
        key = (plan.model, plan.dtype, str(plan.load), str(plan.device))
        if key not in self._held:
            self.drop()  # two at once may not fit
            self._held[key] = load_model(plan.model, plan.dtype, plan.device, load=plan.load)
        set_chat(self._held[key][1], plan.chat_template_kwargs, plan.system_message)
        return self._held[key]

    def drop(self) -> None:
        """Let the model go."""
        self._held.clear()


def train_expert(plan: Plan, out: Path, models: Models | None = None) -> None:
    """`palora expert`: a model and a skill -> `expert/`, with the expert's weights as a model folder in it."""
    if not plan.skills or plan.expert is None:
        raise InputError("an expert is trained on a skill: give --skill")
    check_expert(plan)
    source = get_skill(plan.skills[0])
    inputs = inputs_of(plan, plan.expert, skill=skill_identity(plan.skills[0]))
    if done(out, EXPERT, inputs):
        return
    started = time.monotonic()
    models = models or Models()
    model, tokenizer = models.load(plan)
    with working(out) as work:
        expert = expert_training.train_expert(
            model, tokenizer, source, plan.expert, work, whole_path(plan.model), plan.targets, plan.seed
        )
        models.drop()  # from here on it is the expert
        expert.apply(model, plan.model)
        made = fingerprints(find_targets(model, list(expert.scales)), model)
        record = {**expert.record, "expert_fingerprints": made, **provenance(inputs, started)}
        replace(expert, record=record).save(out, work / "metrics.jsonl", model, plan.model)


def check_expert(plan: Plan) -> None:
    """Raises InputError where the plan's model cannot have an expert."""
    if plan.load:
        raise InputError(f"load: {plan.load} goes without an expert, which changes the weights: leave one of them out")


def protect(plan: Plan, out: Path, expert: Path | None = None, models: Models | None = None) -> None:
    """`palora protect`: a model, what is to be kept, perhaps an expert whose scales the rule reads -> `protection/`."""
    protection.check_protection(plan.protect)
    settings = plan.protect
    loaded, keep = Expert.load(expert) if expert else None, load_keep(plan, settings.keep.examples)
    new = read_facts(plan.facts) if plan.facts else []
    made_of = {"expert": identity(expert), "kept": kept_identity(plan), "facts": facts_identity(plan.facts)}
    inputs = inputs_of(plan, settings, **made_of)
    if done(out, PROTECTION, inputs):
        return
    started = time.monotonic()
    model, tokenizer = (models or Models()).load(plan)
    subspaces = protection.protect(
        *(model, tokenizer, settings, keep, new, loaded, plan.targets, plan.model, plan.seed)
    )
    record = {**subspaces.record, **provenance(inputs, started)}
    replace(subspaces, record=record).save(out)
    if told := protection.coverage_told(record):
        log.info("%s: %s", out, told)
    if warning := protection.coverage_warning(record):
        log.warning("%s: %s", out, warning)


def inject(
    plan: Plan,
    out: Path,
    protected: Path | None = None,
    control: bool = False,
    arm: str = "palora",
    models: Models | None = None,
) -> None:
    """`palora inject`: a model, facts and a protection (none: plain LoRA) -> `adapter/`, plain LoRA. A `control`
    is plain LoRA all the same, whose leak and drift are measured against the protection."""
    if plan.facts is None:
        raise InputError("there is nothing to teach: give --facts")
    new, settings = read_facts(plan.facts), with_distillation(plan)
    prepare_together(settings, plan.load)
    subspaces = ProtectedSubspaces.load(protected) if protected else None
    kinds = subspaces.statistics if subspaces else ProtectedSubspaces({}).statistics
    settings = with_drift_where_possible(settings, kinds)
    shown = load_keep(_weighed(plan, settings.keep), settings.keep.examples) if settings.rehearses else None
    if settings.rehearses and shown is None:
        raise InputError("replay and distil need something to keep: give --skill, --known-facts, --text or --prompts")
    looked_at = kept_identity(plan) if shown or settings.lose_at_most is not None else None
    inputs = inputs_of(
        plan,
        settings,
        **{
            "facts": facts_identity(plan.facts),
            "protection": identity(protected),
            "control": control,
            "kept": looked_at,
        },
    )
    if done(out, ADAPTER, inputs):
        return
    started = time.monotonic()
    model, tokenizer = (models or Models()).load(plan)
    if subspaces is not None:
        expected = subspaces.record["fingerprints"]
        modules = known_targets(model, expected, f"the protection {protected}", plan.model, plan.targets)
    else:
        modules = find_targets(model, plan.targets)
    names, prints = list(modules), fingerprints(modules, model)
    asked = prompts_record(model, tokenizer)
    how = taught_by(settings, bool(tokenizer.chat_template))
    settings = settings.model_copy(update={"targets_by": how})
    constraint = None if control or not (subspaces and subspaces.protects) else subspaces
    rows = weighed(shown.tokenised(model, tokenizer), settings.keep.weights) if shown else []
    share = _kept_share(model, tokenizer, plan, settings)
    with working(out) as work:
        if how in WRITTEN:
            new = _in_own_words(model, tokenizer, new, plan, work, inputs)
        taught = told(new) if how in WRITTEN else {how: len(new)}
        beside = Beside(arm, names, kinds, rows, share)
        adapted, training = injection.inject(model, tokenizer, new, settings, work, constraint, beside, plan.seed)
        state = gathered(adapted) if processes() > 1 else None
        if rank():
            return
        with new_folder(out, ADAPTER) as staging:
            adapted.save_pretrained(str(staging), safe_serialization=True, state_dict=state)
            _name_base(staging, whole_path(plan.model))
            before = Models().load(plan)[0] if state else _as_before(adapted, model)  # what is sharded is not read
            modules = find_targets(before, names)
            rule = constraint.record if constraint else {"rule": "none", "sides": None, "budget": {}, "coverage": None}
            with waiting("Measuring the update"):
                update = measure_update(Adapter.load(staging), modules, subspaces, kinds.skills())
            record = {
                **{"kind": "adapter", "arm": arm, "model": whole_path(plan.model), "dtype": plan.dtype},
                "load": plan.load,
                "protection": str(protected.resolve()) if protected else None,
                **{key: rule[key] for key in ("rule", "sides", "budget", "coverage")},
                "prompts": asked,
                "facts": {
                    "file": ", ".join(Path(f).name for f in files_of(plan.facts)),
                    "n": len(new),
                    "taught": taught,
                },
                "fingerprints": prints,
                "update": {"rule": rule["rule"], "loss": settings.added, **update},
                "training": training,
                **provenance(inputs, started),
            }
            (staging / "README.md").write_text(model_card(record), encoding="utf-8")
            shutil.copy(work / "metrics.jsonl", staging / "metrics.jsonl")
            if how in WRITTEN:
                write_facts(staging / TEACH, new)
            seal(staging, ADAPTER, record)


def evaluate_arms(
    plan: Plan, out: Path, adapters: Mapping[str, Path], expert: Path | None = None, models: Models | None = None
) -> dict[str, Any]:
    """`palora evaluate`: every arm, the same questions -> `evaluation.json`, `answers.jsonl` and `report.html` in
    `out`.

    Args:
        adapters: by the name of their arm; each goes on the model of the plan, or on the expert that it was trained
            on.
        expert: an expert's folder, whose model is an arm of its own.

    Returns: the content of `evaluation.json`.
    """
    loaded = Expert.load(expert) if expert else None
    records = {name: adapter_record(folder) for name, folder in adapters.items()}
    for name, folder in adapters.items():
        if name in ("base", "expert") or not re.fullmatch(ARM_NAME, name):
            taken = "that is the name of an arm without one" if name in ("base", "expert") else "use letters and digits"
            raise InputError(f"{name!r} cannot be the name of the adapter {folder}: {taken}")
    settings, sources = plan.evaluate, get_skills(plan.skills)
    check_harness(settings)
    new = sample(read_facts(plan.facts), settings.facts) if plan.facts else []
    known = sample(_known(plan, plan.known_facts), settings.facts)
    inputs = inputs_of(
        plan,
        settings,
        **{
            "expert": identity(expert),
            "facts": facts_identity(plan.facts),
            "known_facts": facts_identity(plan.known_facts),
        },
        marking=MARKING,
        skills=[skill_identity(s) for s in plan.skills],
        adapters={n: [identity(f), hash_value(records[n].get("update"))] for n, f in adapters.items()},
        **({"harness": harness_identity(settings)} if settings.harness else {}),
    )
    target = out / "evaluation.json"
    check_writable(out)
    for name in ("report.html", ANSWERS):
        if (out / name).exists() and not (target.exists() or (out / "recipe.yaml").exists()):
            raise InputError(f"{out} has a {name} that is not ours (no evaluation.json); choose another --out")
    if target.exists() and same_inputs((stored := read_json(target, "arms", "inputs"))["inputs"], inputs):
        log.info("%s is up to date", target)
        write_report(out)
        return dict(stored)
    started = time.monotonic()
    questions = Questions({s.name: (s, problems_of(s, settings, plan.seed)) for s in sources}, new, known)
    models = models or Models()
    on_expert = [name for name, record in records.items() if loaded is not None and loaded.is_base_of(record)]

    def base(arm: str, model: str, names: Sequence[str]) -> Base:
        def load() -> Any:
            found = models.load(plan.model_copy(update={"model": model}))
            for name in names:
                check_adapter(found[0], records[name], adapters[name], model)
            return found

        return Base(arm, load, {name: adapters[name] for name in names})

    bases = [base("base", plan.model, [name for name in adapters if name not in on_expert])]
    if loaded is not None and expert is not None:
        bases.append(base("expert", str(expert / MODEL), on_expert))
    with working(out / "evaluation") as work:
        result = evaluate(bases, questions, settings, list(adapters), work, hash_value(inputs), plan.seed)
        write_answers(out / ANSWERS, result.pop("asked"))
        seconds = {name: record["seconds"] for name, record in records.items() if "seconds" in record}
        if loaded is not None and "seconds" in loaded.record:
            seconds = {"expert": loaded.record["seconds"], **seconds}
        value = {
            **result,
            "update": {name: record["update"] for name, record in records.items() if "update" in record},
            "seconds": {**seconds, "evaluate": round(time.monotonic() - started, 2)},
            "taught": {name: record["facts"].get("taught") for name, record in records.items() if "facts" in record},
            "objective": loaded.record.get("objective") if loaded else None,
            "expert": {"skill": loaded.record.get("skill"), "taught": on_expert} if loaded else None,
            "command": command(),
            "inputs": inputs,
            "versions": versions(*["lm-eval"] * bool(settings.harness)),
        }
        write_json(target, value)
    with waiting("Writing the report"):  # last: run again, only this is done again
        write_report(out)
    return value


def problems_of(skill: Skill, settings: EvaluateSettings, seed: int) -> list[Problem]:
    """The problems that every arm is asked."""
    return few_shot(skill, skill.problems("test", settings.problems, seed), settings.num_fewshot, seed)


def load_keep(plan: Plan, examples: int) -> Keep | None:
    """What a plan wants kept, at most `examples` rows of each; None where nothing is named. Raises InputError."""
    known = _known(plan, plan.kept_facts or plan.known_facts)
    if not (plan.skills or known or plan.text or plan.prompts):
        return None
    return Keep(
        get_skills(plan.skills),
        known,
        read_lines(plan.text) if plan.text else (),
        read_lines(plan.prompts) if plan.prompts else (),
        examples,
    )


def _known(plan: Plan, given: Given | None) -> list[Fact]:
    """Known facts, but for those whose question is taught anew: their answer is to change, not to stay."""
    if given is None:
        return []
    known = read_facts(given)
    rest = besides(known, read_facts(plan.facts)) if plan.facts else known
    if len(rest) < len(known):
        left = len(known) - len(rest)
        log.info(
            "%s: %d of %d facts are taught anew, and are not kept as they were", *(files_of(given)[0], left, len(known))
        )
    return rest


def kept_identity(plan: Plan) -> Any:
    """What tells what is to be kept from other things: names, and the content of the files."""
    facts = facts_identity(plan.kept_facts or plan.known_facts)
    files = [facts, *(identity(f) for f in (plan.text, plan.prompts))]
    return [[skill_identity(s) for s in plan.skills], files]


def _in_own_words(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: list[Fact],
    plan: Plan,
    work: Path,
    inputs: dict[str, Any],
) -> list[Fact]:
    """The facts in the model's own words, kept in `work`, so that a stage that was stopped has them."""
    if all(fact.teach for fact in facts):
        return facts
    file = work / f"teach-{hash_value(inputs)[:12]}.jsonl"
    if file.exists():
        found = read_facts(file)
    else:
        found = write_own_words(model, tokenizer, facts, plan.inject, plan.seed, file, inputs)
    log.info("taught %s", said(told(found)))
    return found


def with_distillation(plan: Plan) -> InjectSettings:
    """`plan.inject` with the default of `distil`: on a chat model nothing held answers and known facts as well, where
    own words are taught and something is kept (docs/evidence.md)."""
    settings = plan.inject
    if settings.distil is not None:
        return settings
    own = taught_by(settings, has_chat_template(plan.model)) in WRITTEN
    kept = own and load_keep(_weighed(plan, settings.keep), 1) is not None
    return settings.model_copy(update={"distil": DISTIL if kept else 0.0})


def _weighed(plan: Plan, settings: KeepSettings) -> Plan:
    """The plan with only those things to keep that weigh something."""
    none: dict[str, Any] = {}
    if not settings.known_facts:
        none |= {"known_facts": None, "kept_facts": None}
    none |= {kind: None for kind in ("text", "prompts") if not getattr(settings, kind)}
    return plan.model_copy(update=none)


def for_rule(plan: Plan) -> Plan:
    """The plan with only those things to keep that its rule looks at: the skills always, for coverage and drift."""
    return _weighed(plan, plan.protect.keep)


def get_skills(specs: Sequence[str]) -> list[Skill]:
    """The skills, whose results are told apart by their names. Raises InputError where two have the same."""
    skills = [get_skill(spec) for spec in specs]
    for index, skill in enumerate(skills):
        if skill.name in [earlier.name for earlier in skills[:index]]:
            raise InputError(f"two skills are called {skill.name}; name each once, and rename a file of the same name")
    return skills


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


def _kept_share(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", plan: Plan, settings: InjectSettings
) -> Callable[[Any], float] | None:
    """How `settings.lose_at_most` is measured: (a model) -> the smallest share of a skill that is left, on validation
    problems, of what the model as it is now solves. None where that is not asked for, or there is no skill."""
    if settings.lose_at_most is None or not plan.skills:
        return None
    problems = {s: s.problems("validation", settings.lose_problems, plan.seed) for s in get_skills(plan.skills)}

    def solved(model: Any) -> list[float]:
        return [share_correct(solve(model, tokenizer, skill, asked)) for skill, asked in problems.items()]

    start = solved(model)
    return lambda model: min((n / s for n, s in zip(solved(model), start, strict=True) if s), default=1.0)


def _name_base(folder: Path, model: str) -> None:
    """Write into an adapter's config which model it goes on, and its matrices in the same order each time."""
    config = read_json(folder / "adapter_config.json")
    config |= {"base_model_name_or_path": model, "target_modules": sorted(config["target_modules"])}
    write_json(folder / "adapter_config.json", config)


def _as_before(adapted: Any, model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without its adapter, and as a trainer found it."""
    adapted.unload()
    checkpoint_activations(model, False)
    model.config.use_cache = True
    return model


def adapter_record(folder: Path) -> dict[str, Any]:
    Adapter.load(folder).check_numbers()
    if not (folder / ADAPTER).exists():
        return {}
    record = read_record(folder)
    check_unchanged(folder, record, "adapter_model.safetensors", "adapter_config.json")
    return record


def check_adapter(model: "PreTrainedModel", record: Mapping[str, Any], folder: Path, name: str) -> None:
    """Raise InputError unless an adapter belongs on a model."""
    if record:
        known_targets(model, record["fingerprints"], f"the adapter {folder}", name)
    else:
        Adapter.load(folder).check(dict(model.named_modules()))


def sample(facts: list[Fact], limit: int | None) -> list[Fact]:
    """Evenly spaced facts, at most `limit`."""
    if limit is None or limit >= len(facts):
        return facts
    return [facts[i * len(facts) // limit] for i in range(limit)]


@contextmanager
def working(out: Path) -> Iterator[Path]:
    """The hidden folder beside `out` where an unfinished stage keeps its state; gone when the stage is finished."""
    work = out.with_name(f".{out.name}.work")
    with alone(out):
        with clear_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        except BaseException:
            with suppress(OSError):
                work.rmdir()  # where there is no state yet
            raise
        shutil.rmtree(work)


def done(out: Path, marker: str, inputs: Mapping[str, Any]) -> bool:
    check_replaceable(out, marker)
    check_writable(out.parent)
    if not (out / marker).exists():
        return False
    record = read_json(out / marker, "kind")
    if same_inputs(record.get("inputs"), inputs):
        check_unchanged(out, record)
        log.info("%s is up to date", out)
        return True
    log.info("%s was made from other inputs or settings: it is made again, and replaced when that is done", out)
    return False


def provenance(inputs: Mapping[str, Any], started: float) -> dict[str, Any]:
    return {"inputs": inputs, "seconds": round(time.monotonic() - started, 2), "versions": versions()}


def inputs_of(plan: Plan, settings: Any, **parts: Any) -> dict[str, Any]:
    """What a stage is made from: the model, its settings, and `parts` of its own."""
    shared: dict[str, Any] = {
        "model": model_hash(plan.model),
        "dtype": plan.dtype,
        "targets": plan.targets,
        "seed": plan.seed,
    }
    if plan.load:
        shared["load"] = plan.load
    if plan.chat_template_kwargs or plan.system_message:
        shared["chat"] = [plan.chat_template_kwargs, plan.system_message]
    return {**shared, "settings": settings.identity(), **parts}


def skill_identity(spec: str) -> Any:
    """The spec and the content of the files it names: `file.jsonl#scorer` or `name:DIR`."""
    file, folder = Path(spec.partition("#")[0]), Path(spec.partition(":")[2])
    if spec.partition(":")[2] and folder.is_dir():
        return [spec, [[f.name, hash_file(f)] for f in sorted(folder.iterdir()) if f.is_file()]]
    return [spec, identity(file) if file.is_file() else None]


def identity(path: str | Path | None) -> str | None:
    """A hash of a file's content, or of the content of a stage's folder."""
    if path is None:
        return None
    place = Path(path)
    if place.is_file():
        return hash_file(place)
    marker = next((name for name in (EXPERT, PROTECTION, ADAPTER) if (place / name).exists()), None)
    return folder_hash(place, marker) if marker else model_hash(place)
