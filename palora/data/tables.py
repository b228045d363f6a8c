"""Rows of a table, whatever it is kept in: one after the other, each with its number.

| | |
|---|---|
| `.csv`, `.tsv` | separated by `,` `;` a tab or `|`, or by what a first line `sep=;` says |
| `.jsonl`, `.json` | an object a line; or a list of objects, `{"data": [...]}`, or a list for each column |
| `.parquet`, `.xlsx` | the first sheet, its first row the names |
| `.txt` | a statement a line |
| a folder | what `datasets.save_to_disk` wrote |
| `owner/name` | a data set on the Hugging Face hub; `owner/name:configuration` and `owner/name#split` of it |

Text is UTF-8, or UTF-16 with its byte order mark. It is read as a stream: the text of a million rows of
CSV or JSONL is never in memory.
"""

import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palora.common.errors import InputError

Row = dict[str, Any]
LONGEST_CELL = 1 << 24  # characters; csv's own limit of 131,072 also stops columns that are not read


class Problem(Exception):
    """What is wrong with one row and how to mend it; `facts.py` adds the file and the line."""


@dataclass
class Table:
    """Rows and what is known of them before they are read.

    Args:
        rows: (number, row) or (number, the Problem with it); 0 is the file as a whole.
        unit: what the number counts: line or row.
        columns: the names, where they are told once for all rows.
        header: the number of the row that tells them.
        cells: whether every value is a cell of text, a list too.
        needed: the columns that are read, set before the first row is; None: all.
        said: how the file was taken, where that is not plain from its name.
    """

    rows: Iterator[tuple[int, object]]
    unit: str = "row"
    columns: list[str] | None = None
    header: int = 0
    cells: bool = False
    needed: list[str] | None = None
    said: str = ""


def read_table(file: str, known: Collection[str]) -> Table:
    """The rows of a file, a folder or a data set on the hub.

    Args:
        known: names of columns in small letters, which tell what separates the cells of a CSV file.

    Raises: InputError where there is no such file, or it cannot be read at all.
    """
    path = Path(file)
    try:
        if path.is_dir():
            return _saved(path)
        if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(#\w+)?", file):
            return _hub(file)
        with open(path, "rb") as opened:
            if not opened.read(1):
                raise InputError(f"{path}: the file is empty; write one fact a row, with a question and an answer")
        kind = path.suffix.lower()
        if kind in (".csv", ".tsv", ".tab"):
            return _csv(path, known)
        if kind not in _READERS:
            raise InputError(f"{path}: facts are read from {_SUFFIXES}; convert and rename this file")
        return _READERS[kind](path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path and its permissions") from None


def parse_json(text: str) -> object:
    """The value of a JSON text. Raises Problem."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Problem(f"not JSON ({error.msg}, column {error.colno}); write one object on each line") from None
    except RecursionError:
        raise Problem("nested too deeply to be read; leave out what is no question or answer") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits: then it is text
        return json.loads(text, parse_int=str)


# Text


def _opened(path: Path, newline: str) -> io.TextIOWrapper:
    """A text file, decoded by its byte order mark; without one it is UTF-8."""
    file = open(path, "rb")  # noqa: SIM115
    encoding, mark = _encoding(file.read(4))
    file.seek(len(mark))
    return io.TextIOWrapper(file, encoding, newline=newline)


def _encoding(head: bytes) -> tuple[str, bytes]:
    for encoding, mark in (("utf-8", codecs.BOM_UTF8), ("utf-32-le", codecs.BOM_UTF32_LE)):
        if head.startswith(mark):
            return encoding, mark
    for encoding, mark in (("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE)):
        if head.startswith(mark):
            return encoding, mark
    return "utf-8", b""


def _lines(path: Path, newline: str) -> Iterator[str]:
    """The lines of a text file with their ends. Raises InputError where its bytes are no text."""
    with _opened(path, newline) as file:
        try:
            yield from file
        except UnicodeDecodeError:
            raise InputError(_undecodable(path, file.encoding)) from None


def _undecodable(path: Path, encoding: str) -> str:
    if encoding != "utf-8":
        return f"{path}: not {encoding[:6].upper()}, as its first bytes say; save the file as UTF-8"
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {start + error.start + 1} of the file (0x{line[error.start]:02x})"
                return f"{path}, line {number}: {byte} is not UTF-8; save the file as UTF-8"
            start += len(line)
    return f"{path}: not UTF-8; save the file as UTF-8"


def _csv(path: Path, known: Collection[str]) -> Table:
    lines = _lines(path, newline="")
    before, first = 0, ""
    for line in lines:
        if line.strip():
            first = line
            break
        before += 1
    if told := re.match(r'"?sep=(.)', first):
        separator, before = told[1], before + 1
    else:
        candidates = "\t,;|" if path.suffix.lower() != ".csv" else ",;\t|"
        separator = max(candidates, key=lambda own: _columns_by(own, first, known))
        lines = _chained(first, lines)
    records = _records(lines, separator, before)
    number, header = next(records, (0, []))
    if isinstance(header, Problem):
        return Table(iter([(number, header)]), "line")
    names = [name.strip() for name in header]
    return Table(_csv_rows(records, names, separator), "line", names, number, cells=True)


def _columns_by(separator: str, line: str, known: Collection[str]) -> tuple[int, int]:
    """How many columns a line has if they are separated so: known ones, and all."""
    try:
        names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return 0, 0
    return sum(name.strip().lower() in known for name in names), len(names)


def _chained(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _records(lines: Iterator[str], separator: str, before: int) -> Iterator[tuple[int, list[str] | Problem]]:
    """The cells of every row that is not blank, with the line it starts on; `before` these lines there were others."""
    # strict: a quote that is never closed is an error, and does not swallow the rest of the file.
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
    limit = csv.field_size_limit(LONGEST_CELL)
    number = before + 1
    try:
        for values in reader:
            start, number = number, before + reader.line_num + 1
            if any(map(str.strip, values)):
                yield start, values
    except csv.Error as error:
        yield number, Problem(f"not CSV ({error}); close every quote, double those within a value")
    finally:
        csv.field_size_limit(limit)


def _csv_rows(
    records: Iterator[tuple[int, list[str] | Problem]], names: list[str], separator: str
) -> Iterator[tuple[int, object]]:
    for number, values in records:
        if isinstance(values, Problem):
            yield number, values
        elif len(values) > len(names) and any(map(str.strip, values[len(names) :])):
            # Most often an unquoted comma in an answer, of which the rest would be lost.
            between = {",": "a comma", "\t": "a tab"}.get(separator, separator)
            wrong = f"{len(values)} values under {len(names)} columns"
            yield number, Problem(f"{wrong}; put a value with {between} in double quotes")
        else:
            yield number, dict(zip(names, values, strict=False))


def _jsonl(path: Path) -> Table:
    if _first_sign(path) == "[" and (table := _json_list(path)):
        return table
    return Table(_jsonl_rows(path), "line")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    # Only \n ends a line: a JSON string may hold U+2028 and its like, which end no line in an editor.
    for number, line in enumerate(_lines(path, newline="\n"), start=1):
        if not line.isspace():
            try:
                yield number, parse_json(line)
            except Problem as problem:
                yield number, problem


def _first_sign(path: Path) -> str:
    for line in _lines(path, newline="\n"):
        if line.strip():
            return line.lstrip()[0]
    return ""


def _json(path: Path) -> Table:
    text = "".join(_lines(path, newline=""))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text.strip():
            return Table(_jsonl_rows(path), "line", said="an object a line")
        wrong = f"not JSON ({error.msg}, column {error.colno}); close every bracket and quote before it"
        return Table(iter([(error.lineno, Problem(wrong))]), "line")
    except (RecursionError, ValueError):
        try:
            value = parse_json(text)
        except Problem as problem:
            return Table(iter([(0, problem)]))
    return Table(iter(_objects(value)))


def _json_list(path: Path) -> Table | None:
    """The rows of a .jsonl file that is one JSON list; None where it is none."""
    try:
        value = json.loads("".join(_lines(path, newline="")))
    except (ValueError, RecursionError):
        return None
    return Table(iter(_objects(value)), said="one list of objects")


def _objects(value: Any) -> Iterator[tuple[int, object]]:
    """The rows in a JSON value: a list of them, the only list of objects under a key, or a list for each column."""
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
        columns = [list(v.values()) if isinstance(v, dict) else v for v in value.values()]
        if len(lists) == 1 and "messages" not in value and "conversations" not in value:
            value = lists[0]
        elif columns and all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        else:
            value = [value]
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):  # SQuAD as it is published
            yield from ((number, question) for question in _squad(row["paragraphs"]))
        else:
            yield number, row


def _squad(paragraphs: list[Any]) -> Iterator[object]:
    for paragraph in paragraphs:
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        yield from asked if isinstance(asked, list) else [paragraph]


def _text(path: Path) -> Table:
    lines = enumerate(_lines(path, newline="\n"), start=1)
    rows = ((number, {"statement": line}) for number, line in lines if line.strip())
    return Table(rows, "line", ["statement"])


# Other files


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
    except (ArrowException, OSError, ValueError):
        return Table(iter([(0, Problem("not a readable Parquet file; write it again"))]))

    def rows() -> Iterator[tuple[int, object]]:
        try:
            batches = (batch.to_pylist() for batch in file.iter_batches(4096, columns=table.needed))
            yield from enumerate((row for batch in batches for row in batch), start=1)
        except (ArrowException, OSError, ValueError):
            yield 0, Problem("not a readable Parquet file; write it again")

    table = Table(rows(), columns=names)
    return table


def _excel(path: Path) -> Table:
    try:
        import openpyxl
    except ImportError:
        raise InputError(f"{path}: pip install openpyxl to read Excel files, or save it as CSV UTF-8") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and rules that are not read
        try:
            sheet, *others = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets
            rows = enumerate(sheet.iter_rows(values_only=True), start=1)
            number, header = next(((n, r) for n, r in rows if any(v is not None for v in r)), (0, ()))
        except Exception:  # openpyxl raises whatever it meets in a damaged file
            return Table(iter([(0, Problem("not a readable Excel file; save it again as .xlsx"))]))
    names = ["" if value is None else str(value).strip() for value in header]
    while names and not names[-1]:
        names.pop()

    def found() -> Iterator[tuple[int, object]]:
        try:
            for number, row in rows:
                if any(value not in (None, "") for value in row):
                    yield number, dict(zip(names, row, strict=False))
        except Exception:
            yield 0, Problem("not a readable Excel file; save it again as .xlsx")

    said = f"its first sheet, {sheet.title}, of {len(others) + 1}" if others else ""
    return Table(found(), columns=names, header=number, cells=True, said=said)


def _saved(path: Path) -> Table:
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise InputError(f"{path}: this is a folder; name a file of facts in it")
    import datasets

    try:
        return _dataset(datasets.load_from_disk(str(path)), None)
    except InputError:
        raise
    except Exception as error:  # of a folder that is not complete: many kinds
        raise InputError(
            f"{path}: not a readable folder of save_to_disk ({_first_line(error)}); write it again"
        ) from None


def _hub(name: str) -> Table:
    repository, _, split = name.partition("#")
    repository, _, configuration = repository.partition(":")
    import datasets

    try:
        return _dataset(datasets.load_dataset(repository, configuration or None), split)
    except InputError:
        raise
    except Exception as error:  # offline, a proxy, a wrong name, a data set that is code: many kinds
        wrong = f"no such file here, and no data set of that name from the hub ({_first_line(error)})"
        raise InputError(f"{name}: {wrong}; check the name, or give a local file") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def _dataset(data: Any, split: str | None) -> Table:
    """The rows of a data set: of the split that is named, or of `train`, or of its first one."""
    said = ""
    if isinstance(data, dict):
        if split and split not in data:
            raise InputError(f"there is no split {split!r}; there are {', '.join(data)}")
        own = split or ("train" if "train" in data else next(iter(data)))
        data, said = data[own], f"the split {own} of {', '.join(data)}" if len(data) > 1 else ""

    def rows() -> Iterator[tuple[int, object]]:
        read = data.select_columns(table.needed) if table.needed else data
        batches = read.with_format("arrow").iter(4096)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)

    table = Table(rows(), columns=data.column_names, said=said)
    return table


_READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".txt": _text,
    ".parquet": _parquet,
    ".xlsx": _excel,
    ".xlsm": _excel,
}
_SUFFIXES = ".tsv, .json, .xlsx, .txt, .jsonl, .csv or .parquet"
