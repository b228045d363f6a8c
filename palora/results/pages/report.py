"""The report of a run: one self-contained page, `report.html`, that says what was learned and what was lost.

    run folder ─> results ─> sentences (findings.py), table (report_table.py), pictures (report_pictures.py) ─> page

Only evaluation.json is needed: a section whose file is missing says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palora.common.files import atomic_write_text
from palora.common.wording import duration, percent
from palora.results.pages import page
from palora.results.pages import report_pictures as pictures
from palora.results.pages.findings import expert_training, findings, headline, limits, protection_summary
from palora.results.pages.report_table import DEFINITIONS, table
from palora.results.pages.results import Results
from palora.results.pages.run_folder import Run, finite, mapping, read_run
from palora.results.plots.style import Style


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, atomically, and return its path.

    Reads evaluation.json and, where they are there, recipe.yaml, metrics.jsonl, expert/, protection/ and
    expert/singular_values.safetensors. Raises InputError where evaluation.json is missing or not one.
    """
    path = Path(folder) / "report.html"
    atomic_write_text(path, render(read_run(Path(folder))))
    return path


def render(run: Run) -> str:
    """The page of a run, as HTML."""
    results = Results(run.evaluation)
    covered, kinds = pictures.coverage(run)
    spectra, more_spectra = pictures.spectra(run)
    training, training_arms = pictures.training(run, results)
    updated = [arm for arm in results.arms if mapping(results.update(arm, "layers"))]
    versions = {name: str(value) for name, value in mapping(run.evaluation.get("versions")).items() if value}
    return page.fill(
        Path(__file__).with_name("report.html.jinja"),
        name=run.name,
        say=page.words("reading"),
        results=results,
        headline=headline(results),
        findings=findings(results),
        tradeoffs=pictures.tradeoffs(results),
        table=table(results),
        definitions=DEFINITIONS,
        training=training,
        training_arms=training_arms,
        expert_training=expert_training(run),
        protection=protection_summary(run, results),
        directions=pictures.directions(run),
        hard_directions=run.hard,
        constrained=run.constrained,
        spectra=spectra,
        more_spectra=more_spectra,
        has_singular_values=bool(run.singular_values),
        from_expert=bool(run.scales),
        marked=any(module.get("indices") for module in run.modules.values()),
        coverage=covered,
        coverage_kinds=kinds,
        updates=pictures.updates(results),
        update_arms=[results.styles[arm] for arm in updated],
        leaks=bool(results.layers("leak")),
        answers=answers(run, results),
        recipe=run.recipe,
        expert=_facts_about_expert(run),
        seconds=_seconds(run),
        versions=versions,
        limits=limits(results, run),
        missing=run.missing,
    )


@dataclass(frozen=True)
class Answer:
    kind: str
    prompt: str
    expected: str
    arms: list[tuple[Style, str, bool | None]]


def answers(run: Run, results: Results) -> list[Answer]:
    """The stored questions, each with every arm's answer (the recipe says how many; ten by default)."""
    rows = [mapping(row) for row in run.evaluation.get("answers") or []]
    told = []
    for row in rows:
        given = mapping(row.get("arms"))
        texts = [
            (results.styles[arm], str(mapping(given[arm]).get("text") or ""), _judged(given[arm]))
            for arm in results.arms
            if arm in given
        ]
        expected = "" if row.get("expected") is None else str(row["expected"])
        told.append(Answer(str(row.get("kind") or ""), str(row.get("prompt") or ""), expected, texts))
    return told


def _judged(given: Any) -> bool | None:
    correct = mapping(given).get("correct")
    return correct if isinstance(correct, bool) else None


def _facts_about_expert(run: Run) -> dict[str, str]:
    """What expert.json says of the expert, for the settings."""
    keys = ("model", "skill", "objective", "parametrisation", "parameters", "seed")
    known = {key: run.expert[key] for key in keys if run.expert.get(key) is not None}
    told = {key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in known.items()}
    validation = mapping(run.expert.get("validation_accuracy"))
    before, after = finite(validation.get("base")), finite(validation.get("expert"))
    if before is not None and after is not None:
        told["validation"] = f"{percent(before, 1)} → {percent(after, 1)}"
        told["validation"] += f" ({validation['n']} problems)" if validation.get("n") else ""
    return told


def _seconds(run: Run) -> list[tuple[str, str, float]]:
    """(stage, time in words, share of the longest)."""
    known = {stage: finite(value) for stage, value in mapping(run.evaluation.get("seconds")).items()}
    times = {stage: value for stage, value in known.items() if value is not None and value >= 0}
    longest = max(times.values(), default=0.0) or 1.0
    return [(stage, duration(value), value / longest) for stage, value in times.items()]
