"""Results as tables on the terminal, and what stands in their cells."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from palora.common.wording import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from palora.results.pages.results import Results


def evaluation_table(evaluation: Mapping[str, Any]) -> None:
    """Print the arms of an evaluation: facts learned, in other words too, what is known still, and each skill with what
    is left of it. At most 100 columns wide where it is not a terminal that says how wide it is."""
    from rich.console import Console
    from rich.table import Table

    from palora.results.pages.results import Results
    from palora.results.pages.run_folder import measured

    arms = measured(evaluation)
    results = Results(evaluation)
    skills = results.skills
    table = Table(title="What each arm answers right", title_justify="left")
    table.add_column("arm")
    shares = {"facts learned": "recall", "in other words": "paraphrase_recall", "known facts": "locality"}
    if any(arm.get("n_updated") for arm in arms.values()):
        shares["old answers"] = "old_answer"
    for heading in (*shares, *map(one_line, skills)):
        table.add_column(heading, justify="right")
    for name, arm in arms.items():
        cells = [percent(arm.get(key)) for key in shares.values()]
        cells[0] += f" of {arm['n_facts']}" if arm.get("recall") is not None and arm.get("n_facts") else ""
        for skill in skills:
            kept = results.kept(name, skill)
            left = "" if kept is None or name == results.reference(skill) else f" ({percent(kept)} left)"
            cells.append(percent(arm["skills"][skill]["accuracy"]) + left)
        table.add_row(name, *cells, style="bold" if name == "palora" else None)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)
    if results.harness:
        console.print(_harness_table(results))


def _harness_table(results: "Results") -> "Table":
    """What lm-eval found, a row for each of its figures."""
    from rich.table import Table

    table = Table(title="What lm-eval finds", title_justify="left")
    table.add_column("task")
    for name in results.arms:
        table.add_column(name, justify="right")
    for task, metric, *_ in results.harness:
        found = [results.judged(name, task, metric) for name in results.arms]
        cells = [
            number(own.get("value")) + (f" ± {number(own['stderr'])}" if own.get("stderr") else "") for own in found
        ]
        table.add_row(one_line(f"{task}: {metric}"), *cells)
    return table


def summary(evaluation: Mapping[str, Any]) -> str | None:
    """The result in a sentence; None where nothing that was trained was measured."""
    from palora.results.pages.findings import headline
    from palora.results.pages.results import UNTRAINED, Results

    results = Results(evaluation)
    return None if results.subject in UNTRAINED else headline(results)


def print_answers(evaluation: Mapping[str, Any], n: int) -> None:
    """Print the first `n` questions with what every arm answers: ✓ right, ✗ wrong."""
    for asked in evaluation["answers"][:n]:
        question, answer = (one_line(" ".join(asked[key].split())) for key in ("prompt", "expected"))
        print(f"\n{question}  [{answer}]")
        for arm, said in asked["arms"].items():
            text = one_line(" ".join(said["text"].split()))
            print(f"  {'✓' if said['correct'] else '✗'} {arm:<8} {text[:87] + '…' if len(text) > 88 else text}")
    if n:
        print()


def percent(value: float | None) -> str:
    """A share as a percentage; a dash where it was not measured."""
    return "–" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    """Three significant digits; a dash where it was not measured."""
    return "–" if value is None else f"{value:.3g}"


def value_text(value: Any) -> str:
    """One value on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or "–"
    return "–" if value is None else str(value)
