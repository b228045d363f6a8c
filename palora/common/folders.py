"""The folder of a stage: written whole or not at all, and read only as it was written.

Its *marker*, a JSON file, tells our folder from a stranger's. It holds what the stage was made of (`inputs`) and the
hash of every other file of the folder (`files`); what is read is checked against them first, so that a changed byte is
an error and not another result.
"""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two runs into one folder are not told from each other
    fcntl = None  # type: ignore[assignment]
from pathlib import Path
from typing import Any

from palora.common.errors import InputError
from palora.common.files import clear_errors, make_ordinary, read_json, write_json
from palora.common.hashes import hash_file, hash_value

_HELD: set[Path] = set()  # by this process


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold `out` while the block writes there: two runs into one folder would mix what they write. Who holds it already
    may take it again. The lock ends with the process, however that ends; the file `.<name>.lock` says whose it is.

    Raises: InputError, naming the process, where another one is at work there.
    """
    path = Path(out).absolute()
    lock = path.with_name(f".{path.name}.lock")
    if fcntl is None or lock in _HELD:
        yield
        return
    with clear_errors(lock):
        new = not lock.parent.exists()
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab+", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().decode().strip() or "another process"
            raise InputError(f"{out}: {holder} is at work there; wait for it, or choose another --out") from None
        with suppress(OSError):  # a full disk: who holds it is then not told
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        _HELD.add(lock)
        try:
            yield
        finally:
            _HELD.discard(lock)
            lock.unlink(missing_ok=True)
            if new:
                with suppress(OSError):  # unless something was written
                    lock.parent.rmdir()


@contextmanager
def new_folder(out: Path, marker: str) -> Iterator[Path]:
    """Build a folder beside `out` and swap it in when the block ends; on any error the old folder stays as it was.

    `marker` is the file that tells our folder of this kind from a stranger's: an existing folder without it is never
    replaced. Raises InputError then, PaloraError where the disk or the permissions do not allow it.
    """
    with alone(out):
        yield from _swapped_in(Path(out), marker)


def _swapped_in(out: Path, marker: str) -> Iterator[Path]:
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
                make_ordinary(file)
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


def seal(folder: Path, marker: str, record: Mapping[str, Any]) -> None:
    """Write the marker, last: the record, and the hash of every file that is in the folder by now."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != marker)
    write_json(folder / marker, {**record, "files": {str(f.relative_to(folder)): hash_file(f) for f in files}})


def read_marker(folder: Path, marker: str, *keys: str) -> dict[str, Any]:
    """The record of a folder. Raises InputError where it is damaged, or lacks one of `keys`."""
    record = read_json(Path(folder) / marker, *keys)
    if not isinstance(record, dict):
        raise InputError(f"{Path(folder) / marker}: not a JSON object; was it edited?")
    if not isinstance(record.get("files", {}), dict):
        raise InputError(f"{Path(folder) / marker}: 'files' is no object; was it edited?")
    return dict(record)


def check_unchanged(folder: Path, record: Mapping[str, Any], *names: str) -> None:
    """Raise InputError where a file of a folder is not what was written there.

    `names` are those that are about to be read, as the marker calls them; all but the prose (*.md) by default."""
    known = record.get("files") or {}
    for name in names or [name for name in known if not name.endswith(".md")]:
        if name not in known:
            continue  # a folder of an older version
        path = Path(folder) / name
        wrong = "is gone" if not path.is_file() else "has changed" if hash_file(path) != known[name] else None
        if wrong:
            raise InputError(f"{path} {wrong} since it was written; put it back, or remove {folder} and make it again")


def folder_hash(folder: Path, marker: str) -> str:
    """What tells the content of a stage's folder from another: the hashes of its files, but for logs and prose."""
    record = read_marker(folder, marker)
    known = record.get("files") or {}
    telling = {name: value for name, value in known.items() if not name.endswith((".md", ".jsonl"))}
    return hash_value(telling or record)


def same_inputs(made: Any, now: Mapping[str, Any]) -> bool:
    """Whether a folder was made of what it would be made of now.

    Under `settings` both hold `{"all": …, "stated": …}`: every setting, and those that differ from the defaults. One of
    the two must be the same: a new setting, or another default, in a later version makes nothing undone."""
    if not isinstance(made, Mapping):
        return False
    a, b = made.get("settings") or {}, now.get("settings") or {}
    if hash_value({**made, "settings": None}) != hash_value({**now, "settings": None}):
        return False
    return hash_value(a.get("stated")) == hash_value(b.get("stated")) or _within(a.get("all"), b.get("all"))


def _within(made: Any, now: Any) -> bool:
    """Whether every value that was set then is the same now; a setting that is new since then may have any."""
    if isinstance(made, Mapping) and isinstance(now, Mapping):
        return all(key in now and _within(value, now[key]) for key, value in made.items())
    return hash_value(made) == hash_value(now)


def check_replaceable(out: Path, marker: str) -> None:
    """Raise InputError where writing to `out` would destroy something that is not ours."""
    out = Path(out)
    if out.is_file():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and not (out / marker).exists():
        # What a killed process was writing the marker into is ours.
        others = [file for file in out.iterdir() if not file.name.startswith(f".{marker}.")]
        if not others:
            return
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
