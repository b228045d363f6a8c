"""The answers of a report: a few of them to read, all of them to search, and what each arm knows by category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palora.common.wording import percent
from palora.results.answers import FACT, KNOWN
from palora.results.pages.results import UNTRAINED, Results
from palora.results.pages.run_folder import mapping

MOST = 5000  # questions that the page itself holds; of more, those come first where the taught arms differ
DISAGREE = "disagree"


@dataclass(frozen=True)
class Answer:
    """A question with what every arm said. `flags` are what it can be found by: `disagree`, `wrong-ARM`,
    `forgot-ARM`."""

    kind: str
    category: str
    prompt: str
    expected: str
    arms: list[tuple[str, str, bool | None]]
    flags: tuple[str, ...]


def answers(rows: Sequence[Any], results: Results) -> list[Answer]:
    """Rows of `evaluation.json` or `answers.jsonl`, as far as they can be read, the arms in the report's order."""
    told = []
    for row in map(mapping, rows):
        given = mapping(row.get("arms"))
        said = [(a, str(mapping(given[a]).get("text") or ""), _judged(given[a])) for a in results.arms if a in given]
        kind, category, prompt, expected = (_text(row, key) for key in ("kind", "category", "prompt", "expected"))
        flags = _flags(kind, {arm: correct for arm, _, correct in said})
        told.append(Answer(kind, category, prompt, expected, said, flags))
    return told


def _text(row: Mapping[str, Any], key: str) -> str:
    return "" if row.get(key) is None else str(row[key])


def _judged(given: Any) -> bool | None:
    correct = mapping(given).get("correct")
    return correct if isinstance(correct, bool) else None


def _flags(kind: str, correct: Mapping[str, bool | None]) -> tuple[str, ...]:
    """What a question can be found by. Arms disagree where some of those that were taught are right and some wrong."""
    taught = {arm: right for arm, right in correct.items() if arm not in UNTRAINED}
    flags = [DISAGREE] if {True, False} <= set(taught.values()) else []
    for arm, right in taught.items():
        if right is False:
            flags.append(f"wrong-{arm}")
            if kind == KNOWN and correct.get("base"):
                flags.append(f"forgot-{arm}")
    return tuple(flags)


def choices(asked: Sequence[Answer], results: Results) -> list[tuple[str, str]]:
    """What the answers can be narrowed down to: (flag, words with how many there are), without what there is not."""
    taught = [arm for arm in results.arms if arm not in UNTRAINED]
    wanted = [(DISAGREE, "the taught arms disagree")]
    wanted += [(f"forgot-{arm}", f"known facts that {results.label(arm)} forgot") for arm in taught]
    wanted += [(f"wrong-{arm}", f"{results.label(arm)} is wrong") for arm in taught]
    counts = {flag: sum(flag in answer.flags for answer in asked) for flag, _ in wanted}
    return [(flag, f"{words} ({counts[flag]:,})") for flag, words in wanted if counts[flag]]


def searched(asked: Sequence[Answer], results: Results) -> dict[str, Any]:
    """All answers as the page's script reads them."""
    held = asked if len(asked) <= MOST else sorted(asked, key=lambda answer: DISAGREE not in answer.flags)[:MOST]
    arms = [arm for arm in results.arms if any(arm == own for answer in held for own, *_ in answer.arms)]
    rows = []
    for answer in held:
        said = {arm: (text, correct) for arm, text, correct in answer.arms}
        told = {name: getattr(answer, name) for name in ("kind", "category", "prompt", "expected", "flags")}
        rows.append({**told, "given": [said.get(arm, ("", None)) for arm in arms]})
    return {"arms": [{"label": results.label(a), "slot": results.styles[a].slot} for a in arms], "rows": rows}


@dataclass(frozen=True)
class Categories:
    """What each arm answers right, by category: rows of (category, how many questions, a share an arm)."""

    title: str
    rows: list[tuple[str, int, list[str]]]


def categories(asked: Sequence[Answer], results: Results) -> list[Categories]:
    """A table for the new facts and one for the known ones, where there are at least two categories."""
    tables = []
    for kind, title in ((FACT, "New facts, by category"), (KNOWN, "Known facts, by category")):
        groups: dict[str, list[Answer]] = {}
        for answer in asked:
            if answer.kind == kind and answer.category:
                groups.setdefault(answer.category, []).append(answer)
        rows = [(name, len(group), [_share(group, arm) for arm in results.arms]) for name, group in groups.items()]
        if len(rows) > 1:
            tables.append(Categories(title, rows))
    return tables


def _share(group: Sequence[Answer], arm: str) -> str:
    judged = [right for answer in group for own, _, right in answer.arms if own == arm and right is not None]
    return percent(sum(judged) / len(judged), 1) if judged else "–"
