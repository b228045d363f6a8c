"""Collect what goes into the matrices of a model while it reads some text: one pass, one sum an input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palora.algebra.statistics import Covariance, InputStatistics, shortened
from palora.common.errors import InputError
from palora.common.progress import progress_bar, waiting
from palora.language.prompts import Example, batches, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def shared_inputs(model: "PreTrainedModel", targets: Mapping[str, nn.Module]) -> dict[str, str]:
    """The input of every targeted matrix, called by the first matrix that reads it: gate and up are given one tensor.

    Found by asking: two modules that are handed the same tensor in one forward pass share it.
    """
    seen: list[tuple[Tensor, str]] = []
    inputs: dict[str, str] = {}

    def read(name: str, x: Tensor) -> None:
        inputs[name] = next((first for other, first in seen if other is x), name)
        seen.append((x, name))

    with _reading(targets, read):
        _inner(model)(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    return {name: inputs[name] for name in targets if name in inputs}


@torch.no_grad()
def collect(
    model: "PreTrainedModel",
    targets: Mapping[str, nn.Module],
    inputs: Mapping[str, str],
    examples: Sequence[Example],
    label: str = "the text",
    batch_size: int = 8,
) -> dict[str, InputStatistics]:
    """The statistics of every input (`shared_inputs`), of trace 1, over the tokens of `examples` (prompt and answer).

    The first token of a text is left out: it is where a pretrained model's attention rests when it looks for nothing,
    and its inputs are of another size than all others'. Padding never counts.

    Raises: InputError without text, or where the inputs are not finite.
    """
    sums: dict[str, Covariance] = {}

    def add(name: str, rows: Tensor) -> None:
        if name not in sums:
            sums[name] = Covariance(rows.shape[-1], rows.device)
        sums[name].add(rows)

    _read(model, {name: targets[name] for name in dict.fromkeys(inputs.values())}, examples, label, add, batch_size)
    found = {}
    with waiting(f"Main directions of {label}"):
        for name in list(sums):
            try:
                found[name] = sums.pop(name).statistics()  # a sum is let go as soon as it is used
            except InputError as error:
                raise InputError(f"the inputs of {name} are {error}") from None
    return found


@torch.no_grad()
def covered(
    model: "PreTrainedModel",
    targets: Mapping[str, nn.Module],
    bases: Mapping[str, Tensor | None],
    examples: Sequence[Example],
    label: str,
) -> dict[str, float]:
    """tr(Vᵀ C V) / tr C = Σ ‖Vᵀ x‖² / Σ ‖x‖² of every matrix with its basis V (n, k), without ever having C."""
    inside, whole = dict.fromkeys(targets, 0.0), dict.fromkeys(targets, 0.0)

    def add(name: str, rows: Tensor) -> None:
        rows, V = shortened(rows.float()), bases[name]
        whole[name] += float(rows.square().sum())
        inside[name] += 0.0 if V is None else float((rows @ V.to(rows.device)).square().sum())

    _read(model, targets, examples, label, add)
    return {name: inside[name] / whole[name] for name in targets}


def _read(
    model: "PreTrainedModel",
    modules: Mapping[str, nn.Module],
    examples: Sequence[Example],
    label: str,
    add: Callable[[str, Tensor], None],
    batch_size: int = 8,
) -> None:
    """Let the model read the examples; `add(name, rows)` is called with the inputs of each module, but for padding and
    the first token of each text."""
    counted: Any = None
    tokens = 0
    with (
        # some hand their MLP the tokens of all texts in one row (OPT)
        _reading(modules, lambda name, x: add(name, x.reshape(*counted.shape, -1)[counted])),
        progress_bar(f"Inputs of {label}", len(examples)) as advance,
    ):
        for group in batches([len(e.prompt) + len(e.answer) for e in examples], batch_size):
            ids, attended, _ = pad([examples[i] for i in group], model.device)
            counted = attended.bool()
            counted[:, 0] = False
            tokens += int(counted.sum())
            if counted.any():
                _inner(model)(input_ids=ids, attention_mask=attended, use_cache=False)
            advance(len(group))
    if not tokens:
        raise InputError(f"no text to collect statistics from: {label} has no passage of two tokens")


def _inner(model: "PreTrainedModel") -> Any:
    """The model without its head: the logits of every token are of no use here, and can be larger than the model."""
    return getattr(model, model.base_model_prefix, model)


@contextmanager
def _reading(modules: Mapping[str, nn.Module], read: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, `read(name, input)` is called whenever one of the modules is."""
    handles = [
        module.register_forward_pre_hook(lambda module, given, name=name: read(name, given[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
