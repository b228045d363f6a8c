"""Facts: questions with the answer a model is to learn, read from a file (`marking.py` judges what it says).

A file holds one fact a row, in any of the files of `tables.py`:

| column | |
|---|---|
| `question`, `answer` | required text; a number counts as an answer |
| `aliases` | other right answers, a list |
| `paraphrases` | other ways to ask, a list |
| `category` | a label to group results by |
| `replaces` | the old answer of a fact that has changed: it is measured how often it is still said |
| `teach` | what is trained in place of question and answer: a list of `{"question", "answer", "how"}` |

`teach` is what `palora facts rephrase` adds, in the model's own words. The answer stays what counts as right. Other
columns are ignored. A list in a cell of CSV or Excel is JSON, `["He", "helium"]`, or separated by `|`, `He|helium`.
Columns of other names are mapped (`sources.py`), other forms are recognised (`shapes.py`).
"""

import datetime
import json
import math
import os
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from sys import intern
from typing import NamedTuple

from palora.common.errors import InputError
from palora.common.files import atomic_file
from palora.common.progress import say_once
from palora.data.marking import exact, fold
from palora.data.shapes import KNOWN, PLAIN, Shape, quoted, shape_of, unknown
from palora.data.sources import Given, Source, sources
from palora.data.tables import Problem, Row, read_table
from palora.data.templates import read_templates

LONGEST = 100_000  # characters of a text: no model is taught a book by one question


@dataclass(frozen=True, slots=True)
class Lesson:
    """One way in which a fact is taught: a question, a whole answer, and where that comes from.

    Args:
        how: `model`, the model's own words; `mixed`; `sentence`, made of question and answer; `bare`, the answer.
    """

    question: str
    answer: str
    how: str = "bare"


@dataclass(frozen=True, slots=True)  # slots: a million of them are 170 MB smaller
class Fact:
    """One thing to know.

    Args:
        question: what is asked, without a chat template.
        answer: the answer that is trained.
        aliases: other answers that count as right. Default: none.
        paraphrases: other ways to ask the same question. Default: none.
        category: a label to group results by. Default: none.
        teach: what is trained in place of question and answer. Default: nothing else.
        replaces: the answer that was right before this one. Default: none.
    """

    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    category: str | None = None
    teach: tuple[Lesson, ...] = ()
    replaces: str | None = None

    @property
    def replaced(self) -> "Fact | None":
        """The fact as it was before; None where it replaces nothing."""
        return Fact(self.question, self.replaces) if self.replaces else None


class Conflict(NamedTuple):
    """A fact that asks what an earlier one asks: with another answer (it contradicts), or the same (it repeats)."""

    later: int
    earlier: int
    phrasing: str
    contradicts: bool


@dataclass
class Reading:
    """What was read from one file.

    Args:
        facts, numbers: the facts, and the line or row that each starts on.
        problems: (number, what is wrong and how to mend it) of the other rows; 0 is the file as a whole.
        unit: what the numbers count.
        said: how the file was taken, where it is not our own form.
    """

    source: Source
    facts: list[Fact]
    numbers: Sequence[int]
    problems: list[tuple[int, str]]
    unit: str
    said: str = ""

    def where(self, number: int) -> str:
        """The place of a row, for a message."""
        return f"{self.source.file}, {self.unit} {number}" if number else self.source.file


def read_facts(given: Given) -> list[Fact]:
    """Read and check facts.

    Args:
        given: a file (`tables.py` lists the kinds), a mapping of a file and its columns, or a list of these
            (`sources.py`).

    Returns:
        The facts in the order of the files, at least one.

    Raises:
        InputError: a file cannot be read or holds no facts, a row is not a fact, or two rows repeat or contradict each
            other. One line: the first offending row, the mend, and how many more there are.
    """
    readings = [read(source) for source in sources(given)]
    for reading in readings:
        _refuse(reading, [*reading.problems, *_conflict_problems(reading)])
        if not reading.facts:
            wrong = "there are no facts in it; write one a row, with a question and an answer"
            raise InputError(f"{reading.source.file}: {wrong}")
    if len(readings) == 1:
        say_once(readings[0].source.file, readings[0].said)
        return readings[0].facts
    facts = [fact for reading in readings for fact in reading.facts]
    if found := conflicts(facts):
        places = [reading.where(number) for reading in readings for number in reading.numbers]
        first = found[0]
        does = "contradicts" if first.contradicts else "repeats"
        asked = f"{does} {places[first.earlier]}: {quoted(first.phrasing)}"
        raise InputError(f"{places[first.later]}: {asked}; give one of the two files without it{_more(found)}")
    for reading in readings:
        say_once(reading.source.file, reading.said)
    return facts


def read(source: Source) -> Reading:
    """Read one file: its facts, and what is wrong with its other rows; not whether facts repeat each other.

    Raises: InputError where the file cannot be read at all.
    """
    templates = read_templates(source.templates)
    table = read_table(source.file, KNOWN | {name.strip().lower() for name in source.columns.values()})
    facts: list[Fact] = []
    numbers, problems = array("I"), []
    shape: Shape | None = None
    if table.columns is not None:
        try:
            shape = shape_of(table.columns, source.columns, templates, table.cells)
            if shape is None and table.columns:
                hint = "; the first row must name the columns" if table.header else ""
                raise Problem(f"{unknown(table.columns, source.columns)}{hint}")
        except Problem as problem:
            return Reading(source, [], [], [(table.header, str(problem))], table.unit)
        table.needed = list(shape.columns.values()) if shape else None
    taken = shape
    for number, row in table.rows:
        try:
            if isinstance(row, Problem):
                raise row
            if not isinstance(row, dict):
                raise Problem(f'write an object {{"question": "...", "answer": "..."}}, not {quoted(row)}')
            if table.columns is None and (shape is None or not shape.fits(row)):
                shape = shape_of(list(row), source.columns, templates)
                if shape is None:
                    raise unknown(list(row), source.columns, keys=True)
                taken = taken or shape
            assert shape is not None
            facts.append(_fact(row if shape.plain else shape.row(row), table.cells))
            numbers.append(number)
        except Problem as problem:
            problems.append((number, str(problem)))
    said = [taken.form.said] if taken and taken.form is not PLAIN else []
    return Reading(source, facts, numbers, problems, table.unit, "; ".join([*filter(None, [table.said]), *said]))


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
    with atomic_file(path) as file, open(file, "w", encoding="utf-8", newline="\n") as opened:
        for fact in facts:
            row = {name: value for name, value in asdict(fact).items() if value}
            opened.write(json.dumps(row, ensure_ascii=False) + "\n")


def besides(facts: Sequence[Fact], new: Collection[Fact]) -> list[Fact]:
    """The facts whose question is none of the new ones': to keep an answer that is to change would be to fight it."""
    asked = {question_key(q) for fact in new for q in (fact.question, *fact.paraphrases)}
    return [fact for fact in facts if question_key(fact.question) not in asked]


def conflicts(facts: Sequence[Fact]) -> list[Conflict]:
    """Facts that contradict or repeat an earlier one.

    Asking the same, in the question or a paraphrase, is a contradiction where the answers differ. Where they agree it
    is a repetition if it is in the question of both: a paraphrase may be a row of its own as well.
    """
    phrased: dict[str, int] = {}
    asked: dict[str, int] = {}
    found = []
    for index in _asked_twice(facts):
        fact = facts[index]
        for phrasing in (fact.question, *fact.paraphrases):
            earlier = phrased.setdefault(question_key(phrasing), index)
            other = facts[earlier]
            if earlier != index and not exact(fact.answer, other) and not exact(other.answer, fact):
                found.append(Conflict(index, earlier, phrasing, True))
                break
        else:
            earlier = asked.setdefault(question_key(fact.question), index)
            if earlier != index:
                found.append(Conflict(index, earlier, fact.question, False))
    return found


def _asked_twice(facts: Sequence[Fact]) -> list[int]:
    """Those facts of which a phrasing is in the list twice, by its hash: 12 bytes a phrasing, and not its text."""
    hashes, owners = array("q"), array("I")
    for index, fact in enumerate(facts):
        hashes.append(hash(question_key(fact.question)))
        owners.append(index)
        for phrasing in fact.paraphrases:
            hashes.append(hash(question_key(phrasing)))
            owners.append(index)
    twice: set[int] = set()
    for part in range(16):  # a sixteenth at a time: a set of a million numbers is 100 MB
        seen: set[int] = set()
        own = [value for value in hashes if value & 15 == part]
        if len(set(own)) < len(own):
            twice.update(value for value in own if value in seen or seen.add(value))  # type: ignore[func-returns-value]
    return sorted({owner for value, owner in zip(hashes, owners, strict=True) if value in twice}) if twice else []


def question_key(question: str) -> str:
    """What two wordings of a question share if they are one: without case, spaces and the sign at the end."""
    # Signs and digits are kept: questions may differ in nothing else ("C++", "5-3").
    folded = question.lower() if question.isascii() else fold(question)
    return " ".join(folded.split()).rstrip(" ?!.:")


def _conflict_problems(reading: Reading) -> Iterator[tuple[int, str]]:
    for conflict in conflicts(reading.facts):
        number, earlier = reading.numbers[conflict.later], reading.numbers[conflict.earlier]
        yield number, conflict_text(conflict, reading.facts, f"{reading.unit} {earlier}")


def conflict_text(conflict: Conflict, facts: Sequence[Fact], earlier: str) -> str:
    """What is wrong with two facts, and how to mend it."""
    asked = quoted(conflict.phrasing)
    if not conflict.contradicts:
        return f"repeats {earlier}: {asked}; palora facts check --fix first keeps one"
    answers = f"{quoted(facts[conflict.earlier].answer)} there, {quoted(facts[conflict.later].answer)} here"
    return f"contradicts {earlier} on {asked}: {answers}; keep one (palora facts check --fix merge joins them)"


def _refuse(reading: Reading, problems: list[tuple[int, str]]) -> None:
    if problems:
        number, text = min(problems)
        raise InputError(f"{reading.where(number)}: {text}{_more(problems)}")


def _more(problems: Sequence[object]) -> str:
    return f" (and {len(problems) - 1} more to mend in this file)" if len(problems) > 1 else ""


# A row


def _fact(row: Row, cells: bool) -> Fact:
    """Check one row. Raises Problem."""
    question, answer = _text(row, "question"), _answer(_text(row, "answer"), cells)
    for name, value in (("question", question), ("answer", answer)):
        if not value:
            raise Problem(f"no {name}; fill it in (palora facts check --fix first leaves such rows out)")
    if len(row) == 2:
        return Fact(question, answer)
    category, replaces = _text(row, "category"), _answer(_text(row, "replaces"), cells)
    fact = Fact(
        question,
        answer,
        tuple(_answer(alias, cells) for alias in _texts(row, "aliases")),
        _texts(row, "paraphrases"),
        intern(category) if category else None,
        _lessons(row),
        replaces or None,
    )
    if replaces and exact(replaces, replace(fact, replaces=None)):
        raise Problem(f"replaces is the answer itself, {quoted(replaces)}; write the old answer there")
    return fact


def _lessons(row: Row) -> tuple[Lesson, ...]:
    values = row.get("teach")
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        example = '[{"question": …, "answer": …}]'
        raise Problem(f"teach must be a list of objects, not {quoted(values)}; write {example}")
    lessons = [Lesson(_text(v, "question"), _text(v, "answer"), _text(v, "how") or "bare") for v in values]
    if not all(lesson.question and lesson.answer for lesson in lessons):
        raise Problem("teach: an object without question or answer; fill it in")
    return tuple(lessons)


def _text(row: Row, name: str) -> str:
    """A field as stripped text, "" where it is missing or null; a number or a date is the text it is written as."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        value = _written(value)
        if value is None:
            wrong = f"the {name} must be text, not {quoted(row[name])}"
            several = name == "answer" and isinstance(row[name], list | dict)
            mend = "if these are several right answers: --columns answers=answer" if several else "put it in quotes"
            raise Problem(f"{wrong}; {mend}")
    if not value.isprintable():
        value = _clean(value, name)
    value = value.strip()
    if len(value) > LONGEST:
        raise Problem(f"the {name} has {len(value):,} characters, and may have {LONGEST:,}; shorten it")
    if len(value) > _DIGITS and re.search(rf"\d{{{_DIGITS + 1}}}", value):
        raise Problem(f"a number of more than {_DIGITS:,} digits in the {name}; shorten it")
    return value


_DIGITS = 4300  # Python reads no whole number that is longer
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")  # of terminals
_BREAKS = re.compile(r"\r\n|[\r\x0b\x0c\x85]|_x000D_\n?")  # of Windows, old Macs, Word, mainframes and Excel's XML
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")


def _clean(text: str, name: str) -> str:
    """A text without what nobody writes: line breaks are \\n, escape sequences and control characters go."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Problem(f"half a character (a lone surrogate) in the {name} {quoted(text)}; write it anew")
    return _CONTROL.sub("", _BREAKS.sub("\n", _ESCAPES.sub("", text)))


def _written(value: object) -> str | None:
    """A number or a date as it is written: 1969.0 of a spreadsheet is 1969. None for anything else."""
    if type(value) is int:
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        if abs(float(value)) < 1e15 and value == int(value):
            return str(int(value))
        return f"{value:.15g}" if isinstance(value, float) else str(value)  # as a spreadsheet shows 0.1 + 0.2
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(sep=" ", timespec="auto")
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else None


def _answer(text: str, cells: bool) -> str:
    """An answer in a cell that is a whole number written as 1969.0. Under three digits it may be a version: 3.0."""
    if cells and text.endswith(".0") and re.fullmatch(r"-?\d{3,}\.0", text):
        return text[:-2]
    return text


def _texts(row: Row, name: str) -> tuple[str, ...]:
    """A field that is a list of texts, () where it is missing or null."""
    values = row.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise Problem(f'{name} must be a list of texts, not {quoted(values)}; write ["...", "..."]')
    return tuple(_text({name: value}, name) for value in values)
