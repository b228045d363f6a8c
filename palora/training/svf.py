"""Singular value fine-tuning layers, and the expert that they make: W <- W(z) = U diag(s · z) Vᵀ
(`algebra/scales.py`)."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from palora.algebra.decomposition import Decomposition, cached_decomposition, decompose_each, reconstructs
from palora.algebra.scales import START, Parametrisation, effective_scale, expert_delta
from palora.common.errors import InputError
from palora.common.files import load_tensors, save_tensors
from palora.common.folders import check_unchanged, new_folder, read_marker, seal
from palora.common.progress import progress_bar
from palora.language.models import EXPERT as MARKER
from palora.language.models import REST, fingerprints, is_made_for, known_targets, load_model, save_model
from palora.language.targets import is_transposed, weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALES = "scales.safetensors"
MODEL = "model"  # the folder of the expert's weights


class SVF(nn.Module):
    """The weight of a linear module as W(z), a parametrisation of `torch.nn.utils.parametrize`, and the gradient of z.

    W(z) is built when z has changed, so once a step, in the dtype of W and without a graph. The gradient of the scales
    c = s (z − 1) comes from the inputs x (n,) and the gradients g (m,) of the outputs of all tokens:

        dL/dc = Σ (Uᵀ g) ∘ (Vᵀ x)

    That is 2 r (m + n) operations a token, where a graph through U diag(c) Vᵀ takes 6 m n r for every batch beside the
    gradient of W(z), and keeps both matrices until then.
    """

    def __init__(self, module: nn.Module, d: Decomposition, parametrisation: Parametrisation) -> None:
        super().__init__()
        self.parametrisation: Parametrisation = parametrisation
        self.transposed = is_transposed(module)
        dtype = weight(module).dtype
        self.U: Tensor
        self.s: Tensor
        self.Vh: Tensor
        self.register_buffer("U", d.U.to(dtype), persistent=False)
        self.register_buffer("s", d.s, persistent=False)
        self.register_buffer("Vh", d.Vh.to(dtype), persistent=False)
        self.p = nn.Parameter(torch.full_like(d.s, START[parametrisation]))
        # W(z) as W is stored, and the version of p that it is of.
        self._built, self._version = torch.empty_like(module.weight), -1  # type: ignore[arg-type]

    def scale(self) -> Tensor:
        """z_eff (r,), differentiable."""
        return effective_scale(self.p, self.s, self.parametrisation)

    @torch.no_grad()
    def forward(self, stored: Tensor) -> Tensor:
        """W(z), in the layout of the stored weight."""
        if self._version != self.p._version:
            delta = expert_delta(Decomposition(self.U, self.s, self.Vh), self.scale())
            torch.add(stored, delta.T if self.transposed else delta, out=self._built)
            self._version = self.p._version
        return self._built

    def listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The output of the module as it is (a forward hook); its gradient is the scales' too."""
        if not torch.is_grad_enabled():
            return output
        return _Listening.apply(output, inputs[0], self.s * (self.scale() - 1), self.U, self.Vh)


class _Listening(torch.autograd.Function):
    """y -> y, with dL/dc = Σ (Uᵀ g) ∘ (Vᵀ x) on the way back."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, c: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
        ctx.save_for_backward(x, U, Vh)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        x, U, Vh = ctx.saved_tensors
        carried = (g.flatten(0, -2) @ U).float() * (x.flatten(0, -2) @ Vh.T).float()
        return g, None, carried.sum(0), None, None


@contextmanager
def svf_layers(
    targets: dict[str, nn.Module], decomposed: Iterable[tuple[str, Decomposition]], parametrisation: Parametrisation
) -> Iterator[dict[str, SVF]]:
    """While open, the weight of every targeted module is W(z), with z trainable; afterwards it is W again.

    Args:
        decomposed: what `decompose_targets` makes of the targets; taken one by one, U and V kept in the dtype of W.

    Yields: the SVF of each module path; train their `p`, read their `scale()`.
    """
    layers: dict[str, SVF] = {}
    hooks: list[RemovableHandle] = []
    try:
        for name, d in decomposed:
            module = targets[name]
            layers[name] = SVF(module, d, parametrisation)
            # unsafe: the parametrisation maps a weight to another of the same shape, and needs no right inverse
            parametrize.register_parametrization(module, "weight", layers[name], unsafe=True)
            hooks.append(module.register_forward_hook(layers[name].listen))
        yield layers
    finally:
        for hook in hooks:
            hook.remove()
        for module in targets.values():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def decompose_targets(model: nn.Module, targets: dict[str, nn.Module]) -> Iterator[tuple[str, Decomposition]]:
    """The decomposition of every targeted matrix of a model, one after the other: all of a model of 8B are 27 GiB."""
    with progress_bar("Decomposing", len(targets)) as advance:
        matrices = ((name, weight(module)) for name, module in targets.items())
        yield from decompose_each(matrices, fingerprints(targets, model), advance)


@dataclass(frozen=True)
class Expert:
    """The scales that singular value fine-tuning found for a skill (arXiv 2501.06252), and their record.

    Args:
        scales: z_eff (r,) of every targeted matrix, by module path; r is the smaller side of the matrix.
        record: `model` and `fingerprints` are of the original model, whose components are scaled;
            `expert_fingerprints` of the model that they make of it.
        singular_values: s (r,), by module path, to look at the scales along the spectrum.
    """

    scales: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    singular_values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def moved(self) -> float:
        """The largest change of any scale, max abs(z − 1): 0 where the untouched base was the best."""
        return max((float((z - 1).abs().max()) for z in self.scales.values()), default=0.0)

    def is_base_of(self, record: Mapping[str, Any]) -> bool:
        """Whether the adapter of a record was trained on the model that these scales make."""
        made, prints = self.record.get("expert_fingerprints") or {}, record.get("fingerprints") or {}
        return bool(prints) and all(made.get(name) == value for name, value in prints.items())

    def save(
        self,
        folder: str | Path,
        metrics: Path | None = None,
        model: "PreTrainedModel | None" = None,
        source: str | Path | None = None,
    ) -> None:
        """Write `scales.safetensors` and `expert.json`, atomically, a copy of the training curve `metrics`, and in
        `model/` the weights of `model`, which has the scales applied; `source` is where the original is."""
        with new_folder(Path(folder), MARKER) as staging:
            if metrics is not None:
                shutil.copy(metrics, staging / "metrics.jsonl")
            save_tensors(staging / SCALES, self.scales)
            if self.singular_values:
                save_tensors(staging / "singular_values.safetensors", self.singular_values)
            if model is not None:
                save_model(model, source or self.record["model"], staging / MODEL)
            seal(staging, MARKER, self.record)

    @classmethod
    def load(cls, folder: str | Path) -> "Expert":
        """Read a folder that `save` wrote. Raises InputError if it is not one, or has changed since."""
        folder = Path(folder)
        if not (folder / MARKER).exists():
            raise InputError(f"{folder} is not an expert folder (no {MARKER}); train one with `palora expert`")
        record = read_marker(folder, MARKER, "fingerprints")
        scales = load_tensors(folder / SCALES)
        if set(scales) != set(record["fingerprints"]) - {REST}:
            raise InputError(f"{folder}: {SCALES} and {MARKER} name different matrices; train it again")
        check_unchanged(folder, record, SCALES)
        return cls(scales, record)

    def targets(self, model: nn.Module, name: str, targets: list[str] | None = None) -> dict[str, nn.Module]:
        """The modules of the original model that are scaled. Raises InputError unless `model` is that model, and
        `targets`, where given, name the same modules."""
        return known_targets(model, self.record["fingerprints"], "the expert", name, targets)

    def marked(self, model: nn.Module, name: str, targets: list[str] | None = None) -> dict[str, nn.Module]:
        """The same modules, of the original model or of the expert. Raises InputError on any other model."""
        made = self.record.get("expert_fingerprints")
        if made and is_made_for(model, made):
            return known_targets(model, made, "the expert", name, targets)
        return self.targets(model, name, targets)

    @torch.no_grad()
    def apply(self, model: nn.Module, name: str = "the model") -> None:
        """Turn the original model into the expert, in place: W <- W(z). Raises InputError on another model."""
        targets = self.targets(model, name)
        for path, d in decompose_targets(model, targets):
            weight(targets[path]).add_(expert_delta(d, self.scales[path].to(d.s.device)))


def components(expert: Expert, model: nn.Module, targets: dict[str, nn.Module]) -> Iterator[tuple[str, Decomposition]]:
    """The components that the scales of an expert belong to, one matrix after the other: those of the *original*
    weights, whichever of the two models is at hand. They come from the cache; from the first one that is gone from it,
    the original model is loaded again."""
    prints, left = expert.record["fingerprints"], dict(targets)
    if is_made_for(model, prints):
        yield from decompose_targets(model, targets)
        return
    for name, module in targets.items():
        W = weight(module)
        d = cached_decomposition(prints[name], W.dtype)
        if d is None or not reconstructs(
            replace(d, s=d.s * expert.scales[name]), W.cpu(), 8 * torch.finfo(W.dtype).eps + 1e-5
        ):
            break
        del left[name]
        yield name, d.to(W.device)
    if left:
        source = expert.record["model"]
        some = next(iter(left.values())).weight
        original, _ = load_model(source, str(some.dtype).removeprefix("torch."), str(some.device))
        whole = expert.targets(original, source)
        yield from decompose_targets(original, {name: whole[name] for name in left})
