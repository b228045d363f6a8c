"""The one typed configuration. `recipes/*.yaml` are its instances, and the command line's options are its fields.

The defaults here are the published ones of the closest public code; `recipes/default.yaml` is what we recommend.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from palora.errors import InputError

ADDED = ("drift", "replay", "distil")  # to the loss
PLAIN = {**dict.fromkeys(ADDED, 0.0), "lose_at_most": None}  # what an arm does without unless it says so
ARM_NAME = r"\w[\w.-]*"  # it names a folder


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExpertSettings(_Settings):
    """Stage 1: the singular value fine-tuning expert."""

    objective: Literal["reward", "next_token"] = Field(
        "reward",
        description="reward: REINFORCE on verifiable answers; next_token: the gold solutions' loss (cheap)",
    )
    parametrisation: Literal["linear", "sigmoid"] = Field(
        "sigmoid", description="how z follows from the trained vector"
    )
    basis: Literal["weights", "skill"] = Field(
        "weights", description="whose components are scaled: W's, or W's in the basis of the skill's inputs (ours)"
    )
    basis_examples: int = Field(512, ge=1, description="examples of the skill that the basis skill is made of")
    iterations: int = Field(200, ge=1, description="optimizer steps")
    batch_size: int = Field(256, ge=1, description="problems a step")
    rollout_batch_size: int = Field(64, ge=1, description="answers generated at once")
    micro_batch_size: int = Field(8, ge=1, description="answers in memory at once for the gradient")
    learning_rate: float = Field(2e-3, gt=0, description="Adam")
    max_grad_norm: float = Field(1e-3, gt=0, description="gradient clip over all scales")
    temperature: float = Field(0.0, ge=0, description="of the rollouts; 0 is greedy")
    baseline: bool = Field(False, description="subtract the batch's mean reward")
    validate_every: int = Field(10, ge=1, description="steps between validations; the best one is kept")
    validation_size: int = Field(256, ge=1, description="validation problems a skill")
    train_size: int | None = Field(None, ge=1, description="training problems a skill; all by default")


class KeepSettings(_Settings):
    """What is to be kept: relative weights of what a rule looks at. The skills only, unless weighed otherwise."""

    skills: float = Field(1.0, ge=0, description="weight of the skills, shared equally")
    known_facts: float = Field(0.0, ge=0, description="weight of the known facts")
    text: float = Field(0.0, ge=0, description="weight of the plain text")
    prompts: float = Field(0.0, ge=0, description="weight of the prompts, with the model's own answers")
    examples: int = Field(512, ge=1, description="examples taken of each")
    answers: Literal["gold", "right", "own"] = Field(
        "gold", description="to a skill's problems: gold solutions; the model's own right answers; all of its own"
    )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each kind."""
        return {kind: getattr(self, kind) for kind in ("skills", "known_facts", "text", "prompts")}


class KeepAllSettings(KeepSettings):
    """Relative weights of what the loss keeps. Everything alike, unless weighed otherwise."""

    known_facts: float = Field(1.0, ge=0, description="weight of the known facts")
    text: float = Field(1.0, ge=0, description="weight of the plain text")
    prompts: float = Field(1.0, ge=0, description="weight of the prompts, with the model's own answers")


class ProtectSettings(_Settings):
    """The protected subspace. One of k, fraction, share and strength; the soft rules have a default."""

    rule: str = Field("covariance", description="a name in rules.py: svf, sigma, activation, covariance, …")
    k: int | None = Field(None, description="protected directions a matrix")
    fraction: float | None = Field(None, description="… as a fraction of the rank")
    share: float | None = Field(None, description="… as a share of the importance (activation: of the input energy)")
    strength: float | None = Field(None, description="g of the soft rules covariance and svf_covariance; 1")
    sides: Literal["both", "input", "output"] | None = Field(
        None, description="by default both; input for the rules that look at inputs"
    )
    keep: KeepSettings = Field(default_factory=KeepSettings)  # type: ignore[arg-type]


class InjectSettings(_Settings):
    """Stage 2: LoRA on the facts."""

    base: Literal["expert", "original"] = Field("expert", description="the weights the adapter is trained on")
    targets: list[str] | None = Field(
        None, description="endings of those of the targeted matrices that are taught; all"
    )
    r: int = Field(16, ge=1, description="rank of the adapter")
    lora_alpha: int = Field(32, ge=1, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field("constant", description="over the epochs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clip")
    epochs: int = Field(10, ge=1, description="at most this many passes over the facts")
    batch_size: int = Field(8, ge=1, description="facts a step")
    paraphrases: bool = Field(False, description="train on the paraphrases too (then paraphrase recall proves nothing)")
    lose_at_most: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of a kept skill that may be lost: drift is doubled where more is, and undone",
    )
    lose_problems: int = Field(200, ge=1, description="validation problems a skill that lose_at_most is measured on")
    stop_at_recall: float | None = Field(None, gt=0, le=1, description="stop when recall on the facts reaches this")
    recall_every: int = Field(2, ge=1, description="epochs between the recall checks; the last epoch has one")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; an epoch by default")
    keep: KeepAllSettings = Field(
        default_factory=KeepAllSettings,  # type: ignore[arg-type]
        description="weights of what is kept by drift, replay and distil; examples and answers are of the last two "
        "(drift looks at the statistics of the protection)",
    )
    drift: float = Field(
        0.0,
        ge=0,
        description="λ of λ / n · drift² on what is kept, beside the loss of the n facts, a mean over answer tokens",
    )
    replay: float = Field(0.0, ge=0, description="ρ: weight of the loss on rows of what is kept, beside the facts'")
    distil: float = Field(0.0, ge=0, description="κ: weight of KL(start ‖ now) on such rows")
    kept_batch_size: int = Field(50, ge=1, description="such rows a step, for replay and distil")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    bf16: bool = Field(False, description="bfloat16 autocast while training")

    @property
    def added(self) -> dict[str, float]:
        """What is added to the loss, by its weight: drift, replay, distil."""
        return {term: weight for term in ADDED if (weight := getattr(self, term))}

    @property
    def rehearses(self) -> bool:
        """Whether rows of what is kept are shown while training."""
        return bool(self.replay or self.distil)


class EvaluateSettings(_Settings):
    """What is measured, by free greedy generation."""

    problems: int = Field(400, ge=1, description="test problems a skill")
    facts: int | None = Field(None, ge=1, description="at most this many facts; all by default")
    batch_size: int = Field(64, ge=1, description="prompts a batch")
    max_answer_tokens: int = Field(32, ge=1, description="length limit of an answer to a fact")
    answers: int = Field(10, ge=0, description="answers of every arm shown side by side in the report")


class ArmSettings(_Settings):
    """One more arm: the same facts and budget under another protection or other settings."""

    protect: dict[str, Any] | None = Field(None, description="replaces `protect`; none is plain LoRA")
    inject: dict[str, Any] = Field(default_factory=dict, description="changes to `inject`")


class Recipe(_Settings):
    """A whole run: model, skill and facts in; adapter and report out."""

    model: str = Field(description="a folder or a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the base weights")
    device: str | None = Field(None, description="cpu, cuda, …; the first GPU by default")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    targets: list[str] | None = Field(None, description="endings of the targeted matrices; the MLP matrices by default")
    skills: list[str] = Field(
        min_length=1, description="built-in names, name:DIR or JSONL files; the first trains the expert"
    )
    facts: str = Field(description="JSONL, CSV or Parquet with question and answer")
    known_facts: str | None = Field(None, description="facts the model knows: locality is measured on them")
    kept_facts: str | None = Field(None, description="known facts to keep (protect.keep); by default known_facts")
    text: str | None = Field(None, description="a plain text file to keep, one passage a line")
    prompts: str | None = Field(None, description="prompts, one a line: what the model answers to them is to be kept")
    expert: ExpertSettings = Field(default_factory=ExpertSettings)  # type: ignore[arg-type]
    protect: ProtectSettings = Field(default_factory=ProtectSettings)  # type: ignore[arg-type]
    inject: InjectSettings = Field(default_factory=InjectSettings)  # type: ignore[arg-type]
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)  # type: ignore[arg-type]
    arms: dict[str, ArmSettings] = Field(
        default_factory=dict, description="more arms beside base, expert, lora, palora"
    )

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        for name in self.arms:
            if name in ("base", "expert", "palora"):
                raise ValueError(f"arms.{name} is always there; only lora and new names can be set")
            if not re.fullmatch(ARM_NAME, name):
                raise ValueError(f"arms: {name!r} is no name; use letters, digits, - and _")
            try:
                self.arm(name)
            except ValidationError as error:
                raise ValueError(f"arms.{name}: {describe(error)}") from None
        return self

    def arm(self, name: str) -> tuple[ProtectSettings, InjectSettings]:
        """The settings of a trained arm: `palora`, the control `lora` (no protection), or one of `arms`."""
        if name == "palora":
            return self.protect, self.inject
        own = self.arms.get(name) or ArmSettings()  # type: ignore[call-arg]
        protect = ProtectSettings.model_validate(own.protect or {"rule": "none"})
        return protect, InjectSettings.model_validate(merged(self.inject.model_dump() | PLAIN, own.inject))

    @property
    def trained_arms(self) -> list[str]:
        """The arms that are trained, in the order of the report: lora, the extra ones, palora."""
        return ["lora", *(name for name in self.arms if name != "lora"), "palora"]


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (`inject.r=8`, `arms.svf.protect.k=64`).

    Paths of files in the recipe that exist beside it are taken from there.

    Raises: InputError that names the file, the key and the allowed values.
    """
    return parse_recipe(read_values(path, overrides), str(path))


def read_values(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The plain values of a YAML recipe, with its overrides and the paths of its files resolved.

    `extends: FILE` takes the values of another recipe first (a path beside this one): mappings are merged key by key
    (`null` takes one back), everything else is replaced.

    Raises: InputError.
    """
    values = _read(Path(path), ())
    for override in overrides or []:
        _override(values, override)
    return values


def _read(path: Path, extended: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a recipe that the recipes `extended` are made of."""
    if path.resolve() in extended:
        raise InputError(f"{path}: extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{where}: not valid YAML ({reason}); check the indentation and the quotes there") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a YAML mapping (model: …, skills: …, facts: …)")
    for key in ("model", "facts", "known_facts", "kept_facts", "text", "prompts"):
        _beside(values, key, path.parent)
    for key in ("skills", "keep_skills"):
        for index, skill in enumerate(values[key] if isinstance(values.get(key), list) else ()):
            if isinstance(skill, str) and skill.endswith(".jsonl"):
                _beside(values[key], index, path.parent)
    methods = values.get("methods")
    for method in methods.values() if isinstance(methods, dict) else ():
        if isinstance(method, dict) and isinstance(probe := method.get("probe"), dict):
            _beside(probe, "skill", path.parent)
    if (other := values.pop("extends", None)) is None:
        return values
    if not isinstance(other, str):
        raise InputError(f"{path}: extends must be the path of a recipe, not {other!r}")
    return merged(_read(path.parent / other, (*extended, path.resolve())), values)


def merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the values of `new`: mappings key by key, everything else replaced."""
    both = {k: merged(old[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return {**old, **new, **both}


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from plain values. Raises InputError naming the first wrong key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from None


def describe(error: ValidationError, called: Callable[[str], str] = str) -> str:
    """The first problem of a validation in one line: the key, what is wrong, how many more there are.

    Args:
        called: what to call a key (`protect.keep.skills`).
    """
    first, *rest = error.errors()
    key, given = ".".join(str(part) for part in first["loc"]), first["input"]
    message = first["msg"].splitlines()[0].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "extra_forbidden":
        message = "no such key; recipes/default.yaml shows all there are"
    elif first["type"] == "missing":
        message = "is missing"
    elif message.startswith("must") and isinstance(given, str | int | float | None):
        message += f", not {given!r}"
    return (f"{called(key)}: " if key else "") + message + (f" (and {len(rest)} more to mend)" if rest else "")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _beside(container: Any, key: Any, folder: Path) -> None:
    value = container.get(key) if isinstance(container, dict) else container[key]
    if isinstance(value, str) and not Path(value).is_absolute() and (folder / value).exists():
        container[key] = str(folder / value)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: overrides look like key=value, for example inject.r=8")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"{override!r}: {parent} has no keys of its own")
    try:
        node[last] = yaml.safe_load(text)
        if isinstance(node[last], str):  # YAML 1.1 reads 1e-3 as text
            node[last] = float(text) if _is_float(text) else node[last]
    except yaml.YAMLError:
        raise InputError(f"{override!r}: the value is not valid YAML") from None


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
