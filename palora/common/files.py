"""Files, written so that an interruption never leaves half of one.

A file is written beside its place and moved there in one step (`folders.py` does so with whole folders). Only JSON and
safetensors are read: nothing is ever unpickled.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write in the block: it takes the place of `path` when the block ends, or is gone.

    Raises: PaloraError on a full disk or without permission.
    """
    path = Path(path)
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            yield Path(name)
            os.fsync(handle)
            make_ordinary(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all."""
    with atomic_file(path) as file:
        file.write_bytes(data)


def make_ordinary(file: Path) -> None:
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


def check_path(path: str) -> str:
    """A path or name as it is given. Raises InputError where no file can be named so."""
    if "\0" in path:
        raise InputError(f"{path!r}: no path has a NUL character in it; take it out")
    return path


def read_json(path: Path, *keys: str) -> Any:
    """Read a JSON file. Raises InputError if it is missing or malformed, or is no object with these keys."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be read; was it edited?") from None
    except ValueError as error:  # also of a number of 5,000 digits, and a NUL in the path
        raise InputError(f"{path}: not valid JSON ({error}); was it cut short or edited?") from None
    if keys and not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; was it edited?")
    for key in keys:
        if key not in value:
            raise InputError(f"{path}: it has no {key!r}; was it edited, or written by something else?")
    return value


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically; without a copy of those that lie whole in memory."""
    from safetensors.torch import save_file

    whole, seen = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        whole[name] = own.clone() if own.data_ptr() in seen else own  # two names may share one
        seen.add(own.data_ptr())
    with atomic_file(path) as file:
        save_file(whole, file, metadata)


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


def headers(path: Path) -> list[tuple[str, str, list[int]]]:
    """Name, kind of number (`F32`, `BF16`, …) and shape of every tensor of a safetensors file. Raises InputError."""
    from safetensors import safe_open

    check_tensors(path)
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return [(name, own.get_dtype(), own.get_shape()) for name, own in slices.items()]
