"""Singular value fine-tuning (Transformer², arXiv 2501.06252): one scale per singular component.

    W(z) = U diag(s · z) Vᵀ = W + U diag(s · (z − 1)) Vᵀ,        z in Rʳ, z = 1 is the base model

The second form is the one computed: at z = 1 it is W exactly, whatever the rounding of the SVD. Two parametrisations of
z by the trained vector p (r,), both starting at z_eff = 1:

    linear     z_eff = p
    sigmoid    z_eff = z · Σs / Σ(s·z) with z = sigmoid(p): the sum of the singular values is kept (the reference code)

Only the effective scale z_eff, what really multiplies s, is ever stored or ranked. The components are those of W, or of
W in the basis of the skill's inputs (`decomposition.py`); in the second case the expert carries them with it.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palora.algebra.decomposition import Decomposition, decompose_targets
from palora.common.errors import InputError
from palora.common.files import load_tensors, new_folder, read_json, save_tensors, write_json
from palora.language.models import REST, known_targets
from palora.language.targets import is_transposed, weight

MARKER = "expert.json"
BASIS = "basis.safetensors"
Parametrisation = Literal["linear", "sigmoid"]
_SIGMOID_START = 0.1  # any constant gives z_eff = 1; the reference code starts around 0.1


def effective_scale(p: Tensor, s: Tensor, parametrisation: Parametrisation) -> Tensor:
    """z_eff (r,) from the trained vector p (r,) and the singular values s (r,)."""
    if parametrisation == "linear":
        return p
    z = torch.sigmoid(p)
    return z * s.sum() / (s * z).sum()


def expert_delta(d: Decomposition, z: Tensor) -> Tensor:
    """U diag(s · (z − 1)) Vᵀ (m, n): what the scales z (r,) change in W."""
    return (d.U * (d.s * (z - 1))) @ d.Vh


def save_basis(path: Path, basis: dict[str, Decomposition], metadata: dict[str, str] | None = None) -> None:
    """Write the components of every matrix."""
    parts = {f"{name}.{part}": tensor for name, d in basis.items() for part, tensor in vars(d).items()}
    save_tensors(path, parts, metadata)


def load_basis(path: Path) -> dict[str, Decomposition]:
    """What `save_basis` wrote. Raises InputError where it is missing or damaged."""
    stored, parts = load_tensors(path), ("U", "s", "Vh", "Y")
    names = dict.fromkeys(key.rpartition(".")[0] for key in stored)
    try:
        return {name: Decomposition(*(stored[f"{name}.{part}"] for part in parts)) for name in names}
    except KeyError as error:
        raise InputError(f"{path}: it has no {error}; train the expert again") from None


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
        self.p = nn.Parameter(torch.full_like(d.s, 1.0 if parametrisation == "linear" else _SIGMOID_START))

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


@dataclass(frozen=True)
class Expert:
    """The frozen effective scales of a skill, one vector z_eff (r,) a module path, and the record of their training
    (base model, fingerprints, parametrisation, skill, objective, accuracies). `singular_values` (s, one vector a module
    path) are only kept for looking at the scales along the spectrum. `basis` holds the components that are scaled,
    where they are not W's own."""

    scales: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    singular_values: dict[str, Tensor] = field(default_factory=dict)
    basis: dict[str, Decomposition] = field(default_factory=dict)

    def save(self, folder: str | Path, metrics: Path | None = None) -> None:
        """Write `scales.safetensors` and `expert.json`, atomically, and a copy of the training curve `metrics`."""
        with new_folder(Path(folder), MARKER) as staging:
            if metrics is not None:
                shutil.copy(metrics, staging / "metrics.jsonl")
            save_tensors(staging / "scales.safetensors", self.scales)
            if self.singular_values:
                save_tensors(staging / "singular_values.safetensors", self.singular_values)
            if self.basis:
                save_basis(staging / BASIS, self.basis)
            write_json(staging / MARKER, self.record)

    @classmethod
    def load(cls, folder: str | Path) -> "Expert":
        """Read a folder that `save` wrote. Raises InputError if it is not one."""
        folder = Path(folder)
        if not (folder / MARKER).exists():
            raise InputError(f"{folder} is not an expert folder (no {MARKER}); train one with `palora expert`")
        record = read_json(folder / MARKER, "fingerprints")
        scales = load_tensors(folder / "scales.safetensors")
        if set(scales) != set(record["fingerprints"]) - {REST}:
            raise InputError(f"{folder}: scales.safetensors and {MARKER} name different matrices; train it again")
        basis = load_basis(folder / BASIS) if record.get("basis") == "skill" else {}
        if basis and {name: z.shape for name, z in scales.items()} != {name: d.s.shape for name, d in basis.items()}:
            raise InputError(f"{folder}: scales.safetensors and {BASIS} do not go together; train it again")
        return cls(scales, record, basis=basis)

    def decompositions(
        self, targets: dict[str, nn.Module], progress: Callable[[int], None] | None = None
    ) -> dict[str, Decomposition]:
        """The components that the scales belong to: those of the targeted matrices, or the expert's own basis."""
        if not self.basis:
            return decompose_targets(targets, progress)
        return {name: self.basis[name].to(weight(module).device) for name, module in targets.items()}

    def targets(self, model: nn.Module, name: str, targets: list[str] | None = None) -> dict[str, nn.Module]:
        """The modules of `model` the expert was trained on. Raises InputError unless their weights are the same, and
        `targets`, where given, name the same modules."""
        return known_targets(model, self.record["fingerprints"], "the expert", name, targets)

    @torch.no_grad()
    def apply(
        self,
        model: nn.Module,
        name: str = "the model",
        decompositions: dict[str, Decomposition] | None = None,
    ) -> None:
        """Turn the base model into the expert, in place: W <- W(z). Raises InputError on another model.

        Args:
            name: what error messages call the model.
            decompositions: the components that are scaled, where they are at hand.
        """
        targets = self.targets(model, name)
        decompositions = decompositions or self.decompositions(targets)
        for path, module in targets.items():
            d = decompositions[path]
            weight(module).add_(expert_delta(d, self.scales[path].to(d.s.device)))
