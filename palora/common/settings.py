"""The settings of every stage: one list of names, defaults and help texts. The command line's options are made of them,
and a recipe (`front/recipe.py`) is made of them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

BUDGET = ("k", "fraction", "share", "strength")  # of a protection: one of them
ADDED = ("drift", "replay", "distil")  # to the loss
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Bits = Literal["4bit", "8bit"]  # that weights are quantised to when they are loaded
UNTELLING = {"report_to"}  # settings that change nothing of the result
# What an arm does without unless it says so: plain LoRA is taught the answers as they are.
PLAIN: dict[str, Any] = {**dict.fromkeys(ADDED, 0.0), "lose_at_most": None, "targets_by": "bare"}


class Settings(BaseModel):
    """What every settings class is: frozen, without unknown keys, NaN or infinity. A field's description is its help
    text; `flag` names its option where that is not the field's own name."""

    # Built when it is first used: a help text needs no validators.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def identity(self) -> dict[str, Any]:
        """For `folders.same_inputs`: every setting, and those that differ from the defaults."""
        every = self.model_dump(mode="json", exclude=UNTELLING)
        return {"all": every, "stated": self.model_dump(mode="json", exclude=UNTELLING, exclude_defaults=True)}


class ExpertSettings(Settings):
    """Stage 1: the singular value fine-tuning expert."""

    objective: Literal["reward", "next_token"] = Field(
        "reward", description="reward: REINFORCE on verifiable answers; next_token: the gold solutions' loss (cheap)"
    )
    parametrisation: Literal["linear", "sigmoid"] = Field("sigmoid", description="how z follows from what is trained")
    iterations: int = Field(200, ge=1, description="optimizer steps")
    batch_size: int = Field(256, ge=1, description="problems a step")
    rollout_batch_size: int = Field(64, ge=1, description="answers generated at once")
    micro_batch_size: int = Field(8, ge=1, description="answers in memory at once for the gradient")
    gradient_checkpointing: bool = Field(False, description="less memory of a micro-batch, a third more time")
    learning_rate: float = Field(2e-3, gt=0, description="Adam")
    max_grad_norm: float = Field(1e-3, gt=0, description="gradient clip over all scales")
    temperature: float = Field(0.0, ge=0, description="of the rollouts; 0 is greedy")
    baseline: bool = Field(False, description="subtract the batch's mean reward")
    validate_every: int = Field(10, ge=1, description="steps between validations; the best one is kept")
    validation_size: int = Field(256, ge=1, description="validation problems a skill")
    train_size: int | None = Field(None, ge=1, description="training problems a skill; all by default")


class KeepSettings(Settings):
    """What is to be kept: relative weights of what a rule looks at. The skills only, unless weighed otherwise."""

    skills: float = Field(1.0, ge=0, description="weight of the skills, shared equally")
    known_facts: float = Field(0.0, ge=0, description="weight of the known facts")
    text: float = Field(0.0, ge=0, description="weight of the plain text")
    prompts: float = Field(0.0, ge=0, description="weight of the prompts, with the model's own answers")
    examples: int = Field(512, ge=1, description="examples taken of each", json_schema_extra={"flag": "--examples"})

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each kind."""
        return {kind: getattr(self, kind) for kind in ("skills", "known_facts", "text", "prompts")}


class KeepAllSettings(KeepSettings):
    """Relative weights of what the loss keeps. Everything alike, unless weighed otherwise."""

    known_facts: float = Field(1.0, ge=0, description="weight of the known facts")
    text: float = Field(1.0, ge=0, description="weight of the plain text")
    prompts: float = Field(1.0, ge=0, description="weight of the prompts, with the model's own answers")


class ProtectSettings(Settings):
    """The protected subspace. One of k, fraction, share and strength; the soft rules have a default."""

    rule: str = Field("covariance", description="what to protect: covariance, svf, sigma, random, activation or none")
    k: int | None = Field(None, description="protected directions a matrix")
    fraction: float | None = Field(None, description="… as a fraction of the rank")
    share: float | None = Field(None, description="… as a share of the importance (activation: of the input energy)")
    strength: float | None = Field(None, description="of the soft rule covariance; 1 by default")
    sides: Literal["both", "input", "output"] | None = Field(None, description="both, input or output; by the rule")
    keep: KeepSettings = Field(
        default_factory=KeepSettings,  # type: ignore[arg-type]
        description="weights of what the rule looks at",
    )


class InjectSettings(Settings):
    """Stage 2: LoRA on the facts."""

    targets: list[str] | None = Field(
        None,
        description="endings of the matrices that are taught; all by default",
        json_schema_extra={"flag": "--teach"},
    )
    targets_by: Literal["model", "bare", "mixed", "sdft"] | None = Field(
        None,
        description="what is trained: model, the fact in the model's own words; bare, the answer; mixed (MixSD); sdft "
        "(TRL's self-distillation); by default model where there is a chat template",
    )
    wordings: int = Field(1, ge=1, description="questions a fact is taught by: its own, and others by the model")
    samples: int = Field(1, ge=1, description="own answers to each of them")
    r: int = Field(32, ge=1, description="rank of the adapter")
    lora_alpha: int = Field(64, ge=1, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    learning_rate: float = Field(4e-4, gt=0, description="AdamW")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field("constant", description="over the epochs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clip")
    epochs: int = Field(30, ge=1, description="at most this many passes over the facts")
    batch_size: int = Field(8, ge=1, description="facts a step")
    paraphrases: bool = Field(False, description="train on the paraphrases too (then paraphrase recall proves nothing)")
    lose_at_most: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of a skill that may be lost: where more is, drift is doubled, and that undone",
    )
    lose_problems: int = Field(200, ge=1, description="validation problems a skill that lose_at_most is measured on")
    stop_at_recall: float | None = Field(0.98, gt=0, le=1, description="stop when recall on the facts reaches this")
    recall_every: float = Field(
        2, gt=0, description="epochs between the recall checks, 0.5 twice an epoch; one is last"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; an epoch by default")
    keep: KeepAllSettings = Field(
        default_factory=KeepAllSettings,  # type: ignore[arg-type]
        description="weights of what drift, replay and distil keep; examples are of the last two",
    )
    drift: float = Field(
        20_000, ge=0, description="λ of λ / n · drift² on what the protection saw, beside the mean loss of the n facts"
    )
    replay: float = Field(0.0, ge=0, description="ρ: weight of the loss on rows of what is kept, beside the facts'")
    distil: float | None = Field(
        None,
        ge=0,
        description="κ: weight of KL(start ‖ now) on such rows; by default 1 where own words are taught, else 0",
    )
    kept_batch_size: int = Field(8, ge=1, description="such rows a step, for replay and distil")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    bf16: bool | None = Field(None, description="bfloat16 autocast while training; by default on a GPU")
    report_to: str = Field(
        "none",
        description="where the curve is also logged: none, tensorboard, wandb or another that transformers knows",
    )

    @field_validator("recall_every")
    @classmethod
    def _whole(cls, value: float) -> float:
        return int(value) if value == int(value) else value  # 1.0 and 1 are one setting, and one hash

    @property
    def added(self) -> dict[str, float]:
        """What is added to the loss, by its weight: drift, replay, distil."""
        return {term: weight for term in ADDED if (weight := getattr(self, term))}

    @property
    def rehearses(self) -> bool:
        """Whether rows of what is kept are shown while training."""
        return bool(self.replay or self.distil)


class EvaluateSettings(Settings):
    """What is measured, by free greedy generation."""

    problems: int = Field(400, ge=1, description="test problems a skill")
    facts: int | None = Field(
        None, ge=1, description="at most this many facts; all by default", json_schema_extra={"flag": "--max-facts"}
    )
    num_fewshot: int = Field(0, ge=0, description="solved training problems before each of them, as in lm-eval")
    batch_size: int = Field(64, ge=1, description="prompts a batch")
    max_answer_tokens: int = Field(32, ge=1, description="length limit of an answer to a fact")
    answers: int = Field(10, ge=0, description="answers of every arm shown side by side in the report")
    harness: list[str] = Field(
        default_factory=list, description="tasks of lm-eval that judge every arm too, with commas: gsm8k,arc_easy"
    )
    harness_tasks: str | None = Field(None, description="a folder with tasks of your own for it, lm-eval's YAML")
    harness_limit: int | None = Field(None, ge=1, description="the first so many questions of each; all by default")
    harness_chat: bool = Field(False, description="ask lm-eval's questions by the model's chat template")


class ExportSettings(Settings):
    """How an adapter is written in another form."""

    dtype: Dtype = Field("auto", description="of a merged checkpoint; auto is the model's own")
    max_drift: float = Field(0.01, ge=0, description="refuse a merge whose rounding moves a matrix's outputs by more")
    k: int | None = Field(None, ge=1, description="expert components in a combined adapter; by default by --max-lost")
    max_lost: float = Field(0.01, ge=0, description="refuse a combined adapter that loses more of the expert's change")


# The published settings of the closest public code. Which components count as protected, k and the sides are not
# established by the paper: they are decisions, named in docs/design.md. The expert's are the defaults.
_PAPER = {
    "targets_by": "bare",
    "r": 16,
    "lora_alpha": 32,
    "learning_rate": 2e-4,
    "epochs": 10,
    "drift": 0.0,
    "stop_at_recall": None,
}
PRESETS = {"paper": {"expert": {}, "protect": {"rule": "svf", "k": 64, "sides": "both"}, "inject": _PAPER}}
