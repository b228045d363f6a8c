"""ARC: grade-school science questions with three to five choices. https://allenai.org/data/arc (CC BY-SA 4.0)

A row looks like this in the published files; the rows on the hub hold the same in flat lists:

    {"id": "x", "answerKey": "B", "question": {"stem": "Which of these is a mammal?", "choices":
     [{"text": "trout", "label": "A"}, {"text": "whale", "label": "B"}, {"text": "gull", "label": "C"}]}}

Splits as published: 2,251 / 570 / 2,376 rows of ARC-Easy, 1,119 / 299 / 1,172 of ARC-Challenge. A few rows
label their choices 1 to 4; all are relabelled A, B, C, ...
"""

from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import Problem, Skill, Split, check_request, take
from palora.data.skills.rows import Row, read_folder, read_hub
from palora.data.skills.scorers import LETTERS, choice

REQUEST = "Answer with the letter of the right choice."
FILE_NAMES = {"train": "Train", "validation": "Dev", "test": "Test"}


def _problem(row: Row) -> Problem:
    question, key = row["question"], row.text("answerKey")
    try:
        if isinstance(question, dict):
            stem, choices = question["stem"], [(c["label"], c["text"]) for c in question["choices"]]
        else:
            both = row["choices"]
            stem, choices = question, list(zip(both["label"], both["text"], strict=True))
        answer = LETTERS[[label for label, _ in choices].index(key)]
        lines = [stem.strip(), *(f"{letter}. {text}" for letter, (_, text) in zip(LETTERS, choices, strict=False))]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InputError(f"{row.where}: no row of ARC with answerKey '{key}' among its choices") from None
    return Problem("\n".join([*lines, "", REQUEST]), answer, solution=answer)


def _skill(name: str, published: str, folder: Path | None) -> Skill:
    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        check_request(split, n)
        if folder is None:
            rows = read_hub(name, "allenai/ai2_arc", published, split)
        else:
            file = f"{published}-{FILE_NAMES[split]}.jsonl"
            rows = read_folder(name, folder, [file, f"{published}/{file}", f"{name}_{split}.jsonl"])
        return take([_problem(row) for row in rows], n, seed)

    return Skill(name, max_new_tokens=32, problems=problems, score=choice)


def easy(folder: Path | None = None) -> Skill:
    """ARC-Easy from `folder` (ARC-Easy-Train.jsonl or arc_easy_train.jsonl, ...), or from the hub."""
    return _skill("arc_easy", "ARC-Easy", folder)


def challenge(folder: Path | None = None) -> Skill:
    """ARC-Challenge from `folder` (ARC-Challenge-Train.jsonl, ... as in `easy`), or from the hub."""
    return _skill("arc_challenge", "ARC-Challenge", folder)
