"""The thin singular value decomposition of a matrix: W = U diag(s) Vᵀ.

With r = min(m, n): U is (m, r), s is (r,) in descending order, Vᵀ is (r, n). U and V have orthonormal columns also
where W is rank-deficient. A *component* is one triple (u_i, s_i, v_i).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palora.common.cache import cache_folder
from palora.common.errors import InputError, PaloraError
from palora.common.files import load_tensors, save_tensors
from palora.common.hashes import fingerprint


@dataclass(frozen=True)
class Decomposition:
    """U (m, r), s (r,), Vh (r, n) of one matrix, float32."""

    U: Tensor
    s: Tensor
    Vh: Tensor

    @property
    def rank(self) -> int:
        """r = min(m, n), the number of components."""
        return self.s.numel()

    def to(self, device: torch.device | str) -> "Decomposition":
        """The same on another device."""
        return Decomposition(self.U.to(device), self.s.to(device), self.Vh.to(device))


def decompose(matrix: Tensor) -> Decomposition:
    """The thin SVD of one matrix (m × n), computed on its own device.

    Raises: InputError if the matrix holds NaN or infinity.
    """
    if not torch.isfinite(matrix).all():
        raise InputError("a weight matrix holds NaN or infinity; the checkpoint is damaged")
    if matrix.is_cuda:
        U, s, Vh = by_gram(matrix)
    else:
        U, s, Vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    # LAPACK's layout is column-major; a cached copy is row-major, and products of the two differ in the last bit.
    return Decomposition(U.contiguous(), s, Vh.contiguous())


def by_gram(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD by the eigenvectors of the smaller Gram matrix, in float64: U (m, r), s (r,), Vᵀ (r, n), float32.

    With G = W Wᵀ = U S² Uᵀ (m ≤ n) and a QR of Wᵀ U = V R, |R| is diag(s) and V is orthonormal also where s is 0. Used
    on a GPU, where cuSOLVER's Jacobi left 1e-3 of a matrix of 4096 × 14336 (H100); small singular values are exact to
    1e-8 of the largest.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    W = (matrix.T if tall else matrix).double()
    U = torch.linalg.eigh(W @ W.T).eigenvectors.flip(-1)
    V, R = torch.linalg.qr(W.T @ U)
    s, sign = R.diagonal().abs(), R.diagonal().sign()
    V = V * torch.where(sign == 0, 1.0, sign)
    order = s.argsort(descending=True)  # those that are 0 but for rounding come in any order
    U, s, V = U[:, order], s[order], V[:, order]
    U, V = (V, U) if tall else (U, V)
    return U.float(), s.float(), V.T.float()


def decompose_each(
    matrices: Iterable[tuple[str, Tensor]],
    fingerprints: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, Decomposition]]:
    """The decomposition of every named matrix, one after the other, from the cache where it is there.

    Args:
        fingerprints: of the matrices, where they are known.

    A file of the cache (`common/cache.py`) is named by the fingerprint of its matrix.
    """
    for name, matrix in matrices:
        try:
            yield name, _cached(matrix, (fingerprints or {}).get(name))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if progress:
            progress(1)


def cached_decomposition(fingerprint: str, dtype: torch.dtype) -> Decomposition | None:
    """What is in the cache of a matrix that is not at hand; None where there is nothing."""
    path = _cache_file(fingerprint, dtype)
    if path is None or not path.exists():
        return None
    try:
        return Decomposition(**load_tensors(path))
    except (InputError, TypeError):
        return None  # a damaged cache file is no reason to stop: it is computed and written again


def _cached(matrix: Tensor, known: str | None) -> Decomposition:
    known = known or fingerprint(matrix)
    found = cached_decomposition(known, matrix.dtype)
    if found is not None and reconstructs(found := found.to(matrix.device), matrix):
        return found
    made = decompose(matrix)
    if path := _cache_file(known, matrix.dtype):
        with suppress(PaloraError):  # a cache that cannot be written (full disk, no permission) costs time, not the run
            save_tensors(path, {"U": made.U, "s": made.s, "Vh": made.Vh})
    return made


def _cache_file(fingerprint: str, dtype: torch.dtype) -> Path | None:
    """Fingerprints do not see float32 detail, so the stored dtype is part of the name, and what is found is checked."""
    folder = cache_folder()
    return folder / f"svd-{fingerprint}-{str(dtype).removeprefix('torch.')}.safetensors" if folder else None


def reconstructs(found: Decomposition, matrix: Tensor, tolerance: float = 1e-5) -> bool:
    """A cheap check that a cached decomposition is of this very matrix: W x = U diag(s) Vᵀ x for one random x."""
    if found.U.shape[0] != matrix.shape[0] or found.Vh.shape[1] != matrix.shape[1]:
        return False
    x = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix.device)
    y = matrix.float() @ x
    return bool((found.U @ (found.s * (found.Vh @ x)) - y).norm() <= tolerance * y.norm().clamp_min(1e-30))
