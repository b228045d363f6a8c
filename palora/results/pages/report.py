"""The report of a run: one self-contained page, `report.html`, that says what was learned and what was lost.

    run folder ─> results ─> sentences (findings.py), table (report_table.py), pictures (report_pictures.py) ─> page

Only evaluation.json is needed: a section whose file is missing says so.
"""

from pathlib import Path

from palora.common.files import atomic_write_text
from palora.common.wording import duration, percent
from palora.results.pages import page, report_answers
from palora.results.pages import report_pictures as pictures
from palora.results.pages.findings import expert_training, findings, headline, limits, protection_summary
from palora.results.pages.report_table import DEFINITIONS, table
from palora.results.pages.results import Results
from palora.results.pages.run_folder import Run, finite, mapping, read_run


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
    asked = report_answers.answers(run.answers, results)
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
        styles=[results.styles[arm] for arm in results.arms],
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
        answers=report_answers.answers(run.evaluation.get("answers") or [], results),
        asked=asked,
        most=report_answers.MOST,
        choices=report_answers.choices(asked, results),
        kinds=list(dict.fromkeys(answer.kind for answer in asked)),
        category_names=sorted({answer.category for answer in asked if answer.category}),
        categories=report_answers.categories(asked, results),
        searched=report_answers.searched(asked, results),
        commands=_commands(run),
        files=run.files,
        recipe=run.recipe,
        expert=_facts_about_expert(run),
        seconds=_seconds(run),
        versions=versions,
        limits=limits(results, run),
        missing=run.missing,
    )


def _commands(run: Run) -> dict[str, str]:
    """The command that made the run, where it is written, and the one that makes it again from its recipe."""
    made = run.evaluation.get("command")
    told = {"This command made it": made} if isinstance(made, str) and made else {}
    return told | ({"This makes it again": "palora run recipe.yaml --out again"} if run.recipe is not None else {})


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
