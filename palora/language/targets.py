"""Which matrices of a model the method works on: the linear modules, by the endings of their paths.

A *targeted* matrix is a linear weight W (m × n, out × in). `nn.Linear` stores it so; GPT-2's `Conv1D` stores its
transpose. Everything above this file sees (m, n).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from palora.common.errors import InputError

_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

# The MLP matrices of each architecture (config.model_type), as endings of module paths.
MLP_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("llama mistral qwen2 qwen3 gemma gemma2 gemma3_text".split(), _GATED),
    "phi3": ("mlp.gate_up_proj", "mlp.down_proj"),  # gate and up are one fused matrix, decomposed as one
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
}


def find_targets(model: nn.Module, targets: list[str] | None = None) -> dict[str, nn.Module]:
    """The targeted linear modules by path, in the model's order.

    Args:
        model: any model made of `nn.Linear` or `Conv1D`.
        targets: endings of module paths (`["down_proj"]`, `["mlp.c_proj"]`); by default the MLP matrices of the
            model's architecture.

    Raises: InputError that lists the candidates, where the architecture is unknown or an ending matches nothing.
    """
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    architecture = getattr(getattr(model, "config", None), "model_type", None)
    endings = targets or MLP_TARGETS.get(str(architecture))
    if not endings:
        raise InputError(
            f"no default targets for the architecture {architecture!r}; name some by --targets: {_candidates(linears)}"
        )
    missing = [e for e in endings if not any(_ends(name, e) for name in linears)]
    if missing:
        raise InputError(f"no matrix is named {', '.join(missing)}; candidates for --targets: {_candidates(linears)}")
    embedding = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for name, module in linears.items():
        if any(_ends(name, e) for e in endings) and id(module.weight) in embedding:
            tied = embedding[id(module.weight)]
            raise InputError(f"{name} is tied to {tied}: it cannot be changed by itself; leave it out of --targets")
    return {name: module for name, module in linears.items() if any(_ends(name, e) for e in endings)}


def taught(names: Sequence[str], endings: Sequence[str] | None) -> list[str]:
    """Those of the targeted matrices that stage 2 teaches: with one of the `endings`; all where there are none given.

    Raises: InputError for an ending that names none of them.
    """
    if not endings:
        return list(names)
    if missing := [e for e in endings if not any(_ends(name, e) for name in names)]:
        raise InputError(f"inject.targets: none of the targeted matrices is named {missing[0]}")
    return [name for name in names if any(_ends(name, e) for e in endings)]


def target_endings(model: nn.Module, names: list[str]) -> list[str]:
    """The shortest endings that name exactly `names` in `model`: `["down_proj", …]`, or the full paths where a short
    ending would also catch another matrix (GPT-2 has a `c_proj` in the attention too)."""
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    caught = [name for name in linears if any(_ends(name, e) for e in endings)]
    return endings if sorted(caught) == sorted(names) else sorted(names)


def is_linear(module: nn.Module) -> bool:
    """Whether `module` holds one (m × n) matrix that multiplies its input."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores Wᵀ (n × m), as GPT-2's Conv1D does."""
    return not isinstance(module, nn.Linear)


def weight(module: nn.Module) -> Tensor:
    """The matrix W (m × n) of a targeted module, a view of its storage in its own dtype."""
    stored: Tensor = module.weight  # type: ignore[assignment]
    if not stored.is_floating_point():
        raise InputError("the model's weights are quantised; decompose the unquantised model")
    return stored.detach().T if is_transposed(module) else stored.detach()


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _candidates(linears: dict[str, Any]) -> str:
    endings = sorted({_short(name) for name in linears})
    return ", ".join(endings) or "none (the model has no linear layers)"


def _short(name: str) -> str:
    """The last two parts of a path, but not the number of a layer: `mlp.down_proj`, `fc1`."""
    *_, parent, last = ["", *name.split(".")]
    return last if not parent or parent.isdigit() else f"{parent}.{last}"
