"""Results as tables on the terminal, and what stands in their cells."""

from collections.abc import Mapping
from typing import Any

from palora.common.wording import one_line


def evaluation_table(evaluation: Mapping[str, Any]) -> None:
    """Print the arms of an evaluation: facts learned, what is known still, and each skill with its retention."""
    from rich.console import Console
    from rich.table import Table

    arms = {name: arm for name, arm in evaluation["arms"].items() if arm is not None}
    skills, against = list(next(iter(arms.values()))["skills"]), "expert" if "expert" in arms else "base"
    table = Table(title="Facts learned, skill kept", title_justify="left")
    table.add_column("arm")
    shares = {"recall": "recall", "exact": "recall_exact", "F1": "recall_f1"}
    shares |= {"paraphrases": "paraphrase_recall", "known facts": "locality"}
    if any(arm.get("n_updated") for arm in arms.values()):
        shares["old answers"] = "old_answer"
    for heading in shares:
        table.add_column(heading, justify="right")
    for skill in skills:
        table.add_column(one_line(skill), justify="right")
        table.add_column(f"vs {against}", justify="right")
    for heading in ("‖ΔW‖/‖W‖", "drift", "leak"):
        table.add_column(heading, justify="right")
    for name, arm in arms.items():
        update = evaluation["update"].get(name, {})
        cells = [percent(arm.get(key)) for key in shares.values()]  # an evaluation of an older version has no F1
        for skill in skills:
            low, high = arm["skills"][skill]["ci95"]
            cells.append(f"{percent(arm['skills'][skill]['accuracy'])} [{low:.0%}, {high:.0%}]")
            cells.append(percent(evaluation["retention"][name][skill][f"vs_{against}"]))
        cells += [number(update.get(key)) for key in ("relative_norm", "drift", "leak")]
        table.add_row(name, *cells, style="bold" if name == "palora" else None)
    Console(width=None if Console().is_terminal else 160).print(table)


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
