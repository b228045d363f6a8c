"""The recipe of `palora compare`: which methods, at which learning rates, loads and seeds, on what they are measured.

What a run's recipe holds once is shared here by every method: model, expert, facts, batches, budget. A method is a
protection rule, or plain LoRA, with changes to `inject`; it brings its own learning rates. `extends: other.yaml` and
`only: [method, …]` make one comparison of another.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from palora.algebra.rules import EXPERT_RULES, INPUT_RULES
from palora.bench.tuners import check_terms
from palora.common.errors import InputError
from palora.common.settings import PLAIN, EvaluateSettings, ExpertSettings, InjectSettings, ProtectSettings, Settings
from palora.front.recipe import ARM_NAME, beside, describe, merged, read_values

BY_MODEL = "model"  # of `prompts`

# Nothing stands in the loss of a method unless it says so, and training stops at the last milestone.
UNSTATED = {**PLAIN, "stop_at_recall": None}


def mark(milestone: float) -> str:
    """A milestone as a key of JSON: 0.95 -> "0.95"."""
    return f"{milestone:g}"


class Scaled(Settings):
    """Nothing is trained: the adapter of one method, scaled to the norm of another one's update."""

    of: str = Field(description="the LoRA method whose adapter is scaled")
    to: str = Field(description="the method whose ‖ΔW‖ it gets, at the same load, seed and milestone")


class Probe(Settings):
    """What a method's rule looks at, where that is not the seed's expert and the skill that is kept."""

    skill: str | None = Field(None, description="another skill: its expert, or its inputs")
    expert: dict[str, Any] = Field(default_factory=dict, description="changes to `expert`, for svf")
    base: Literal["expert", "original"] | None = Field(
        None, description="whose inputs; by default those of the model that is taught, and others are out of date"
    )


class Method(Settings):
    """One method of the comparison."""

    learning_rates: list[float] = Field(default_factory=list, description="its own sweep; the best one is reported")
    protect: ProtectSettings | None = Field(None, description="its protection; none is plain LoRA")
    shuffle: bool = Field(False, description="show the rule the expert's scales in a random order, in every matrix")
    probe: Probe | None = Field(None, description="what its rule looks at, if not what all others do")
    tuner: Literal["lora", "dora", "mica", "corda", "osf", "full"] = Field(
        "lora", description="PEFT's method (tuners.py)"
    )
    base: Literal["expert", "original"] = Field("expert", description="the weights that the facts are taught on")
    inject: dict[str, Any] = Field(default_factory=dict, description="changes to `inject`, e.g. weight_decay")
    scaled: Scaled | None = Field(None, description="no training: another method's adapter, scaled")

    @model_validator(mode="after")
    def _check(self) -> "Method":
        if bool(self.learning_rates) == bool(self.scaled):
            raise ValueError("give learning_rates, or scaled (which trains nothing), one of the two")
        if self.scaled and (self.protect or self.tuner != "lora" or self.inject or self.base != "expert"):
            raise ValueError("scaled trains nothing, so it takes no other settings")
        if self.tuner != "lora" and self.rule != "none":
            raise ValueError(f"{self.tuner} cannot be put under a protection")
        if self.shuffle and self.rule not in EXPERT_RULES:
            raise ValueError("shuffle is for the rule svf, which looks at the expert's scales")
        if self.probe:
            if self.shuffle or self.rule not in EXPERT_RULES | INPUT_RULES:
                raise ValueError("probe is for rules that look at scales, or at inputs and no expert; and not shuffled")
            if self.probe.expert and self.rule in INPUT_RULES:
                raise ValueError(f"probe.expert: the rule {self.rule} looks at no expert")
            if self.probe.base and self.rule in EXPERT_RULES:
                raise ValueError(f"probe.base: the rule {self.rule} looks at no inputs")
        if {"learning_rate", "stop_at_recall"} & set(self.inject):
            raise ValueError(
                "inject: learning rates are under learning_rates, and training stops at the last milestone"
            )
        return self

    @property
    def rule(self) -> str:
        """The rule of its protection."""
        return self.protect.rule if self.protect else "none"


class Comparison(Settings):
    """A whole comparison."""

    model: str = Field(description="a folder or a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the base weights")
    device: str | None = Field(None, description="cpu, cuda, …; the first GPU by default")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="variables of the chat template")
    system_message: str | None = Field(None, description="a system message before every question")
    targets: list[str] | None = Field(None, description="endings of the targeted matrices; the MLP matrices by default")
    skills: list[str] = Field(min_length=1, description="the skills that are measured")
    keep_skills: list[str] = Field(min_length=1, description="of them those that are kept; the first trains the expert")
    facts: str = Field(description="the new facts; a load takes the first of them")
    known_facts: str | None = Field(None, description="facts the model knows: locality is measured on them")
    kept_facts: str | None = Field(
        None, description="known facts that methods may keep and replay; none of known_facts"
    )
    text: str | None = Field(None, description="a plain text file to keep, one passage a line")
    prompts: str | None = Field(
        None, description="prompts, one a line: what the model answers to them is to be kept; `model`: it writes them"
    )
    loads: list[int] = Field(min_length=1, description="how many facts are taught")
    seeds: list[int] = Field(min_length=1, description="each has its own expert, batches and test problems")
    sweep_seeds: list[int] | None = Field(None, description="those every rate is tried with; all seeds by default")
    milestones: list[float] = Field(
        [0.9, 0.95, 0.99], min_length=1, description="methods are compared at these recalls"
    )
    choose_at: float = Field(0.95, description="the milestone at which each method's learning rate is chosen")
    validation: int = Field(200, ge=1, description="validation problems a kept skill, for that choice")
    reference: str = Field("lora", description="the method that every other one is tested against")
    expert: ExpertSettings | None = Field(
        default_factory=ExpertSettings,  # type: ignore[arg-type]
        description="of each seed; null: no expert, and everything is taught on the original model",
    )
    inject: InjectSettings = Field(description="of every method; nothing in the loss but the facts, unless stated")
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)  # type: ignore[arg-type]
    methods: dict[str, Method] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _select(cls, values: Any) -> Any:
        """`only: [names]` keeps these of the methods: for a recipe that extends another."""
        if not isinstance(values, dict) or "only" not in values:
            return values
        values = dict(values)
        names, methods = values.pop("only"), values.get("methods")
        if names is None:
            return values
        listed = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        if not (listed and isinstance(methods, dict)):
            raise ValueError("only: a list of methods")
        if missing := [name for name in names if name not in methods]:
            raise ValueError(f"only: there is no method {missing[0]}; there are {', '.join(methods)}")
        return {**values, "methods": {name: methods[name] for name in names}}

    @model_validator(mode="before")
    @classmethod
    def _unstated(cls, values: Any) -> Any:
        """The defaults of `inject` are those of a comparison."""
        stated = values.get("inject", {}) if isinstance(values, dict) else None
        return {**values, "inject": UNSTATED | stated} if isinstance(stated, dict) else values

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, values: list[float]) -> list[float]:
        if values != sorted(set(values)) or not all(0 < v <= 1 for v in values):
            raise ValueError("recalls over 0 and at most 1, each once, in ascending order")
        return values

    @model_validator(mode="after")
    def _check(self) -> "Comparison":
        if self.choose_at not in self.milestones:
            raise ValueError(f"choose_at: {self.choose_at} is none of the milestones {self.milestones}")
        if missing := [skill for skill in self.keep_skills if skill not in self.skills]:
            raise ValueError(f"keep_skills: {missing[0]} is not measured; add it to skills")
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.loads)) < len(self.loads) or min(self.loads) < 1:
            raise ValueError("seeds and loads: each once, and loads of at least one fact")
        if self.sweep_seeds is not None and not (self.sweep_seeds and set(self.sweep_seeds) <= set(self.seeds)):
            raise ValueError("sweep_seeds: some of the seeds")
        if self.inject.stop_at_recall is not None:
            raise ValueError("inject.stop_at_recall: training stops at the last milestone; leave it out")
        if self.reference not in self._trained:
            raise ValueError(f"reference: {self.reference} is no trained method; there are {self._listed}")
        for name in self.methods:
            self._check_method(name)
        return self

    def _check_method(self, name: str) -> None:
        """Raise ValueError where a method does not go together with itself or the others."""
        method = self.methods[name]
        if not re.fullmatch(ARM_NAME, name):
            raise ValueError(f"methods: {name!r} is no name; use letters, digits, - and _")
        if method.scaled and not {method.scaled.of, method.scaled.to} <= set(self._trained):
            raise ValueError(f"methods.{name}: scaled needs two trained methods; there are {self._listed}")
        if method.scaled and self.methods[method.scaled.of].tuner != "lora":
            raise ValueError(f"methods.{name}: only an update of LoRA is linear in B, so that it can be scaled")
        for rate in method.learning_rates:
            try:
                check_terms(method.tuner, self.training(name, rate))
            except ValidationError as error:
                raise ValueError(f"methods.{name}.inject: {describe(error)}") from None
            except InputError as error:
                raise ValueError(f"methods.{name}: {error}") from None
        try:
            self.probed(name)
        except ValidationError as error:
            raise ValueError(f"methods.{name}.probe.expert: {describe(error)}") from None
        if method.rule in EXPERT_RULES and not self.expert:
            raise ValueError(f"methods.{name}: the rule {method.rule} reads an expert's scales, and expert is null")
        if method.inject.get("lose_at_most") is not None or self.inject.lose_at_most is not None:
            raise ValueError("lose_at_most: a comparison stops at recalls, not at an allowance; leave it out")

    @property
    def _trained(self) -> list[str]:
        return [name for name, method in self.methods.items() if not method.scaled]

    @property
    def _listed(self) -> str:
        return ", ".join(self._trained)

    @property
    def swept(self) -> list[int]:
        """The seeds that every learning rate is tried with."""
        return self.seeds if self.sweep_seeds is None else self.sweep_seeds

    def training(self, method: str, learning_rate: float) -> InjectSettings:
        """The settings that a method is trained with."""
        own = self.methods[method].inject
        fixed = {"learning_rate": learning_rate, "stop_at_recall": self.milestones[-1]}
        return InjectSettings.model_validate(merged(self.inject.model_dump(), {**own, **fixed}))

    def probed(self, method: str) -> tuple[str, ExpertSettings]:
        """The skill that a method's rule looks at, and the settings of the expert that it looks at."""
        probe = self.methods[method].probe or Probe()  # type: ignore[call-arg]
        shared = self.expert.model_dump() if self.expert else {}
        settings = ExpertSettings.model_validate(merged(shared, probe.expert))
        return probe.skill or self.keep_skills[0], settings

    def base(self, method: str) -> Literal["expert", "original"]:
        """The weights that a method is taught on."""
        own = self.methods[method]
        base = self.methods[own.scaled.of].base if own.scaled else own.base
        return base if self.expert else "original"

    @property
    def reference_arm(self) -> Literal["expert", "base"]:
        """What retention is measured against: the expert, or the original model where there is none."""
        return "expert" if self.expert else "base"

    def words(self, method: str) -> tuple[str, int, int] | None:
        """How the model's own words for a method are made: `targets_by`, wordings and samples; None where it teaches
        the answers as they are."""
        settings = InjectSettings.model_validate(merged(self.inject.model_dump(), self.methods[method].inject))
        if settings.targets_by not in ("model", "mixed"):
            return None
        return settings.targets_by, settings.wordings, settings.samples

    def is_source(self, method: str) -> bool:
        """Whether another method scales this one's adapters, so that they must be stored."""
        return any(m.scaled is not None and m.scaled.of == method for m in self.methods.values())


def load_comparison(path: str | Path, overrides: list[str] | None = None) -> Comparison:
    """Read a YAML comparison and apply `key=value` overrides, as `load_recipe` does. Raises InputError."""
    values = read_values(path, overrides)
    methods = values.get("methods")
    for method in methods.values() if isinstance(methods, dict) else ():
        if isinstance(method, dict) and isinstance(probe := method.get("probe"), dict):
            beside(probe, "skill", Path(path).parent)
    try:
        return Comparison.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}") from None
