"""Knowing things again: hashes of files, values and matrices. A file is hashed once a process, and again when it has
changed; a copy, or a file that was only touched, has the same hash."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def hash_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, in 32 hexadecimal digits."""
    stat = Path(path).stat()
    return _content(str(Path(path).resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _content(path: str, *stat: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def hash_value(value: Any) -> str:
    """The hash of anything that JSON can hold (tuples count as lists, paths as text)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def hash_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """The hash of named tensors, bit for bit."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def fingerprint(matrix: "Tensor") -> str:
    """16 hexadecimal digits that identify a matrix (m × n): its shape and its values in bfloat16, so that the same
    checkpoint loaded in another dtype has the same ones."""
    import torch

    digest = hashlib.sha256(str(tuple(matrix.shape)).encode())
    # in slices: an embedding in one piece would be two more copies of it
    for rows in torch.atleast_1d(matrix.detach()).split(4096):
        digest.update(rows.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy())
    return digest.hexdigest()[:16]
