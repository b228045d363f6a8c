"""Singular value fine-tuning layers, and the expert that they make: W <- W(z) = U diag(s · z) Vᵀ
(`algebra/scales.py`)."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palora.algebra.decomposition import Decomposition, cached_decomposition, decompose_all, reconstructs
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
    """A parametrisation (`torch.nn.utils.parametrize`) of the weight of a linear module: W -> W(z)."""

    def __init__(self, d: Decomposition, parametrisation: Parametrisation, transposed: bool = False) -> None:
        super().__init__()
        self.parametrisation: Parametrisation = parametrisation
        self.transposed = transposed
        self.U: Tensor
        self.s: Tensor
        self.Vh: Tensor
        self.register_buffer("U", d.U, persistent=False)
        self.register_buffer("s", d.s, persistent=False)
        self.register_buffer("Vh", d.Vh, persistent=False)
        self.p = nn.Parameter(torch.full_like(d.s, START[parametrisation]))

    def scale(self) -> Tensor:
        """z_eff (r,), differentiable."""
        return effective_scale(self.p, self.s, self.parametrisation)

    def forward(self, stored: Tensor) -> Tensor:
        delta = expert_delta(Decomposition(self.U, self.s, self.Vh), self.scale())
        return (stored + (delta.T if self.transposed else delta)).to(stored.dtype)


@contextmanager
def svf_layers(
    targets: dict[str, nn.Module], decompositions: dict[str, Decomposition], parametrisation: Parametrisation
) -> Iterator[dict[str, SVF]]:
    """While open, the weight of every targeted module is W(z), with z trainable; afterwards it is W again.

    Yields: the SVF of each module path; train their `p`, read their `scale()`.
    """
    layers: dict[str, SVF] = {}
    try:
        for name, module in targets.items():
            layers[name] = SVF(decompositions[name], parametrisation, is_transposed(module))
            # unsafe: the parametrisation maps a weight to another of the same shape, and needs no right inverse
            parametrize.register_parametrization(module, "weight", layers[name], unsafe=True)
        yield layers
    finally:
        for module in targets.values():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def decompose_targets(model: nn.Module, targets: dict[str, nn.Module]) -> dict[str, Decomposition]:
    """The decomposition of every targeted matrix of a model."""
    with progress_bar("Decomposing", len(targets)) as advance:
        matrices = {name: weight(module) for name, module in targets.items()}
        return decompose_all(matrices, fingerprints(targets, model), advance)


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
        for path, d in decompose_targets(model, targets).items():
            weight(targets[path]).add_(expert_delta(d, self.scales[path].to(d.s.device)))


def components(expert: Expert, model: nn.Module, targets: dict[str, nn.Module]) -> dict[str, Decomposition]:
    """The components that the scales of an expert belong to: those of the *original* weights, whichever of the two
    models is at hand. They come from the cache; where they are gone from it, the original model is loaded again."""
    prints = expert.record["fingerprints"]
    if is_made_for(model, prints):
        return decompose_targets(model, targets)
    found = {}
    for name, module in targets.items():
        W = weight(module)
        d = cached_decomposition(prints[name], W.dtype)
        if d is None or not reconstructs(
            replace(d, s=d.s * expert.scales[name]), W.cpu(), 8 * torch.finfo(W.dtype).eps + 1e-5
        ):
            break
        found[name] = d.to(W.device)
    else:
        return found
    source = expert.record["model"]
    dtype = str(next(iter(targets.values())).weight.dtype).removeprefix("torch.")
    original, _ = load_model(source, dtype, str(next(model.parameters()).device))
    return decompose_targets(original, expert.targets(original, source))
