"""The protected subspace of a matrix: what an update may not touch.

For W (m × n) it is an input basis V (n × k) and an output basis U (m × k), either of which may be missing. One line
serves every rule:

    A' = c (A − (A V) Vᵀ)        B' = B − U (Uᵀ B)

*Hard*: V has orthonormal columns and c = 1, so A' = A P_R with the projector P_R = I − V Vᵀ, and for ΔW = B' A'

    (W + ΔW) v = W v for every v in span(V),    uᵀ (W + ΔW) = uᵀ W for every u in span(U).

*Soft*: V = E diag(sqrt(w)) with orthonormal E and weights w in [0, 1), so A' = c A (I − E diag(w) Eᵀ): direction e_i
is attenuated by c (1 − w_i), every direction outside E by c, and none is removed. Only the hard form has a leak that
must vanish.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palora.algebra.statistics import Statistics
from palora.common.errors import InputError
from palora.common.files import load_tensors, save_tensors
from palora.common.folders import check_unchanged, new_folder, read_marker, seal

MARKER = "protection.json"
BASES = "subspaces.safetensors"
STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class ProtectedSubspace:
    """The protected bases of one matrix W (m × n).

    Args:
        input: V (n, k_in), float32; None: no input is protected.
        output: U (m, k_out), float32; None: no output is.
        scale: c, 1 but for a soft rule that knows only the leading directions of its inputs.
    """

    input: Tensor | None = None
    output: Tensor | None = None
    scale: float = 1.0

    def project_input(self, A: Tensor) -> Tensor:
        """A' = c (A − (A V) Vᵀ) for A (r, n)."""
        if self.input is not None:
            A = A - (A @ self.input) @ self.input.T
        return A if self.scale == 1 else self.scale * A

    def project_output(self, B: Tensor) -> Tensor:
        """B' = B − U (Uᵀ B) for B (m, r)."""
        return B if self.output is None else B - self.output @ (self.output.T @ B)

    def unproject_input(self, folded: Tensor) -> Tensor:
        """An A (r, n) that `project_input` takes to `folded`.

        For the soft form the projection is invertible, (I − V Vᵀ)⁻¹ = I + V diag(1 / (1 − w)) Vᵀ with w = ‖column‖²;
        for the hard form `folded` is its own image.
        """
        folded = folded if self.scale == 1 else folded / self.scale
        if self.input is None:
            return folded
        remaining = 1 - self.input.square().sum(0)
        gain = torch.where(remaining > 1e-5, 1 / remaining.clamp_min(1e-5), 0.0)
        return folded + (folded @ self.input * gain) @ self.input.T

    @torch.no_grad()
    def leak(self, delta: Tensor) -> float:
        """max(‖Uᵀ ΔW‖, ‖ΔW V‖) / ‖ΔW‖ (Frobenius) for ΔW (m, n): the share of the update inside the protected
        subspace. 0 for no update. Only meaningful for the hard form."""
        norm = delta.norm()
        if norm == 0:
            return 0.0
        sides = [torch.zeros(())]
        if self.input is not None:
            sides.append((delta @ self.input).norm().cpu())
        if self.output is not None:
            sides.append((self.output.T @ delta).norm().cpu())
        return float(max(sides) / norm.cpu())

    def to(self, where: torch.device | torch.dtype | str) -> "ProtectedSubspace":
        """The same subspace on another device or in another dtype."""
        V, U = (None if basis is None else basis.to(where) for basis in (self.input, self.output))
        return ProtectedSubspace(V, U, self.scale)


@dataclass(frozen=True, repr=False)
class ProtectedSubspaces(Mapping[str, ProtectedSubspace]):
    """The protected subspace of every targeted matrix, and the record of how it was found: what `protect` returns.

    Args:
        subspaces: by module path.
        record: what `protection.json` holds: rule, sides, budget, hard, fingerprints, coverage, and for each module
            its k, the indices of its protected components and their scores.
        statistics: of the inputs of everything that is to be kept: drift is measured on the skills', and the loss of
            stage 2 weighs all of them.
    """

    subspaces: dict[str, ProtectedSubspace]
    record: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)

    def __repr__(self) -> str:
        return f"ProtectedSubspaces({self.record.get('rule', 'of no rule')}, {len(self)} matrices)"

    def __getitem__(self, name: str) -> ProtectedSubspace:
        return self.subspaces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.subspaces)

    def __len__(self) -> int:
        return len(self.subspaces)

    @property
    def hard(self) -> bool:
        """Whether the constraint removes its directions (True) or only attenuates them (False, rule `covariance`)."""
        return bool(self.record.get("hard", True))

    @property
    def protects(self) -> bool:
        """Whether anything is protected: not so under the rule `none`."""
        return any(s.input is not None or s.output is not None for s in self.subspaces.values())

    def save(self, folder: str | Path) -> None:
        """Write `subspaces.safetensors`, `statistics.safetensors` and `protection.json`, atomically."""
        tensors = {
            f"{name}.{side}": basis
            for name, subspace in self.subspaces.items()
            for side in ("input", "output")
            if (basis := getattr(subspace, side)) is not None
        }
        modules = self.record.get("modules") or {name: {} for name in self.subspaces}
        modules = {name: {**modules.get(name, {}), "scale": own.scale} for name, own in self.subspaces.items()}
        with new_folder(Path(folder), MARKER) as staging:
            save_tensors(staging / BASES, tensors)
            if self.statistics:
                save_tensors(staging / STATISTICS, self.statistics.tensors())
            seal(staging, MARKER, {**self.record, "modules": modules, "inputs_of": dict(self.statistics.inputs)})

    @classmethod
    def load(cls, folder: str | Path) -> "ProtectedSubspaces":
        """Read a folder that `save` wrote. Raises InputError if it is not one, or has changed since."""
        folder = Path(folder)
        if not (folder / MARKER).exists():
            raise InputError(f"{folder} is not a protection folder (no {MARKER}); make one with `palora protect`")
        record = read_marker(folder, MARKER, "rule", "modules")
        tensors = load_tensors(folder / BASES)
        modules = record["modules"]
        found = {key: basis.shape[1] for key, basis in tensors.items() if basis.ndim == 2}
        sides = ("input", "output")
        stated = {f"{name}.{side}": m.get(f"k_{side}") for name, m in modules.items() for side in sides}
        odd = set(tensors) - set(stated) | {key for key, k in stated.items() if k not in (None, found.get(key, 0))}
        if odd:  # a basis that is not there would be a constraint that is not there
            raise InputError(f"{folder}: {BASES} and {MARKER} disagree on {sorted(odd)[0]}; make it anew")
        check_unchanged(folder, record, BASES)
        statistics = Statistics()
        if (folder / STATISTICS).exists():
            check_unchanged(folder, record, STATISTICS)
            statistics = Statistics.from_tensors(load_tensors(folder / STATISTICS), record.get("inputs_of") or {})
        subspaces = {
            name: ProtectedSubspace(tensors.get(f"{name}.input"), tensors.get(f"{name}.output"), m.get("scale", 1.0))
            for name, m in modules.items()
        }
        return cls(subspaces, record, statistics)
