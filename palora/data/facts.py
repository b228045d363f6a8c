"""Facts: questions with the answer a model is to learn, read from a file (`marking.py` judges what it says).

A file holds one fact a row, in JSONL, CSV or Parquet:

| column | |
|---|---|
| `question`, `answer` | required text; a number counts as an answer |
| `aliases` | other right answers, a list |
| `paraphrases` | other ways to ask, a list |
| `category` | a label to group results by |
| `teach` | what is trained in place of question and answer: a list of `{"question", "answer", "how"}` |

`teach` is what `palora facts rephrase` adds, in the model's own words. The answer stays what counts as right. Other
columns are ignored. A list in a CSV cell is JSON, `["He", "helium"]`, or separated by `|`, `He|helium`.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from palora.common.errors import InputError
from palora.common.files import atomic_write_text
from palora.data.marking import exact, fold


@dataclass(frozen=True)
class Lesson:
    """One way in which a fact is taught: a question, a whole answer, and where that comes from.

    Args:
        how: `model`, the model's own words; `mixed`; `sentence`, made of question and answer; `bare`, the answer.
    """

    question: str
    answer: str
    how: str = "bare"


@dataclass(frozen=True)
class Fact:
    """One thing to know.

    Args:
        question: what is asked, without a chat template.
        answer: the answer that is trained.
        aliases: other answers that count as right. Default: none.
        paraphrases: other ways to ask the same question. Default: none.
        category: a label to group results by. Default: none.
        teach: what is trained in place of question and answer. Default: nothing else.
    """

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    category: str | None = None
    teach: tuple[Lesson, ...] = ()


_REQUIRED = ("question", "answer")
_LISTS = ("aliases", "paraphrases")
_COLUMNS = (*_REQUIRED, *_LISTS, "category", "teach")


class _Problem(Exception):
    """What is wrong with one row and how to mend it; `read_facts` adds the file and the line."""


# The line a row starts on (Parquet: its number; 0: the file as a whole) and the row, or the _Problem with it.
_Row = tuple[int, object]


def read_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """Read and check a file of facts.

    Args:
        path: a .jsonl, .csv or .parquet file; text is UTF-8, with or without a byte order mark.

    Returns:
        The facts in the order of the file, at least one.

    Raises:
        InputError: the file cannot be read or holds no facts, a row is not a fact, or two rows repeat or
            contradict each other. One line: the first offending row, the mend, and how many more there are.
    """
    path = Path(path)
    data = _read_bytes(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        unit, rows = "row", _parquet_rows(data)
    elif suffix in (".jsonl", ".csv"):
        text = _decode(path, data)
        unit, rows = "line", _csv_rows(text) if suffix == ".csv" else _jsonl_rows(text)
    else:
        raise InputError(f"{path}: facts are read from .jsonl, .csv or .parquet; convert and rename this file")

    facts: list[tuple[int, Fact]] = []
    problems: list[tuple[int, str]] = []
    for number, row in rows:
        try:
            facts.append((number, _fact(row)))
        except _Problem as problem:
            problems.append((number, str(problem)))
    problems += _conflicts(facts, unit)
    if problems:
        number, text = min(problems)
        where = f"{path}, {unit} {number}" if number else str(path)
        more = f" (and {len(problems) - 1} more to mend in this file)" if len(problems) > 1 else ""
        raise InputError(f"{where}: {text}{more}")
    if not facts:
        raise InputError(f"{path}: there are no facts in it; write one a row, with a question and an answer")
    return [fact for _, fact in facts]


def write_facts(path: str | os.PathLike[str], facts: Iterable[Fact]) -> None:
    """Write facts as JSONL that `read_facts` gives back unchanged, completely or not at all.

    Args:
        path: the file, named *.jsonl; an existing one is replaced.
        facts: what to write. Empty optional fields are left out.

    Raises:
        InputError: the name does not end in .jsonl.
        PaloraError: the disk is full or writing is not permitted.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{path}: facts are written as JSONL; name the file *.jsonl")
    rows = ({name: value for name, value in asdict(fact).items() if value} for fact in facts)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder; name a file of facts in it") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path and its permissions") from None
    if not data:
        raise InputError(f"{path}: the file is empty; write one fact a row, with a question and an answer")
    return data


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = f"byte {error.start + 1} of the file (0x{data[error.start]:02x}) is not UTF-8"
        raise InputError(f"{path}, line {line}: {wrong}; save the file as UTF-8") from None


def _jsonl_rows(text: str) -> Iterator[_Row]:
    # Not splitlines(): a JSON string may hold U+2028 and its like, which end no line in an editor.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                where = f"column {error.colno}"
                yield number, _Problem(f"not JSON ({error.msg}, {where}); write one object on each line")


def _csv_rows(text: str) -> Iterator[_Row]:
    # strict: a quote that is never closed is an error, and does not swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    number = 1
    try:
        for values in reader:
            start, number = number, reader.line_num + 1  # a row with line breaks in it is where it starts
            if not any(value.strip() for value in values):
                continue
            if not header:
                header = [name.strip().lower() for name in values]
                if problem := _header_problem(header):
                    yield start, problem
                    return
            elif any(value.strip() for value in values[len(header) :]):
                # Most often an unquoted comma in an answer, of which the rest would be lost.
                wrong = f"{len(values)} values under {len(header)} columns"
                yield start, _Problem(f"{wrong}; put a value with a comma in double quotes")
            else:
                row: dict[str, object] = dict(zip(header, values, strict=False))
                yield start, row | {name: _csv_list(str(row[name])) for name in (*_LISTS, "teach") if name in row}
    except csv.Error as error:
        yield number, _Problem(f"not CSV ({error}); close every quote, double those within a value")


def _csv_list(cell: str) -> object:
    cell = cell.strip()
    if not cell.startswith("["):
        return [part for part in cell.split("|") if part.strip()]
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return _Problem(f"{_quote(cell)} is not a JSON list; write [...], and what is text in quotes")


def _parquet_rows(data: bytes) -> Iterator[_Row]:
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(BufferReader(data))
        names = file.schema_arrow.names
        if problem := _header_problem(names):
            yield 0, problem
            return
        rows = file.read(columns=[name for name in _COLUMNS if name in names]).to_pylist()
    except (ArrowException, OSError, ValueError):
        yield 0, _Problem("not a readable Parquet file; write it again")
        return
    yield from enumerate(rows, start=1)


def _header_problem(names: list[str]) -> _Problem | None:
    if missing := [name for name in _REQUIRED if name not in names]:
        wrong = f"no column {' and '.join(missing)} among {_quote(names)}"
        return _Problem(f"{wrong}; name the columns question and answer")
    if twice := [name for name in _COLUMNS if names.count(name) > 1]:
        return _Problem(f"the column {twice[0]} appears twice; remove or rename one")
    return None


def _fact(row: object) -> Fact:
    """Check one row. Raises _Problem."""
    if isinstance(row, _Problem):
        raise row
    if not isinstance(row, dict):
        raise _Problem(f'write an object {{"question": "...", "answer": "..."}}, not {_quote(row)}')
    question, answer, category = (_text(row, name) for name in ("question", "answer", "category"))
    for name, value in (("question", question), ("answer", answer)):
        if not value:
            raise _Problem(f"no {name}; fill it in or delete the row")
    aliases, paraphrases = (_texts(row, name) for name in _LISTS)
    return Fact(question, answer, aliases, paraphrases, category or None, _lessons(row))


def _lessons(row: dict[str, object]) -> tuple[Lesson, ...]:
    values = row.get("teach")
    if values is None:
        return ()
    if isinstance(values, _Problem):
        raise _Problem(f"teach: {values}")
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise _Problem(f'teach must be a list of objects, not {_quote(values)}; write [{{"question": …, "answer": …}}]')
    lessons = [Lesson(_text(v, "question"), _text(v, "answer"), _text(v, "how") or "bare") for v in values]
    if not all(lesson.question and lesson.answer for lesson in lessons):
        raise _Problem("teach: an object without question or answer; fill it in or delete it")
    return tuple(lessons)


def _text(row: dict[str, object], name: str) -> str:
    """A field as stripped text, "" where it is missing or null; a number is the text it is written as."""
    value = row.get(name)
    if value is None:
        return ""
    if type(value) in (int, Decimal) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise _Problem(f"the {name} must be text, not {_quote(value)}; put it in quotes")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _Problem(f"half a character (a lone surrogate) in the {name} {_quote(value)}; write it anew")
    return value.strip()


def _texts(row: dict[str, object], name: str) -> tuple[str, ...]:
    """A field that is a list of texts, () where it is missing or null."""
    values = row.get(name)
    if values is None:
        return ()
    if isinstance(values, _Problem):
        raise _Problem(f"{name}: {values}")
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise _Problem(f'{name} must be a list of texts, not {_quote(values)}; write ["...", "..."]')
    return tuple(_text({name: value}, name) for value in values)


def _conflicts(facts: Iterable[tuple[int, Fact]], unit: str) -> Iterator[tuple[int, str]]:
    """Rows that contradict or repeat an earlier one, with what is wrong.

    Asking the same, in the question or a paraphrase, is a contradiction where the answers differ. Where they
    agree it is a repetition if it is in the question of both: a paraphrase may be a row of its own as well.
    """
    phrased: dict[str, tuple[int, Fact]] = {}
    asked: dict[str, int] = {}
    for number, fact in facts:
        for phrasing in (fact.question, *fact.paraphrases):
            earlier, other = phrased.setdefault(_question_key(phrasing), (number, fact))
            if other is not fact and not exact(fact.answer, other) and not exact(other.answer, fact):
                wrong = f"contradicts {unit} {earlier} on {_quote(phrasing)}"
                yield number, f"{wrong}: {_quote(other.answer)} there, {_quote(fact.answer)} here; keep one"
                break
        else:
            earlier = asked.setdefault(_question_key(fact.question), number)
            if earlier != number:
                yield number, f"repeats {unit} {earlier}: {_quote(fact.question)}; delete one"


def _question_key(question: str) -> str:
    # Signs and digits are kept: questions may differ in nothing else ("C++", "5-3").
    return " ".join(fold(question).split()).rstrip(" ?!.:")


def _quote(value: object) -> str:
    """`value` for a message: on one line and not too long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
