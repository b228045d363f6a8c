"""Rows of published datasets: from a folder with local copies of the files, or from the Hugging Face hub.

Every row comes with the place it stands at ("DIR/train.jsonl, line 3"), so that an error can name it.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palora.common.errors import InputError


@dataclass(frozen=True)
class Row:
    """One row: its fields and where it stands."""

    fields: dict[str, Any]
    where: str

    def __getitem__(self, field: str) -> Any:
        if field not in self.fields:
            raise InputError(f"{self.where}: no field '{field}'; there are {', '.join(self.fields) or 'none'}")
        return self.fields[field]

    def text(self, field: str) -> str:
        """A field that must be a string with something in it."""
        value = self[field]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.where}: '{field}' must be a text that is not empty")
        return value


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a JSON Lines file, gzipped where its name ends in .gz; blank lines are skipped.

    Raises:
        InputError: the file is missing, empty, not UTF-8, damaged, or a line is no JSON object.
    """
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(fields, dict):
            raise InputError(f"{where}: must be a JSON object, not {type(fields).__name__}")
        rows.append(Row(fields, where))
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def read_folder(skill: str, folder: Path, names: Sequence[str]) -> list[Row]:
    """The rows of the first file in `folder` that bears one of `names`, with or without .gz."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return read_jsonl(path)
    missing = "has none of the files" if folder.is_dir() else "is no folder; it should hold one of"
    raise InputError(f"{skill}: {folder} {missing} {', '.join(names)} (plain or .gz)")


def read_hub(skill: str, repository: str, configuration: str | None, split: str) -> list[Row]:
    """The rows of one split of a dataset on the Hugging Face hub, fetched once and then cached by `datasets`.

    Raises:
        InputError: it could not be fetched, whatever the reason; the message tells how to use a local copy.
    """
    import datasets  # slow to import, and not needed for a local copy

    where = "/".join(filter(None, (repository, configuration, split)))
    try:
        rows = datasets.load_dataset(repository, configuration, split=split)
    except Exception as error:  # offline, a proxy, a time-out, a renamed dataset: `datasets` raises many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise InputError(
            f"{skill}: could not fetch {where} from the Hugging Face hub ({reason});"
            f" without network use a folder with a copy of its files: {skill}:DIR"
        ) from None
    return [Row(dict(row), f"{where}, row {number}") for number, row in enumerate(rows, 1)]
