"""Every answer of an evaluation, a row a question with what each arm said: `answers.jsonl` of a run.

    {"kind": "fact", "category": "capital", "prompt": …, "expected": …,
     "arms": {"palora": {"text": …, "correct": true}, …}}

The kind is `fact`, `paraphrase` (a fact in words that were not trained on), `known fact`, or the name of a skill.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.common.errors import InputError
from palora.common.files import atomic_write_text

if TYPE_CHECKING:
    from palora.data.facts import Fact
    from palora.language.scoring import Answer

FILE = "answers.jsonl"
FACT, PARAPHRASE, KNOWN = "fact", "paraphrase", "known fact"
KINDS = {"facts": FACT, "paraphrases": PARAPHRASE, "known": KNOWN}  # of an arm's answers; the others are skills

Marked = Mapping[str, Mapping[str, "Sequence[Answer]"]]  # what each arm answered, by kind


def side_by_side(marked: Marked, facts: Sequence["Fact"], known: Sequence["Fact"]) -> list[dict[str, Any]]:
    """Every question with every arm's answer: facts, their paraphrases, known facts, then the skills' problems."""
    categories: dict[str, list[str | None]] = {
        "facts": [fact.category for fact in facts],
        "paraphrases": [fact.category for fact in facts for _ in fact.paraphrases],
        "known": [fact.category for fact in known],
    }
    asked = next(iter(marked.values()))
    return [
        {
            "kind": KINDS.get(kind, kind.removeprefix("skill:")),
            "category": categories[kind][i] if kind in categories else None,
            "prompt": first.prompt,
            "expected": first.expected,
            "arms": {arm: {"text": of[kind][i].text, "correct": of[kind][i].correct} for arm, of in marked.items()},
        }
        for kind in sorted(asked, key=lambda kind: [*KINDS, kind].index(kind))
        for i, first in enumerate(asked[kind])
    ]


def drawn(rows: Sequence[dict[str, Any]], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` of the rows at random, half facts and half problems where there are both."""
    facts = [i for i, row in enumerate(rows) if row["kind"] == FACT]
    problems = [i for i, row in enumerate(rows) if row["kind"] not in KINDS.values()]
    rng = random.Random(seed)
    chosen = rng.sample(problems, min(n // 2 if facts else n, len(problems)))
    chosen += rng.sample(facts, min(n - len(chosen), len(facts)))
    return [rows[i] for i in sorted(chosen)]


def read_answers(path: Path) -> list[Any]:
    """The rows of such a file. Raises InputError where a line is not JSON."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); was it cut short or edited?") from None
    return rows


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as JSONL, completely or not at all."""
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
