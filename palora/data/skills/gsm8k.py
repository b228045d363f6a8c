"""GSM8K: grade-school word problems with worked solutions. https://github.com/openai/grade-school-math (MIT)

A row looks like this:

    question: A rowing boat costs $15 an hour. Tom rents one for 40 minutes. How much does he pay?
    answer:   The boat costs 15/60 = $<<15/60=0.25>>0.25 per minute.
              For 40 minutes, Tom pays 0.25 x 40 = $<<0.25*40=10>>10.
              #### 10

Splits as in the closest public code: even rows of the training file (from 0) train, odd ones validate, the
test file tests: 3,737 / 3,736 / 1,319 rows.
"""

import re
from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import Problem, Skill, Split, check_request, take
from palora.data.skills.numbers import final_number, parse_number
from palora.data.skills.rows import Row, read_folder, read_hub

# Of five wordings the one that small models follow best: asked for "a line `#### N`, where N is …" they write `#### N`.
REQUEST = "Reason step by step. Then write the final answer, as a plain number, after ####."
CALCULATOR = re.compile(r"<<.*?>>")  # marks for a calculator that is not there


def score(completion: str, problem: Problem) -> bool:
    """Whether the completion ends on the right number, whatever its notation (see `numbers.final_number`)."""
    number = final_number(completion)
    return number is not None and number == parse_number(problem.answer)


def _problem(row: Row) -> Problem:
    solution = CALCULATOR.sub("", row.text("answer")).strip()
    answer = solution.rpartition("####")[2].strip().replace(",", "")
    if "####" not in solution or parse_number(answer) is None:
        raise InputError(f"{row.where}: the answer does not end in '#### N'")
    return Problem(f"{row.text('question').strip()}\n\n{REQUEST}", answer, solution)


def skill(folder: Path | None = None) -> Skill:
    """GSM8K from `folder` (gsm8k_train.jsonl or train.jsonl, the same for test), or from the hub."""

    def problems(split: Split, n: int | None, seed: int) -> list[Problem]:
        check_request(split, n)
        published = "test" if split == "test" else "train"
        if folder is None:
            rows = read_hub("gsm8k", "openai/gsm8k", "main", published)
        else:
            rows = read_folder("gsm8k", folder, [f"gsm8k_{published}.jsonl", f"{published}.jsonl"])
        part = {"train": rows[::2], "validation": rows[1::2], "test": rows}[split]
        return take([_problem(row) for row in part], n, seed)

    return Skill("gsm8k", max_new_tokens=512, problems=problems, score=score)
