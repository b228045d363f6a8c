"""Files, written so that an interruption never leaves half of one.

A file is written beside its place and moved there in one step; a folder is built beside its place and swapped. Only
JSON and safetensors are read: nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.errors import InputError, PaloraError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one line."""
    try:
        yield
    except OSError as error:
        raise PaloraError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all. Raises PaloraError on a full disk or without permission."""
    path = Path(path)
    with _clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _make_ordinary(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _make_ordinary(file: Path) -> None:
    """Give a file the permissions of an ordinary new one: mkstemp and safetensors make private ones."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` completely or not at all."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError if it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); was it cut short or edited?") from None


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomic_write_bytes(path, save(contiguous, metadata))


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read a safetensors file to the CPU. Raises InputError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


@contextmanager
def new_folder(out: Path, marker: str) -> Iterator[Path]:
    """Build a folder beside `out` and swap it in when the block ends; on any error the old folder stays as it was.

    `marker` is the file that tells our folder of this kind from a stranger's: an existing folder without it is never
    replaced. Raises InputError then, PaloraError where the disk or the permissions do not allow it.
    """
    out = Path(out)
    staging, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    with _clear_errors(out):
        if old.exists() and not out.exists():  # a swap was cut in the middle
            os.replace(old, out)
        check_replaceable(out, marker)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        with _clear_errors(out):
            yield staging
            for file in filter(Path.is_file, staging.rglob("*")):
                _make_ordinary(file)
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                os.replace(out, old)
            os.replace(staging, out)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(out: Path, marker: str) -> None:
    """Raise InputError where writing to `out` would destroy something that is not ours."""
    out = Path(out)
    if out.is_file():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / marker).exists():
        raise InputError(f"{out} has other files in it (no {marker}); choose a new or empty folder for --out")


def sha256(data: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `data`: enough to tell inputs apart."""
    return hashlib.sha256(data).hexdigest()[:16]
