"""Which matrices of a model the method works on: linear modules, by default those of the MLPs.

A *targeted* matrix is a linear weight W (m × n, out × in). `nn.Linear` stores it so; GPT-2's `Conv1D` stores its
transpose. Everything above this file sees (m, n).

An MLP is known by its shape, whatever its model calls it: of the linear layers that a module holds itself,

    gated    two h → m (gate and up) and one m → h        Llama and most that came after it
    fused    one h → 2m (gate and up in one) and one m → h        Phi-3, GLM
    plain    one h → m and one m → h, m ≥ h        GPT-2, OPT, StarCoder2

Of a model that also sees or hears, only the part that writes is looked at. Experts that a model keeps stacked, as one
tensor of three dimensions, are no linear layers: they are neither protected nor taught.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from palora.common.errors import InputError

MLP, ATTENTION = "mlp", "attention"  # in place of endings: all matrices of a kind
_NO_MLP = ("attn", "attention", "temporal", "mamba", "mlstm", "conv", "router")  # in the name of a module
_SENSES = ("vision", "visual", "image", "audio", "speech")


def find_targets(model: nn.Module, targets: list[str] | None = None) -> dict[str, nn.Module]:
    """The targeted linear modules by path, in the model's order.

    Args:
        model: any model made of `nn.Linear` or `Conv1D`.
        targets: endings of module paths (`["down_proj"]`, `["mlp.c_proj"]`), or `mlp` and `attention` for all matrices
            of that kind; by default `mlp`.

    Raises: InputError that lists the candidates, where there is no MLP or an ending matches nothing.
    """
    linears = linear_layers(model)
    kinds = {MLP: mlp_matrices, ATTENTION: attention_matrices}
    chosen: set[str] = set()
    for ending in targets or [MLP]:
        found = kinds[ending](model) if ending in kinds else [n for n in linears if _ends(n, ending)]
        if not found:
            raise InputError(_not_found(model, ending if targets else None))
        chosen |= set(found)
    words = _of_words(model)
    for name in chosen & set(words):
        raise InputError(f"{name} is {words[name]}: it cannot be changed by itself; leave it out of --targets")
    return {name: module for name, module in linears.items() if name in chosen}


def mlp_matrices(model: nn.Module) -> list[str]:
    """The paths of the linear layers of every MLP, found by their shapes. Raises InputError where a layer's experts
    are stacked."""
    found: dict[str, list[str]] = {}
    for name, module in _writing(model):
        stacked = [n for n, p in module.named_parameters(recurse=False) if p.ndim == 3 and "expert" in name.lower()]
        if stacked:
            raise InputError(
                f"the experts of this model are stacked ({name}.{stacked[0]}), which is not supported; teach what is "
                f"not: --targets {ATTENTION}, or the ending of a shared expert: {_candidates(model)}"
            )
        parts = name.lower().split(".")
        if any(map(str.isdigit, parts)) and not any(word in part for part in parts[-2:] for word in _NO_MLP):
            linears = {n: shape(child) for n, child in module.named_children() if is_linear(child)}
            if own := _of_mlp(linears):
                found[name] = [f"{name}.{n}" for n in own]
    # A layer whose MLP is a module of its own may hold two more matrices that look like one, as in Gemma 4.
    outer = {name for name in found for other in found if other.startswith(f"{name}.")}
    return [path for name, paths in found.items() if name not in outer for path in paths]


def _of_mlp(shapes: dict[str, tuple[int, int]]) -> list[str]:
    """Those of the linear layers of a module that make an MLP, by their (out, in); none where there is none."""
    for down, (h, m) in shapes.items():
        inward = [name for name, shape in shapes.items() if shape == (m, h) and name != down]
        fused = [name for name, shape in shapes.items() if shape == (2 * m, h)]
        last = list(shapes)[-1] == down  # of two, as they come: an adapter (h → m → h, m < h) read backwards is an MLP
        if len(inward) == 2 or (len(shapes) == 2 and last and (fused or (inward and m >= h))):
            return [name for name in shapes if name in (*inward, *fused, down)]
    return []


def attention_matrices(model: nn.Module) -> list[str]:
    """The paths of the linear layers of every attention (queries, keys, values, outputs, however they are fused)."""
    return [
        path
        for name, module in _writing(model)
        if "attention" in type(module).__name__.lower()
        for path, inner in module.named_modules(prefix=name)
        if is_linear(inner)
    ]


def _writing(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules, by their paths, of the part of a model that writes: not of what sees and hears."""
    ask: Any = getattr(model, "get_decoder", lambda: model)
    decoder = ask()
    if decoder is None or is_linear(decoder):  # some call the layer that makes words a decoder
        decoder = model
    path = next((name for name, module in model.named_modules() if module is decoder), "")
    for name, module in decoder.named_modules(prefix=path):
        if not any(sense in name.lower() for sense in _SENSES):
            yield name, module


def _of_words(model: nn.Module) -> dict[str, str]:
    """The linear layers that make words, or are tied to the embedding, and what they are."""
    embeddings = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    ask: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = ask()
    found = {}
    for name, module in model.named_modules():
        if is_linear(module) and id(module.weight) in embeddings:
            found[name] = f"tied to {embeddings[id(module.weight)]}"
        elif module is head:
            found[name] = "what makes words of the model's last state"
    return found


def _not_found(model: nn.Module, ending: str | None) -> str:
    if ending is None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        return f"no MLP was found in the architecture {kind!r}; name matrices by --targets: {_candidates(model)}"
    return f"no matrix is named {ending}; candidates for --targets: {_candidates(model)}"


def shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, also of a quantised one."""
    if hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    n, m = module.weight.shape  # type: ignore[misc]
    return int(m), int(n)


def taught(names: Sequence[str], endings: Sequence[str] | None) -> list[str]:
    """Those of the targeted matrices that stage 2 teaches: with one of the `endings`; all where there are none given.

    Raises: InputError for an ending that names none of them.
    """
    if not endings:
        return list(names)
    if missing := [e for e in endings if not any(_ends(name, e) for name in names)]:
        raise InputError(f"inject.targets: none of the targeted matrices is named {missing[0]}")
    return [name for name in names if names_one(endings, name)]


def target_endings(model: nn.Module, names: list[str]) -> list[str]:
    """The shortest endings that name exactly `names` in `model`: `["down_proj", …]`, or the full paths where a short
    ending would also catch another matrix (GPT-2 has a `c_proj` in the attention too)."""
    linears = linear_layers(model)
    endings = sorted({name.rsplit(".", 1)[-1] for name in names})
    caught = [name for name in linears if names_one(endings, name)]
    return endings if sorted(caught) == sorted(names) else sorted(names)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by path, in the model's order."""
    return {name: module for name, module in model.named_modules() if is_linear(module)}


def is_linear(module: nn.Module) -> bool:
    """Whether `module` holds one (m × n) matrix that multiplies its input."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores Wᵀ (n × m), as GPT-2's Conv1D does."""
    return not isinstance(module, nn.Linear)


def weight(module: nn.Module) -> Tensor:
    """The matrix W (m × n) of a targeted module: a view of its storage in its own dtype, or where that is quantised a
    dequantised copy."""
    stored: Tensor = module.weight  # type: ignore[assignment]
    if not stored.is_floating_point():
        from peft.utils.integrations import dequantize_module_weight

        W = dequantize_module_weight(module).detach()
        module.weight = stored  # on a CPU, PEFT leaves a copy there that has lost the scales of 8 bits
        return W
    return stored.detach().T if is_transposed(module) else stored.detach()


def names_one(endings: Iterable[str], name: str) -> bool:
    """Whether one of the endings is that of a matrix."""
    return any(_ends(name, ending) for ending in endings)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _candidates(model: nn.Module) -> str:
    words = _of_words(model)
    linears = [name for name in linear_layers(model) if name not in words]
    return ", ".join(sorted({_short(name) for name in linears})) or "none (the model has no linear layers)"


def _short(name: str) -> str:
    """The last two parts of a path, but not the number of a layer: `mlp.down_proj`, `fc1`."""
    *_, parent, last = ["", *name.split(".")]
    return last if not parent or parent.isdigit() else f"{parent}.{last}"
