"""The table of a report: a column an arm, a row a measure, and what each measure means."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from palora.common.wording import significant
from palora.results.pages.page import words
from palora.results.pages.results import Results
from palora.results.pages.run_folder import finite
from palora.results.table import percent


@dataclass(frozen=True)
class Cell:
    """One number of the table: its text, a smaller second line, the length of the bar under it in [0, 1]."""

    text: str = "–"
    note: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Row:
    label: str
    cells: list[Cell]
    definition: str


DEFINITIONS = words("measures")


def table(results: Results) -> list[tuple[str, list[Row]]]:
    """The table, one column an arm: (heading, rows) per group. A row without any number is left out."""

    def share(value: float | None, interval: tuple[float, float] | None = None) -> Cell:
        if value is None:
            return Cell()
        note = "" if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"
        return Cell(percent(value), note, min(max(value, 0.0), 1.0))

    def plain(value: Any, form: Callable[[float], str] = significant) -> Cell:
        number = finite(value)
        return Cell() if number is None else Cell(form(number))

    def row(label: str, cell: Callable[[str], Cell]) -> Row:
        return Row(label, [cell(arm) for arm in results.arms], DEFINITIONS[label])

    def measured(key: str, arm: str) -> Cell:
        return share(results.measure(arm, key))

    groups: list[tuple[str, list[Row]]] = []
    for skill in results.skills:
        count = results.problems(skill)
        accuracies = {
            arm: share(results.accuracy(arm, skill), results.accuracy_interval(arm, skill)) for arm in results.arms
        }
        rows = [row("accuracy", accuracies.__getitem__)]
        for reference in ("expert", "base"):
            shares = {arm: share(results.kept(arm, skill, reference)) for arm in results.arms}
            rows.append(row(f"retention vs {reference}", shares.__getitem__))
        lengths = {arm: plain(results.answer_words(arm, skill)) for arm in results.arms}
        rows.append(row("words an answer", lengths.__getitem__))
        groups.append((f"skill: {skill}" + (f" ({count:,} problems)" if count else ""), rows))
    counts = (("n_facts", "new"), ("n_known", "known"))
    totals = [(max((results.measure(arm, key) or 0 for arm in results.arms), default=0), name) for key, name in counts]
    told = ", ".join(f"{total:,.0f} {name}" for total, name in totals if total)
    recall = row("recall", lambda arm: share(results.measure(arm, "recall"), results.recall_interval(arm)))
    others = {"recall, exact": "recall_exact", "recall, F1": "recall_f1", "paraphrase recall": "paraphrase_recall"}
    others |= {"recall, updated facts": "updated_recall", "old answers said": "old_answer"}
    others |= {"old answers said, paraphrases": "old_answer_paraphrased", "locality": "locality"}
    learned = [row(name, partial(measured, key)) for name, key in others.items()]
    groups.append(("facts" + (f" ({told})" if told else ""), [recall, *learned]))
    judged = []
    for task, metric, n, version in results.harness:
        told = f"{metric} of lm-eval's task {task}, version {version}" + (f", {n} questions" if n else "")
        found = [results.judged(arm, task, metric) for arm in results.arms]
        judged.append(Row(f"{task}: {metric}", [_judged(own) for own in found], told))
    groups.append(("judged by lm-eval", judged))
    update = [
        row("taught", lambda arm: Cell(", ".join(f"{n} {how}" for how, n in results.taught(arm).items()) or "–")),
        row("rule", lambda arm: Cell(str(results.update(arm, "rule") or "–"))),
        row("in the loss", lambda arm: Cell(", ".join(f"{t} {w:g}" for t, w in results.loss(arm).items()) or "–")),
        row("leak", lambda arm: plain(results.update(arm, "leak"))),
        row("drift", lambda arm: plain(results.update(arm, "drift"))),
        row("‖ΔW‖", lambda arm: plain(results.update(arm, "norm"))),
        row("‖ΔW‖ / ‖W‖", lambda arm: plain(results.update(arm, "relative_norm"))),
        row("parameters", lambda arm: plain(results.update(arm, "parameters"), lambda value: f"{value:,.0f}")),
    ]
    groups.append(("the update", update))
    measured_rows = ((head, [row for row in rows if any(c.text != "–" for c in row.cells)]) for head, rows in groups)
    return [(heading, rows) for heading, rows in measured_rows if rows]


def _judged(own: dict[str, Any]) -> Cell:
    """A figure of lm-eval with its standard error: a share where it can be one."""
    value, error = finite(own.get("value")), finite(own.get("stderr"))
    if value is None:
        return Cell()
    if not 0 <= value <= 1:
        return Cell(significant(value), "" if error is None else f"± {significant(error)}")
    return Cell(percent(value), "" if error is None else f"± {100 * error:.1f}", value)
