"""A skill from a file of your own: JSON Lines with a prompt, an answer and the name of a scorer.

    {"prompt": "What is 6 x 7?", "answer": "42", "scorer": "number"}
    {"prompt": "What is 6 x 8?", "answer": "48", "scorer": "number", "solution": "6 x 8 = 48."}

`solution`, a whole right completion, is optional. All rows name the same scorer; `file.jsonl#number` names it
for all of them.

Splits by row, counted from 0 without blank lines: even rows train; of the odd ones 1, 5, 9, ... validate and
3, 7, 11, ... test. A prompt may stand in the file only once, so the splits are disjoint.
"""

from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import Problem, Skill, Split, check_request, take
from palora.data.skills.math import require_math_verify
from palora.data.skills.numbers import parse_number
from palora.data.skills.rows import Row, read_jsonl
from palora.data.skills.scorers import LETTERS, SCORERS

MAX_NEW_TOKENS = 512


def skill(path: Path, scorer: str | None = None) -> Skill:
    """The skill of a file, named after it. The file is read and checked at once.

    Args:
        path: a JSON Lines file, plain or .gz.
        scorer: a name of `SCORERS`; None: the one the rows name.

    Raises:
        InputError: the file or a row is wrong; the message names the file, the line and what to do.
    """
    rows = read_jsonl(path)
    scorer = scorer or _scorer_of(rows)
    if scorer not in SCORERS:
        raise InputError(f"{path}: scorer '{scorer}' is unknown; there are {', '.join(SCORERS)}")
    if scorer == "math":
        require_math_verify()
    everything = [_problem(row, scorer) for row in rows]
    seen: dict[str, Row] = {}
    for row, problem in zip(rows, everything, strict=True):
        if (first := seen.setdefault(problem.prompt, row)) is not row:
            raise InputError(f"{row.where}: the same prompt as in {first.where}; remove one of them")

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        check_request(split, n)
        part = {"train": everything[::2], "validation": everything[1::4], "test": everything[3::4]}[split]
        if not part:
            raise InputError(f"{path}: {len(everything)} rows leave none for the {split} split; add rows (4 at least)")
        return take(part, n, seed)

    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Skill(name, MAX_NEW_TOKENS, problems, SCORERS[scorer])


def _scorer_of(rows: list[Row]) -> str:
    name = rows[0].text("scorer")
    for row in rows:
        if row.text("scorer") != name:
            raise InputError(f"{row.where}: scorer '{row['scorer']}' where the rows before have '{name}'; use one")
    return name


def _problem(row: Row, scorer: str) -> Problem:
    answer = row["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        row = Row({**row.fields, "answer": str(answer)}, row.where)
    answer = row.text("answer").strip()
    if scorer == "number" and parse_number(answer) is None:
        raise InputError(f"{row.where}: the answer '{answer}' is no number, which the scorer 'number' needs")
    if scorer == "choice" and (len(answer) != 1 or answer.upper() not in LETTERS):
        raise InputError(f"{row.where}: the answer '{answer}' is no letter A to E, which the scorer 'choice' needs")
    solution = None if row.fields.get("solution") is None else row.text("solution")
    return Problem(row.text("prompt"), answer, solution)
