"""A skill from a file of your own: JSON Lines with a prompt, an answer and the name of a scorer.

    {"prompt": "What is 6 x 7?", "answer": "42", "scorer": "number"}
    {"prompt": "What is 6 x 8?", "answer": "48", "scorer": "number", "solution": "6 x 8 = 48."}

`solution`, a whole right completion, is optional. All rows name the same scorer; `file.jsonl#number` (or `--scorer`)
names it for all of them. Where nobody does, it follows from the answers: `number` if all are numbers, `choice` if all
are letters A to E, `likelihood` if there are choices, else `contains`. A row may say `max_new_tokens`, how long
every answer may get (512 by default).

    {"prompt": "What is a whale?", "answer": "a mammal", "scorer": "likelihood", "choices": ["a fish", "a mammal"]}

With the scorer `likelihood` the model writes nothing: the choice that it finds likeliest, a character, is its answer,
as lm-eval counts `acc_norm`.

Rows may name their split (`"split": "train"`, `validation` or `test`), all of them or none. Otherwise by row, counted
from 0 without blank lines: even rows train; of the odd ones 1, 5, 9, ... validate and 3, 7, 11, ... test. A prompt may
stand in the file only once, so the splits are disjoint.
"""

from pathlib import Path

from palora.common.errors import InputError
from palora.common.progress import say_once
from palora.data.skills.base import SPLITS, Problem, Skill, Split, check_request, take
from palora.data.skills.math import require_math_verify
from palora.data.skills.numbers import parse_number
from palora.data.skills.rows import Row, read_jsonl
from palora.data.skills.scorers import LETTERS, SCORERS

MAX_NEW_TOKENS = 512


def skill(path: Path, scorer: str | None = None) -> Skill:
    """The skill of a file, named after it. The file is read and checked at once.

    Args:
        path: a JSON Lines file, plain or .gz.
        scorer: a name of `SCORERS`; None: the one the rows name, or one that their answers allow.

    Raises:
        InputError: the file or a row is wrong; the message names the file, the line and what to do.
    """
    rows = read_jsonl(path)
    scorer = scorer or _scorer_of(rows, path)
    if scorer not in SCORERS:
        raise InputError(f"{path}: scorer '{scorer}' is unknown; there are {', '.join(SCORERS)}")
    if scorer == "math":
        require_math_verify()
    everything = [_problem(row, scorer) for row in rows]
    splits = _splits(rows)
    limit = _limit(rows)
    seen: dict[str, Row] = {}
    for row, problem in zip(rows, everything, strict=True):
        if (first := seen.setdefault(problem.prompt, row)) is not row:
            raise InputError(f"{row.where}: the same prompt as in {first.where}; remove one of them")

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        check_request(split, n)
        part = [problem for problem, own in zip(everything, splits, strict=True) if own == split]
        if not part:
            raise InputError(f"{path}: {len(everything)} rows leave none for the {split} split; add rows (4 at least)")
        return take(part, n, seed)

    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Skill(name, limit, problems, SCORERS[scorer])


def _limit(rows: list[Row]) -> int:
    """How long an answer may get: what the rows that say it say alike."""
    said = [(row, row["max_new_tokens"]) for row in rows if "max_new_tokens" in row.fields]
    for row, limit in said:
        if type(limit) is not int or limit < 1:
            raise InputError(f"{row.where}: 'max_new_tokens' must be a whole number of at least 1, not {limit!r}")
        if limit != said[0][1]:
            raise InputError(
                f"{row.where}: 'max_new_tokens' is {limit}, and {said[0][1]} in {said[0][0].where}; use one"
            )
    return int(said[0][1]) if said else MAX_NEW_TOKENS


def _splits(rows: list[Row]) -> list[str]:
    """The split of every row: what it says, or by its number."""
    if "split" not in rows[0].fields:
        return [("train", "validation", "train", "test")[number % 4] for number in range(len(rows))]
    for row in rows:
        if row.text("split") not in SPLITS:
            raise InputError(f"{row.where}: split '{row['split']}' is unknown; there are {', '.join(SPLITS)}")
    return [row["split"] for row in rows]


def _scorer_of(rows: list[Row], path: Path) -> str:
    """The scorer that the rows name; where none does, the one that fits their answers."""
    named = [row for row in rows if row.fields.get("scorer") is not None]
    if not named:
        scorer = _fitting(rows)
        say_once(str(path), f"no scorer is named, so '{scorer}' marks it; there are {', '.join(SCORERS)}")
        return scorer
    name = named[0].text("scorer")
    for row in rows:
        if row.fields.get("scorer") is None:
            wrong = f"no scorer, where others have '{name}'; name one in every row, in none, or with --scorer"
            raise InputError(f"{row.where}: {wrong}: there are {', '.join(SCORERS)}")
        if row.text("scorer") != name:
            raise InputError(f"{row.where}: scorer '{row['scorer']}' where the rows before have '{name}'; use one")
    return name


def _fitting(rows: list[Row]) -> str:
    """The scorer that fits the answers of all rows."""
    if all("choices" in row.fields for row in rows):
        return "likelihood"
    answers = [str(row["answer"]).strip() for row in rows]
    if all(parse_number(answer) is not None for answer in answers):
        return "number"
    return "choice" if all(len(a) == 1 and a.upper() in LETTERS for a in answers) else "contains"


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
    choices: tuple[str, ...] = ()
    if scorer == "likelihood":
        listed = row["choices"]
        if not (isinstance(listed, list) and all(isinstance(c, str) and c.strip() for c in listed)):
            raise InputError(f"{row.where}: 'choices' must be a list of texts that are not empty")
        choices, solution = tuple(c.strip() for c in listed), solution or answer
        if answer not in choices:
            raise InputError(f"{row.where}: the answer '{answer}' is none of the choices")
    return Problem(row.text("prompt"), answer, solution, choices=choices)
