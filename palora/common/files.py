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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.common.errors import InputError, PaloraError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn a refusal to write (a full disk, no permission) into one line, whoever met it. Raises PaloraError."""
    try:
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise PaloraError(
            f"cannot write {path}: {reason}; nothing that was there is lost. Run this again when it can be written"
        ) from error


def _refusal(error: Exception) -> str | None:
    """Why a file could not be written, or None where `error` is something else."""
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or text
    if type(error).__name__ == "SafetensorError" and "I/O error: " in text:
        return text.partition("I/O error: ")[2].partition(" (os error")[0]
    if isinstance(error, RuntimeError) and ("inline_container" in text or "iostream" in text):
        return "torch could not write its checkpoint (is the disk full?)"
    return None


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all. Raises PaloraError on a full disk or without permission."""
    path = Path(path)
    with clear_errors(path):
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


def read_json(path: Path, *keys: str) -> Any:
    """Read a JSON file. Raises InputError if it is missing or malformed, or is no object with these keys."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); was it cut short or edited?") from None
    if keys and not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; was it edited?")
    for key in keys:
        if key not in value:
            raise InputError(f"{path}: it has no {key!r}; was it edited, or written by something else?")
    return value


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    atomic_write_bytes(path, save(contiguous, metadata))


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read a safetensors file to the CPU. Raises InputError if it is missing or damaged."""
    from safetensors.torch import load_file

    check_tensors(path)
    return load_file(path)


def check_tensors(path: Path) -> dict[str, str]:
    """Raise InputError if a safetensors file is missing or cut short. Only its header is read.

    Returns: the metadata that it was saved with.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or 'no such file'})") from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); was it cut short?") from None


@contextmanager
def new_folder(out: Path, marker: str) -> Iterator[Path]:
    """Build a folder beside `out` and swap it in when the block ends; on any error the old folder stays as it was.

    `marker` is the file that tells our folder of this kind from a stranger's: an existing folder without it is never
    replaced. Raises InputError then, PaloraError where the disk or the permissions do not allow it.
    """
    out = Path(out)
    staging, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    with clear_errors(out):
        if old.exists() and not out.exists():  # a swap was cut in the middle
            os.replace(old, out)
        check_replaceable(out, marker)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        with clear_errors(out):
            yield staging
            for file in filter(Path.is_file, staging.rglob("*")):
                _make_ordinary(file)
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                os.replace(out, old)
            os.replace(staging, out)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not out.exists():
            with suppress(OSError):
                os.replace(old, out)
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(out: Path, marker: str) -> None:
    """Raise InputError where writing to `out` would destroy something that is not ours."""
    out = Path(out)
    if out.is_file():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / marker).exists():
        raise InputError(f"{out} has other files in it (no {marker}); choose a new or empty folder for --out")


def check_writable(folder: Path) -> None:
    """Raise InputError, before any work is done, where `folder` cannot be written into, or made where it is missing."""
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{place} is no folder, so nothing can be written under it; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write in {place}; choose another --out")


def sha256(data: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `data`: enough to tell inputs apart."""
    return hashlib.sha256(data).hexdigest()[:16]
