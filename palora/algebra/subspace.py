"""The protected subspace of a matrix: what an update may not touch.

For W (m × n) it is an input basis V (n × k) and an output basis U (m × k), either of which may be missing. One line
serves every rule:

    A' = A − (A V) Vᵀ        B' = B − U (Uᵀ B)

*Hard*: V has orthonormal columns, so A' = A P_R with the projector P_R = I − V Vᵀ, and for ΔW = B' A'

    (W + ΔW) v = W v for every v in span(V),    uᵀ (W + ΔW) = uᵀ W for every u in span(U).

*Soft*: V = E diag(sqrt(w)) with orthonormal E and weights w in [0, 1), so A' = A (I − E diag(w) Eᵀ): the direction e_i
is attenuated by 1 − w_i and not removed. Only the hard form has a leak that must vanish.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palora.common.errors import InputError
from palora.common.files import load_tensors, new_folder, read_json, save_tensors, write_json

MARKER = "protection.json"
STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class ProtectedSubspace:
    """The protected bases of one matrix W (m × n): `input` (n, k_in) and `output` (m, k_out), float32 or None."""

    input: Tensor | None = None
    output: Tensor | None = None

    def project_input(self, A: Tensor) -> Tensor:
        """A' = A − (A V) Vᵀ for A (r, n)."""
        return A if self.input is None else A - (A @ self.input) @ self.input.T

    def project_output(self, B: Tensor) -> Tensor:
        """B' = B − U (Uᵀ B) for B (m, r)."""
        return B if self.output is None else B - self.output @ (self.output.T @ B)

    def unproject_input(self, folded: Tensor) -> Tensor:
        """An A (r, n) that `project_input` takes to `folded`.

        For the soft form the projection is invertible, (I − V Vᵀ)⁻¹ = I + V diag(1 / (1 − w)) Vᵀ with w = ‖column‖²;
        for the hard form `folded` is its own image.
        """
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
        return ProtectedSubspace(*(None if b is None else b.to(where) for b in (self.input, self.output)))


@dataclass(frozen=True)
class ProtectedSubspaces(Mapping[str, ProtectedSubspace]):
    """The protected subspace of every targeted matrix, by module path, and the record of how it was found.

    `record` is what `protection.json` holds: rule, sides, budget, hard, fingerprints, coverage, and for each module
    its k, the indices of its protected components and their scores.
    """

    subspaces: dict[str, ProtectedSubspace]
    record: dict[str, Any] = field(default_factory=dict)

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

    def save(self, folder: str | Path, extra: Mapping[str, Tensor] | None = None) -> None:
        """Write `subspaces.safetensors` and `protection.json`, atomically.

        Args:
            extra: tensors for `statistics.safetensors` beside them (the input covariance factors).
        """
        tensors = {
            f"{name}.{side}": basis
            for name, subspace in self.subspaces.items()
            for side in ("input", "output")
            if (basis := getattr(subspace, side)) is not None
        }
        with new_folder(Path(folder), MARKER) as staging:
            save_tensors(staging / "subspaces.safetensors", tensors)
            if extra:
                save_tensors(staging / STATISTICS, extra)
            write_json(staging / MARKER, self.record)

    @classmethod
    def load(cls, folder: str | Path) -> "ProtectedSubspaces":
        """Read a folder that `save` wrote. Raises InputError if it is not one."""
        folder = Path(folder)
        if not (folder / MARKER).exists():
            raise InputError(f"{folder} is not a protection folder (no {MARKER}); make one with `palora protect`")
        record = read_json(folder / MARKER, "rule", "modules")
        tensors = load_tensors(folder / "subspaces.safetensors")
        names = list(record["modules"])
        found = {key: basis.shape[1] for key, basis in tensors.items() if basis.ndim == 2}
        sides = ("input", "output")
        stated = {f"{name}.{side}": m.get(f"k_{side}") for name, m in record["modules"].items() for side in sides}
        odd = set(tensors) - set(stated) | {key for key, k in stated.items() if k not in (None, found.get(key, 0))}
        if odd:  # a basis that is not there would be a constraint that is not there
            raise InputError(f"{folder}: subspaces.safetensors and {MARKER} disagree on {sorted(odd)[0]}; make it anew")
        return cls(
            {n: ProtectedSubspace(tensors.get(f"{n}.input"), tensors.get(f"{n}.output")) for n in names},
            record,
        )
