"""The settings of every stage: one list of names, defaults and help texts. The command line's options are made of them,
and a recipe (`front/recipe.py`) is made of them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ADDED = ("drift", "replay", "distil")  # to the loss
PLAIN = {**dict.fromkeys(ADDED, 0.0), "lose_at_most": None}  # what an arm does without unless it says so


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExpertSettings(Settings):
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


class KeepSettings(Settings):
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


class ProtectSettings(Settings):
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


class InjectSettings(Settings):
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


class EvaluateSettings(Settings):
    """What is measured, by free greedy generation."""

    problems: int = Field(400, ge=1, description="test problems a skill")
    facts: int | None = Field(None, ge=1, description="at most this many facts; all by default")
    batch_size: int = Field(64, ge=1, description="prompts a batch")
    max_answer_tokens: int = Field(32, ge=1, description="length limit of an answer to a fact")
    answers: int = Field(10, ge=0, description="answers of every arm shown side by side in the report")
