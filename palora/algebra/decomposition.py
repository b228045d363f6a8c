"""The thin singular value decomposition of every targeted matrix: W = U diag(s) Vᵀ.

With r = min(m, n): U is (m, r), s is (r,) in descending order, Vᵀ is (r, n). U and V have orthonormal columns also
where W is rank-deficient. A *component* is one triple (u_i, s_i, v_i).

The same in the basis of some inputs (ours; the decomposition is that of SVD-LLM, arXiv 2403.07378), with C = F Fᵀ their
covariance, F (n, q) of full column rank:

    W F = U diag(s) Rᵀ,     Vh = Rᵀ F⁺ (r, n),     Y = F R (n, r),     Vh Y = I

so W y_i = s_i u_i: component i is what W makes of the direction y_i of those inputs, and s_i² its share of the output's
energy on them. U is orthonormal; Vh is not, and U diag(s) Vh is W on the span of F only.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from palora.algebra.statistics import InputStatistics
from palora.common.errors import InputError, PaloraError
from palora.common.files import load_tensors, save_tensors
from palora.language.models import fingerprint
from palora.language.targets import weight


@dataclass(frozen=True)
class Decomposition:
    """U (m, r), s (r,), Vh (r, n) of one matrix, float32, and in the basis of some inputs Y (n, r)."""

    U: Tensor
    s: Tensor
    Vh: Tensor
    Y: Tensor | None = None

    @property
    def rank(self) -> int:
        """r = min(m, n), the number of components."""
        return self.s.numel()

    def to(self, device: torch.device | str) -> "Decomposition":
        """The same on another device."""
        return Decomposition(*(None if t is None else t.to(device) for t in vars(self).values()))  # type: ignore[arg-type]

    def input_basis(self, indices: Tensor) -> Tensor:
        """Orthonormal columns (n, k) that span the inputs of some components: what must be kept out of an update so
        that W does the same with them."""
        if self.Y is None:
            return self.Vh[indices].T.contiguous()
        return torch.linalg.qr(self.Y[:, indices]).Q


def decompose_on(W: Tensor, inputs: InputStatistics) -> Decomposition:
    """The decomposition of W (m, n) in the basis of some inputs, of rank at most min(m, q). Directions with less than
    1e-7 of the inputs' energy, and components with less than 1e-6 of the largest s, are left out: they are rounding."""
    F = inputs.factor[:, inputs.eigenvalues > 1e-7 * inputs.trace].to(W.device)
    U, s, Rh = torch.linalg.svd(W.float() @ F, full_matrices=False)
    used = s > 1e-6 * s[0]
    U, s, Rh = U[:, used].contiguous(), s[used], Rh[used]
    return Decomposition(U, s, Rh @ (F / F.square().sum(0)).T, F @ Rh.T)  # F has orthogonal columns


def decompose(matrix: Tensor) -> Decomposition:
    """The thin SVD of one matrix (m × n), computed in float32 on its own device.

    Raises: InputError if the matrix holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        raise InputError("a weight matrix holds NaN or infinity; the checkpoint is damaged")
    U, s, Vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    # LAPACK's layout is column-major; a cached copy is row-major, and products of the two differ in the last bit.
    return Decomposition(U.contiguous(), s, Vh.contiguous())


def decompose_targets(
    targets: dict[str, nn.Module], progress: Callable[[int], None] | None = None
) -> dict[str, Decomposition]:
    """The decomposition of every targeted matrix, from the cache where it is there.

    The cache is a folder of safetensors files named by the fingerprint of the matrix: `$PALORA_CACHE`, by default
    `~/.cache/palora`; set `PALORA_CACHE=` (empty) for none. It can be deleted at any time.
    """
    result = {}
    for name, module in targets.items():
        try:
            result[name] = _cached(weight(module))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if progress:
            progress(1)
    return result


def _cached(matrix: Tensor) -> Decomposition:
    folder = os.environ.get("PALORA_CACHE", str(Path.home() / ".cache" / "palora"))
    if not folder:
        return decompose(matrix)
    # bfloat16 fingerprints do not see float32 detail, so the stored dtype is part of the name.
    path = Path(folder) / f"svd-{fingerprint(matrix)}-{str(matrix.dtype).removeprefix('torch.')}.safetensors"
    if path.exists():
        try:
            found = Decomposition(**{k: t.to(matrix.device) for k, t in load_tensors(path).items()})
            if _reconstructs(found, matrix):
                return found
        except (InputError, TypeError):
            pass  # a damaged cache file is no reason to stop: it is computed and written again
    made = decompose(matrix)
    with suppress(PaloraError):  # a cache that cannot be written (full disk, read-only home) costs time, not the run
        save_tensors(path, {"U": made.U, "s": made.s, "Vh": made.Vh})
    return made


def _reconstructs(found: Decomposition, matrix: Tensor) -> bool:
    """A cheap check that a cached decomposition is of this very matrix: W x = U diag(s) Vᵀ x for one random x."""
    if found.U.shape[0] != matrix.shape[0] or found.Vh.shape[1] != matrix.shape[1]:
        return False
    x = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix.device)
    y = matrix.float() @ x
    return bool((found.U @ (found.s * (found.Vh @ x)) - y).norm() <= 1e-5 * y.norm().clamp_min(1e-30))
