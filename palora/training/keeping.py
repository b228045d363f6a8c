"""What is to be kept, in the loss of any Trainer: `Trainer`, `SFTTrainer`, or our own (`injection.py`).

class Mine(SFTTrainer) with compute_loss = SFTTrainer's + drift + replay + distillation (`terms.py`)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from palora.algebra.statistics import Statistics, weighed
from palora.algebra.subspace import ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.settings import InjectSettings
from palora.language.keep import Keep, Kept
from palora.training.terms import Drift, Rehearsal, Term

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = TypeVar("Kind", bound=type)


def keeping(
    trainer: Kind,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: int,
    protection: str | Path | ProtectedSubspaces,
    keep: Keep | None = None,
    settings: InjectSettings | None = None,
    seed: int = 0,
) -> Kind:
    """A trainer class like `trainer`, whose loss also keeps what was there, as `palora inject` does.

    Example:
        >>> kept = keeping(SFTTrainer, model, tokenizer, len(dataset), "run/protection", Keep(prompts=questions))
        >>> kept(model=model, processing_class=tokenizer, train_dataset=dataset).train()

    Args:
        trainer: `transformers.Trainer`, or a class of its kind.
        model: a PEFT model with a fresh adapter (`get_peft_model(model, PaloraConfig(…))`), which will be trained.
        tokenizer: of that model.
        rows: how many the training set has; more of them weigh more against the drift.
        protection: with the statistics of what is kept, for the drift: a folder that `palora protect` wrote, or what
            `protect` returned.
        keep: what distillation holds; without it there is the drift alone.
        settings: drift, replay, distil (by default 1 with `keep`), keep (the weights), kept_batch_size.
        seed: which rows are kept beside which step.

    Returns:
        A class with the name of `trainer` and its arguments.

    Raises:
        InputError: the protection has no statistics, or the model no adapter on what it protects.
    """
    settings = settings or InjectSettings.model_validate({})
    if settings.distil is None:
        settings = settings.model_copy(update={"distil": 1.0 if keep else 0.0})
    loaded = protection if isinstance(protection, ProtectedSubspaces) else ProtectedSubspaces.load(protection)
    layers = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    taught: dict[str, nn.Module] = {
        n: layers[n].get_base_layer() for n in loaded if "default" in getattr(layers.get(n), "lora_A", ())
    }
    if not taught:
        raise InputError("the model has no adapter on what the protection protects: get_peft_model(…) comes first")
    model.eval()  # as it answers, without dropout
    shown = keep.tokenised(model, tokenizer) if keep and settings.rehearses else []
    model.train()
    kept = weighed(shown, settings.keep.weights)
    return with_terms(trainer, loss_terms(settings, rows, loaded.statistics, taught, kept, seed))


def loss_terms(
    settings: InjectSettings,
    rows: int,
    statistics: Statistics,
    modules: Mapping[str, nn.Module],
    kept: Sequence[tuple[float, Kept]],
    seed: int,
) -> list[Term]:
    """What is added to the loss of a training set of `rows`: the drift of the taught `modules` first, where it
    weighs."""
    terms: list[Term] = []
    if settings.drift:
        terms.append(Drift(statistics.weighed(settings.keep.weights, modules), modules, settings.drift / rows))
    if settings.rehearses:
        terms.append(Rehearsal(settings.replay, settings.distil or 0.0, kept, settings.kept_batch_size, seed))
    return terms


def with_terms(trainer: Kind, terms: Sequence[Term]) -> Kind:
    """A trainer class like `trainer`, with `terms` added to its loss while it trains, and told apart where it is
    logged."""

    class Keeping(trainer):  # type: ignore[misc, valid-type]
        _seen: list[list[Any]]  # what every term added since the last log

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._seen = []
            super().__init__(*args, **kwargs)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(model, inputs, *args, **kwargs)
            if not (terms and model.training):
                return found
            each = [term(model, self.state.global_step) for term in terms]
            self._seen.append([value.detach() for value in each])
            added = sum(each) / self._parts(kwargs)
            return (found[0] + added, *found[1:]) if isinstance(found, tuple) else found + added

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs and self._seen:
                means = [float(sum(values)) / len(values) for values in zip(*self._seen, strict=True)]
                parts = {f"loss_{type(term).__name__.lower()}": value for term, value in zip(terms, means, strict=True)}
                logs |= {"loss_facts": logs["loss"] - sum(means), **parts}
                self._seen.clear()
            super().log(logs, *args, **kwargs)

        def _parts(self, given: Mapping[str, Any]) -> int:
            """How many losses are summed, not averaged, to that of a step: each then brings its part of the terms.
            With the number of tokens in hand, transformers divides by that, and not by the accumulated batches."""
            summed = getattr(self, "loss_is_scaled_for_ga", None)  # as transformers decides it
            if summed is None:
                counted = self.model_accepts_loss_kwargs and given.get("num_items_in_batch") is not None
                summed = counted or self.compute_loss_func is not None
            return int(self.current_gradient_accumulation_steps) if summed else 1

    Keeping.__name__ = Keeping.__qualname__ = trainer.__name__
    return Keeping  # type: ignore[return-value]
