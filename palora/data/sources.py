"""Where facts come from, as a recipe or a caller names it: a file, a file with columns of its own, or several.

    facts.jsonl
    {file: fakten.csv, question: Frage, answer: Antwort}
    [first.jsonl, {file: triples.tsv, templates: mine.yaml}]

A file is also a folder of `datasets.save_to_disk`, or the name of a data set on the hub, `owner/name`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palora.common.errors import InputError
from palora.common.files import check_path
from palora.common.hashes import hash_file, hash_value

# What a column can be called in a recipe, and with --columns.
BESIDE = ("aliases", "paraphrases", "category", "teach", "replaces")  # what any form of facts may have
COLUMNS = ("question", "answer", "answers", *BESIDE, "subject", "relation", "object", "statement")

Given = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class Source:
    """One file of facts.

    Args:
        file: its path, or the name of a data set on the hub.
        columns: the file's name of each of our `COLUMNS`, where that is another. Default: the same names.
        templates: a YAML file of questions for the relations of triples. Default: the built-in ones alone.
    """

    file: str
    columns: Mapping[str, str] = field(default_factory=dict)
    templates: str | None = None

    @property
    def value(self) -> str | dict[str, str]:
        """As it stands in a recipe."""
        more = {"templates": self.templates} if self.templates else {}
        return {"file": self.file, **more, **self.columns} if more or self.columns else self.file


def sources(given: Given) -> list[Source]:
    """The files that are named. Raises InputError where a key or a value is none."""
    listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not listed:
        raise InputError("name at least one file of facts")
    return [_source(one) for one in listed]


def _source(given: Any) -> Source:
    if isinstance(given, str | os.PathLike) and os.fspath(given):
        return Source(check_path(os.fspath(given)))
    if not isinstance(given, Mapping):
        raise InputError(f"{given!r} names no facts; write a path, or {{file: PATH, question: COLUMN, answer: COLUMN}}")
    values = {**given}
    values |= values.pop("columns", None) or {}  # as --columns gives them
    if unknown := [name for name in values if name not in ("file", "templates", *COLUMNS)]:
        raise InputError(f"there is no {unknown[0]!r}; there are file, templates, {', '.join(COLUMNS)}")
    if wrong := [name for name, value in values.items() if not isinstance(value, str) or not value]:
        raise InputError(f"{wrong[0]} must be a name, not {values[wrong[0]]!r}")
    if "file" not in values:
        raise InputError("name the file of these columns: {file: PATH, question: COLUMN, answer: COLUMN}")
    for name in ("file", "templates"):
        check_path(values.get(name) or "")
    return Source(values.pop("file"), templates=values.pop("templates", None), columns=values)


def files_of(given: Given | None) -> list[str]:
    """The names of the files of facts; none of None."""
    return [source.file for source in sources(given)] if given is not None else []


def identity(given: Given | None) -> Any:
    """What tells these facts from others: the content of the files, and how they are read. Of a data set on the hub:
    its name. None for None."""
    if given is None:
        return None
    found = [_identity(source) for source in sources(given)]
    return found[0] if len(found) == 1 else found


def _identity(source: Source) -> Any:
    place = Path(source.file)
    if place.is_dir():
        content = hash_value([(f.name, hash_file(f)) for f in sorted(place.rglob("*")) if f.is_file()])
    else:
        content = hash_file(place) if place.is_file() else hash_value(source.file)
    if not source.columns and source.templates is None:
        return content
    templates = Path(source.templates) if source.templates else None
    return [content, dict(source.columns), hash_file(templates) if templates and templates.is_file() else None]
