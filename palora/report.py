"""The report of a run: one self-contained page, `report.html`, that says what was learned and what was lost.

`write_report` reads a run directory, puts every number into words, tables and pictures (`plots.py`) and fills
`report.html.jinja`. Only evaluation.json is needed: a section whose file is missing says so. The sentences at the
top are computed by rules that do not care whether the numbers are good.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palora import plots
from palora.errors import InputError
from palora.files import atomic_write_text, load_tensors, read_json
from palora.metrics import read_metrics
from palora.plots import ArmStyle, Point

GOAL = 0.95  # the share of facts learned, and of skill kept, that counts as reached
PANELS = 12  # about so many spectra are shown at once; a larger model's others are folded away

RULES = {
    "svf": "the components whose scale the SVF expert changed most",
    "svf_weighted": "the components whose weight the SVF expert changed most (singular value times change of scale)",
    "sigma": "the components with the largest singular values",
    "random": "components drawn at random: the control that tells whether the choice matters",
    "activation": "the input directions that carry the most energy of what is to be kept",
    "covariance": "every input direction, softly, the more so the more energy of what is to be kept it carries",
    "none": "nothing: plain LoRA",
}


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a run directory holds. `missing` has, for each file that could not be read, a line that says so."""

    name: str
    evaluation: dict[str, Any]
    recipe: str | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    expert: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    protection: dict[str, Any] = field(default_factory=dict)
    singular_values: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def read_run(run_dir: Path) -> Run:
    """Read a run directory. Raises InputError where evaluation.json is missing or is not an evaluation."""
    run_dir = Path(run_dir)
    path = run_dir / "evaluation.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `palora evaluate --out {run_dir}` first")
    evaluation = read_json(path)
    if (
        not isinstance(evaluation, dict)
        or not isinstance(evaluation.get("arms"), dict)
        or not any(evaluation["arms"].values())
    ):
        raise InputError(f'{path}: not an evaluation (it has no "arms"); run `palora evaluate` again')
    missing: dict[str, str] = {}

    def optional(name: str, read: Callable[[Path], Any], otherwise: Any) -> Any:
        if not (run_dir / name).is_file():
            missing[name] = f"This run has no {name}."
            return otherwise
        try:
            return read(run_dir / name)
        except (InputError, OSError, UnicodeDecodeError) as error:
            missing[name] = f"{name} cannot be read: {error}."
            return otherwise

    return Run(
        name=run_dir.resolve().name,
        evaluation=evaluation,
        recipe=optional("recipe.yaml", lambda file: file.read_text(encoding="utf-8"), None),
        metrics=optional("metrics.jsonl", read_metrics, []),
        expert=_mapping(optional("expert/expert.json", read_json, {})),
        scales=optional("expert/scales.safetensors", _read_vectors, {}),
        protection=_mapping(optional("protection/protection.json", read_json, {})),
        singular_values=optional("expert/singular_values.safetensors", _read_vectors, {}),
        missing=missing,
    )


def _read_vectors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy().ravel() for name, tensor in load_tensors(path).items()}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A finite number, or None for everything else: null, NaN, text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else (low, high)


# --- numbers in words -----------------------------------------------------------------------------


def percent(value: float, decimals: int = 0) -> str:
    """0.974 -> "97%". Near 0 and near 1 it keeps a decimal: 99.6% is not 100%."""
    if (0 < value < 0.01) or (0.99 < value < 1):
        decimals = max(decimals, 1)
    text = f"{100 * value:.{decimals}f}"
    if float(text) == 100 and value < 1:
        return "> 99.9%"
    if float(text) == 0 and value > 0:
        return "< 0.1%"
    return text + "%"


def significant(value: float) -> str:
    """Three significant digits: 3.1415 -> "3.14", 0.0000003 -> "3.0 × 10⁻⁷"."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(plots.SUPERSCRIPT)}"


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def _and(parts: Iterable[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last


def _capital(sentence: str) -> str:
    return sentence if sentence.startswith("palora") else sentence[:1].upper() + sentence[1:]


# --- what evaluation.json says --------------------------------------------------------------------


class Results:
    """Questions to an evaluation, each answered with a number or None.

    `reference` is the arm whose skill counts as 100%: the expert, or the base where no expert was measured.
    `subject` is the arm the report is about, `control` the one it is compared with (None where there is none).
    """

    def __init__(self, evaluation: Mapping[str, Any]) -> None:
        self._arms = {arm: values for arm, values in evaluation["arms"].items() if isinstance(values, dict)}
        self._retention = _mapping(evaluation.get("retention"))
        self._update = _mapping(evaluation.get("update"))
        self.arms = list(self._arms)
        self.styles: dict[str, ArmStyle] = plots.arm_styles(self.arms)
        skills = [_mapping(values.get("skills")) for values in self._arms.values()]
        self.skills = list(dict.fromkeys(skill for measured in skills for skill in measured))
        measured = any(self.accuracy("expert", skill) is not None for skill in self.skills)
        self.reference = "expert" if measured else "base"
        trained = [arm for arm in self.arms if arm not in ("base", "expert")]
        self.subject = "palora" if "palora" in self._arms else (trained or self.arms)[-1]
        self.control = "lora" if "lora" in self._arms and self.subject != "lora" else None

    def label(self, arm: str) -> str:
        return self.styles[arm].label

    def measure(self, arm: str, name: str) -> float | None:
        """recall, recall_exact, paraphrase_recall, locality, or how many: n_facts, n_known."""
        return _number(self._arms.get(arm, {}).get(name))

    def recall_interval(self, arm: str) -> tuple[float, float] | None:
        return _interval(self._arms.get(arm, {}).get("recall_ci95"))

    def _skill(self, arm: str, skill: str) -> dict[str, Any]:
        return _mapping(_mapping(self._arms.get(arm, {}).get("skills")).get(skill))

    def accuracy(self, arm: str, skill: str) -> float | None:
        return _number(self._skill(arm, skill).get("accuracy"))

    def accuracy_interval(self, arm: str, skill: str) -> tuple[float, float] | None:
        return _interval(self._skill(arm, skill).get("ci95"))

    def problems(self, skill: str) -> int | None:
        """How many problems the skill was measured on (the smallest number over the arms)."""
        counts = [_number(self._skill(arm, skill).get("n")) for arm in self.arms]
        return min((int(count) for count in counts if count is not None), default=None)

    def kept(self, arm: str, skill: str, reference: str | None = None) -> float | None:
        """The arm's skill as a share of `reference`'s: from "retention", or else from the accuracies."""
        reference = reference or self.reference
        stored = _mapping(_mapping(self._retention.get(arm)).get(skill)).get(f"vs_{reference}")
        if (share := _number(stored)) is not None:
            return share
        own, whole = self.accuracy(arm, skill), self.accuracy(reference, skill)
        return None if own is None or not whole else own / whole

    def kept_interval(self, arm: str, skill: str) -> tuple[float, float] | None:
        """The interval of the arm's accuracy over the reference's accuracy, which is taken as exact."""
        interval, whole = self.accuracy_interval(arm, skill), self.accuracy(self.reference, skill)
        return None if interval is None or not whole else (interval[0] / whole, interval[1] / whole)

    def update(self, arm: str, name: str) -> Any:
        """rule, loss, leak, drift, norm, relative_norm or parameters of a trained arm."""
        return _mapping(self._update.get(arm)).get(name)

    def layers(self, name: str) -> dict[str, dict[str, float]]:
        """{arm: {matrix: value}} of leak, drift, norm or relative_norm, without the missing ones."""
        found: dict[str, dict[str, float]] = {}
        for arm in self.arms:
            for module, values in _mapping(self.update(arm, "layers")).items():
                if (value := _number(_mapping(values).get(name))) is not None:
                    found.setdefault(arm, {})[module] = value
        return found

    def points(self, skill: str) -> list[Point]:
        """The arms that have both a recall and a share of `skill` kept."""
        points = []
        for arm in self.arms:
            recall, kept = self.measure(arm, "recall"), self.kept(arm, skill)
            if recall is not None and kept is not None:
                points.append(Point(arm, recall, kept, self.recall_interval(arm), self.kept_interval(arm, skill)))
        return points


# --- what the numbers say, in sentences -----------------------------------------------------------


def headline(results: Results) -> str:
    """One sentence: facts learned and skill kept, for palora and for plain LoRA. The numbers as they are."""

    def clause(arm: str, full: bool) -> str | None:
        recall, facts = results.measure(arm, "recall"), results.measure(arm, "n_facts")
        of_facts = f" of {facts:,.0f} facts" if facts else " of the facts"
        parts = [] if recall is None else [f"taught {percent(recall)}{of_facts if full else ''}"]
        kept = [(skill, results.kept(arm, skill)) for skill in results.skills]
        shares = [(skill, percent(share)) for skill, share in kept if share is not None]
        if shares and full:
            (skill, share), *others = shares
            first = f"{share} of the {results.reference}'s {skill} skill"
            parts.append("kept " + _and([first, *(f"{share} of its {skill} skill" for skill, share in others)]))
        elif shares:
            parts.append("kept " + _and(share for _, share in shares))
        return f"{results.label(arm)} {' and '.join(parts)}" if parts else None

    sentence = clause(results.subject, full=True)
    if sentence is None:
        return f"For {results.label(results.subject)} neither recall nor a skill was measured."
    if results.control and (control := clause(results.control, full=False)):
        sentence += f"; {control}"
    return _capital(sentence) + "."


@dataclass(frozen=True)
class Finding:
    """A sentence under the headline; `mark` is ✓ (in palora's favour), ✗ (against it) or • (neither)."""

    mark: str
    text: str


def findings(results: Results) -> list[Finding]:
    """What the numbers mean, by fixed rules: goals reached or missed, better or worse than the control."""
    return [*_recall_findings(results), *_skill_findings(results), *_locality_findings(results)]


def _recall_findings(results: Results) -> list[Finding]:
    name, recall = results.label(results.subject), results.measure(results.subject, "recall")
    if recall is None:
        return []
    found = []
    if recall < GOAL:
        found.append(Finding("✗", f"{name} did not reach {percent(GOAL)} recall."))
    other = results.measure(results.control, "recall") if results.control else None
    if results.control and other is not None and abs(other - recall) > 0.03:
        less, mark = ("fewer", "✗") if recall < other else ("more", "✓")
        text = (
            f"{name} learned {less} facts than {results.label(results.control)} ({percent(recall)} against "
            f"{percent(other)}), so what they kept is not compared at equal recall."
        )
        found.append(Finding(mark, text))
    return found


def _skill_findings(results: Results) -> list[Finding]:
    found = []
    name = results.label(results.subject)
    for skill in results.skills:
        kept = results.kept(results.subject, skill)
        if kept is None:
            continue
        if kept < GOAL:
            lost = f"{name} kept less than {percent(GOAL)} of the {results.reference}'s {skill} skill."
            found.append(Finding("✗", lost))
        other = results.kept(results.control, skill) if results.control else None
        if results.control and other is not None:
            found.append(_compared(results, results.control, skill, kept, other))
        found.extend(_rivals(results, skill, kept))
        before, after = results.accuracy("base", skill), results.accuracy("expert", skill)
        if before is not None and after is not None and after <= before:
            text = (
                f"The expert is no better at {skill} than the base ({percent(after, 1)} against "
                f"{percent(before, 1)}): its scales may be mostly noise."
            )
            found.append(Finding("•", text))
    return found


def _compared(results: Results, control: str, skill: str, kept: float, other: float) -> Finding:
    name, rival = results.label(results.subject), results.label(control)
    ours, theirs = (results.accuracy_interval(arm, skill) for arm in (results.subject, control))
    overlap = bool(ours and theirs and ours[0] <= theirs[1] and theirs[0] <= ours[1])
    if kept < other:
        tail = "; the 95% intervals overlap" if overlap else ""
        return Finding(
            "✗",
            f"{name} kept less of {skill} than {rival} did ({percent(kept)} against {percent(other)}{tail}).",
        )
    if overlap:
        text = f"On {skill} the 95% intervals of {name} and {rival} overlap: the difference may be chance."
        return Finding("•", text)
    if other >= GOAL:
        return Finding("•", f"{_capital(rival)} kept {percent(other)} of {skill} too: there was little to protect.")
    apart = " and the 95% intervals do not overlap" if ours and theirs else ""
    return Finding("✓", f"On {skill}, {name} kept {percent(kept)} where {rival} kept {percent(other)}{apart}.")


def _rivals(results: Results, skill: str, kept: float) -> list[Finding]:
    """The other trained arms, besides the control, that kept more of a skill and learned about as much."""
    recall = results.measure(results.subject, "recall")
    found = []
    for arm in results.arms:
        other, learned = results.kept(arm, skill), results.measure(arm, "recall")
        if arm in ("base", "expert", results.subject, results.control) or other is None or learned is None:
            continue
        if other > kept and (recall is None or learned > recall - 0.03):
            text = f"{results.label(arm)} kept more of {skill}: {percent(other)}, and learned {percent(learned)}."
            found.append(Finding("✗", text))
    return found


def _locality_findings(results: Results) -> list[Finding]:
    before, after = results.measure("base", "locality"), results.measure(results.subject, "locality")
    if before is None or after is None or before - after <= 0.02:
        return []
    text = (
        f"Known facts were lost: the base answers {percent(before)} of them, "
        f"{results.label(results.subject)} {percent(after)}"
    )
    other = results.measure(results.control, "locality") if results.control else None
    if results.control and other is not None:
        text += f" ({results.label(results.control)} {percent(other)})"
    return [Finding("✗", text + ".")]


def limits(results: Results, run: Run) -> list[str]:
    """What the run does and does not show, with the run's own numbers."""
    notes = []
    name = results.label(results.subject)
    for skill in results.skills:
        count, interval = results.problems(skill), results.accuracy_interval(results.subject, skill)
        if count and interval:
            half = 50 * (interval[1] - interval[0])
            notes.append(
                f"The {skill} skill was measured on {count:,} problems: the accuracy of {name} is known to about "
                f"±{half:.1f} points (95%). A smaller difference is not shown by this run."
            )
    notes.append(
        "The intervals cover the choice of problems and facts, not the luck of training: this is one run with "
        f"one seed. An error bar on skill kept takes the {results.reference}'s own accuracy as exact."
    )
    leak = _number(results.update(results.subject, "leak"))
    if leak is not None:
        notes.append(
            "A hard constraint guarantees that the update does not touch the protected directions (the leak "
            f"measured here is {significant(leak)}). It does not guarantee that the skill is kept: a skill that "
            "also uses other directions can still be lost. Skill kept is an observation."
        )
    elif run.protection:
        notes.append(
            "Soft protection damps the update in the directions that carry the skill and forbids none of them, "
            "so it has no leak to measure; drift says how far the update still moves the outputs. That the skill "
            "is kept is an observation, not a guarantee."
        )
    notes.append(
        "Answers were generated freely and judged by rule. A result on a small model is a claim about the "
        "mechanics of the method, not about large models."
    )
    return notes


# --- the table of arms ----------------------------------------------------------------------------


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


DEFINITIONS = {
    "accuracy": "Share of the skill's test problems answered correctly, with its 95% interval.",
    "retention vs expert": "The arm's accuracy divided by the expert's: at 100% none of the expert's skill is lost.",
    "retention vs base": "The arm's accuracy divided by the base model's.",
    "recall": "Share of the new facts whose freely generated answer contains the answer, or one of its aliases, as "
    "whole words. With its 95% interval.",
    "recall, exact": "Share of the new facts whose answer is the expected one, or an alias, and nothing else.",
    "paraphrase recall": "Recall when the questions are asked in words that were not trained on.",
    "locality": "Share of facts the base already knew that are still answered correctly.",
    "rule": "How the protected subspace was chosen for the arm.",
    "in the loss": "What stands in the loss beside the facts, with its weight: the drift on what is kept, replay of "
    "its rows, or distillation on them.",
    "leak": "Share of the update inside the protected subspace, max(‖U_Sᵀ ΔW‖, ‖ΔW V_S‖) / ‖ΔW‖, the largest of any "
    "matrix: about 0 under a hard rule, not defined for a soft one. Plain LoRA's is against palora's subspace.",
    "drift": "How far the update moves a layer's output on the skill's own inputs, relative to that output, "
    "√(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)): the mean over the matrices.",
    "‖ΔW‖": "Size of the update: the Frobenius norm over all targeted matrices.",
    "‖ΔW‖ / ‖W‖": "The same, relative to the weights it changes.",
    "parameters": "How many numbers were trained.",
}


def table(results: Results) -> list[tuple[str, list[Row]]]:
    """The table, one column an arm: (heading, rows) per group. A row without any number is left out."""

    def share(value: float | None, interval: tuple[float, float] | None = None) -> Cell:
        if value is None:
            return Cell()
        note = "" if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"
        return Cell(f"{100 * value:.1f}%", note, min(max(value, 0.0), 1.0))

    def plain(value: Any, form: Callable[[float], str] = significant) -> Cell:
        number = _number(value)
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
        groups.append((f"skill: {skill}" + (f" ({count:,} problems)" if count else ""), rows))
    counts = (("n_facts", "new"), ("n_known", "known"))
    totals = [(max((results.measure(arm, key) or 0 for arm in results.arms), default=0), name) for key, name in counts]
    told = ", ".join(f"{total:,.0f} {name}" for total, name in totals if total)
    recall = row("recall", lambda arm: share(results.measure(arm, "recall"), results.recall_interval(arm)))
    others = {"recall, exact": "recall_exact", "paraphrase recall": "paraphrase_recall", "locality": "locality"}
    learned = [row(name, partial(measured, key)) for name, key in others.items()]
    groups.append(("facts" + (f" ({told})" if told else ""), [recall, *learned]))
    update = [
        row("rule", lambda arm: Cell(str(results.update(arm, "rule") or "–"))),
        row("in the loss", lambda arm: Cell(_loss(results.update(arm, "loss")))),
        row("leak", lambda arm: plain(results.update(arm, "leak"))),
        row("drift", lambda arm: plain(results.update(arm, "drift"))),
        row("‖ΔW‖", lambda arm: plain(results.update(arm, "norm"))),
        row("‖ΔW‖ / ‖W‖", lambda arm: plain(results.update(arm, "relative_norm"))),
        row("parameters", lambda arm: plain(results.update(arm, "parameters"), lambda value: f"{value:,.0f}")),
    ]
    groups.append(("the update", update))
    measured_rows = ((head, [row for row in rows if any(c.text != "–" for c in row.cells)]) for head, rows in groups)
    return [(heading, rows) for heading, rows in measured_rows if rows]


def _loss(added: Any) -> str:
    """What stands in an arm's loss beside the facts."""
    return ", ".join(f"{term} {_number(weight):g}" for term, weight in _mapping(added).items()) or "–"


# --- pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its title, the drawing (SVG or img), and a line under it."""

    title: str
    drawing: str
    note: str = ""


def _tradeoffs(results: Results) -> list[Picture]:
    pictures = []
    for skill in results.skills:
        if points := results.points(skill):
            figure = plots.tradeoff(points, results.styles, skill=skill, reference=results.reference, goal=GOAL)
            told = (f"{results.label(p.arm)}: learned {percent(p.recall)}, kept {percent(p.kept)}" for p in points)
            text = f"Facts learned against {skill} skill kept. {'; '.join(told)}."
            pictures.append(Picture(f"Facts learned, {skill} kept", plots.to_html(figure, text)))
    return pictures


Series = dict[str, tuple[list[float], list[float]]]


def _series(run: Run, stages: Iterable[str], key: str, x: str) -> Series:
    """{stage: (x values, y values)} of the metric `key`, for the stages that have it."""
    series: Series = {}
    for stage in stages:
        rows = [row for row in run.metrics if row.get("stage") == stage]
        pairs = [(_number(row.get(x)), _number(row.get(key))) for row in rows]
        known = sorted((a, b) for a, b in pairs if a is not None and b is not None)
        if known:
            series[stage] = ([a for a, _ in known], [b for _, b in known])
    return series


def _training(run: Run, results: Results) -> tuple[list[Picture], list[ArmStyle]]:
    """The training curves, and the styles of the arms in them."""
    stages = list(dict.fromkeys(str(row["stage"]) for row in run.metrics if row.get("stage")))
    styles = plots.arm_styles(dict.fromkeys([*results.arms, *stages]))
    injected = [stage for stage in stages if stage != "expert"]
    time = "epoch" if _series(run, injected, "loss", "epoch") else "step"
    wanted: list[tuple[list[str], str, str, str, str, bool, bool]] = [
        # stages, metric, x, title, y label, logarithmic, a share
        (["expert"], "reward", "step", "Expert: reward", "mean reward", False, False),
        (["expert"], "validation_accuracy", "step", "Expert: validation accuracy", "accuracy", False, True),
        (["expert"], "loss", "step", "Expert: loss", "loss", False, False),
        (injected, "loss", time, "Facts: training loss", "loss", True, False),
        (injected, "recall", time, "Facts: recall while training", "recall", False, True),
        (injected, "drift", time, "Facts: drift on the skill's inputs", "drift", False, False),
    ]
    series = {title: _series(run, of, key, x) for of, key, x, title, *_ in wanted}
    found = [row for row in wanted if series[row[3]]]
    pictures = []
    for _, _, x, title, ylabel, log, share in found:
        lines = series[title]
        figure = plots.curves(
            lines,
            styles,
            xlabel=x,
            ylabel=ylabel,
            log=log and all(y > 0 for _, ys in lines.values() for y in ys),
            percent=share,
            width=_width(len(found)),
        )
        ends = (f"{styles[arm].label} ends at {significant(ys[-1])}" for arm, (_, ys) in lines.items())
        pictures.append(Picture(title, plots.to_html(figure, f"{title} by {x}. {'; '.join(ends)}.")))
    return pictures, [styles[stage] for stage in stages]


def _width(count: int) -> int:
    """The width to draw `count` panels at: the page sets 1, 2 or 4 of them in two columns, else in three."""
    return plots.WIDE if count in (1, 2, 4) else plots.NARROW


def expert_training(run: Run) -> str:
    """One sentence on how the expert was trained, as far as the run says."""
    rows = [row for row in run.metrics if row.get("stage") == "expert"]
    method = str(run.expert.get("objective") or run.evaluation.get("objective") or "")
    if not method and rows:
        method = "reward" if any("reward" in row for row in rows) else "next_token"
    if not method:
        return ""
    if method == "reward":
        return "The expert was trained by reward on its own, freely generated answers: SVF's published way."
    return f"The expert was trained by {method.replace('_', ' ')}: the cheap option; SVF's published way is by reward."


def _modules(run: Run) -> dict[str, dict[str, Any]]:
    modules = _mapping(run.protection.get("modules"))
    return {name: _mapping(modules[name]) for name in plots.by_depth(modules)}


def _scores(module: Mapping[str, Any]) -> np.ndarray:
    return np.array([score for value in module.get("scores") or [] if (score := _number(value)) is not None])


def _spectra(run: Run) -> tuple[list[Picture], list[Picture]]:
    """A panel per matrix: what the expert did to each component, and which components are protected.

    Two lists: those to show at once (of a large model, evenly spaced layers), and the others.
    """
    modules = _modules(run)
    names = plots.by_depth(modules or run.scales)
    changes = {name: run.scales[name] - 1 for name in names if name in run.scales}
    limit = max((float(np.abs(change).max()) for change in changes.values() if len(change)), default=0.0)
    depths = list(dict.fromkeys(plots.split_module(name)[0] for name in names))
    at_once = set(depths[:: math.ceil(len(names) / PANELS) or 1])
    shown: list[Picture] = []
    others: list[Picture] = []
    for name in names:
        indices = [int(index) for index in modules.get(name, {}).get("indices") or []]
        singular = run.singular_values.get(name)
        scores = _scores(modules.get(name, {}))
        if name in changes:
            values, ylabel, bound = changes[name], "z − 1", limit
        elif indices and len(scores) > max(indices):  # no expert: the importance the rule went by
            values, ylabel, bound = scores, "importance", float(scores.max())
        else:
            continue
        if not len(values):
            continue
        figure = plots.spectrum(values, indices, ylabel=ylabel, limit=bound, singular_values=singular)
        note = f"{len(indices):,} of {len(values):,} protected" if indices else ""
        text = f"{ylabel} of the {len(values)} components of {name}. {note}"
        picture = Picture(plots.module_label(name), plots.to_html(figure, text), note)
        (shown if plots.split_module(name)[0] in at_once else others).append(picture)
    return shown, others


def _is_hard(run: Run) -> bool:
    return bool(run.protection.get("hard", run.protection.get("rule") != "covariance"))


def _directions(run: Run) -> list[Picture]:
    """For input rules, a panel per kind of matrix. Soft: the weight that each direction is protected with. Hard: the
    share of the energy that the first directions carry, and how many of them are protected."""
    hard = _is_hard(run)
    kinds: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, int] = {}
    for name, module in _modules(run).items():
        scores = _scores(module)
        if len(scores) and not module.get("indices"):
            kinds.setdefault(plots.split_module(name)[1], {})[name] = scores
            counts[name] = int(_number(module.get("k_input")) or 0)
    pictures = []
    for kind, scores_of in kinds.items():
        length = max(len(values) for values in scores_of.values())
        if hard:
            figure = plots.protected_energy(scores_of, counts)
            protected, form = float(np.mean([counts[name] for name in scores_of])), ",.0f"
        else:
            figure = plots.protected_weights(scores_of)
            protected, form = float(np.mean([values.sum() for values in scores_of.values()])), ",.1f"
        note = f"{'' if hard else 'in effect '}{protected:{form}} of {length:,} directions"
        text = f"Protection along the input directions of {kind}, {len(scores_of)} layers: {note}"
        pictures.append(Picture(kind, plots.to_html(figure, text), note))
    return pictures


def _coverage(run: Run) -> tuple[Picture | None, list[str]]:
    """The share of input energy that is covered per matrix, and the kinds of input it is known for."""
    modules: dict[str, dict[str, float]] = {}
    for name, module in _modules(run).items():
        known = {kind: _number(value) for kind, value in _mapping(module.get("coverage")).items()}
        if values := {kind: value for kind, value in known.items() if value is not None}:
            modules[name] = values
    kinds = list(dict.fromkeys(kind for values in modules.values() for kind in values))
    if not modules:
        return None, []
    drawing = plots.to_html(plots.coverage(modules, kinds), f"Coverage of {_and(kinds)} for {len(modules)} matrices.")
    return Picture("Input energy covered", drawing), kinds


def _updates(results: Results) -> list[Picture]:
    size = "relative_norm" if results.layers("relative_norm") else "norm"
    wanted = (
        (size, "Size of the update", "‖ΔW‖ / ‖W‖" if size == "relative_norm" else "‖ΔW‖", False),
        ("drift", "Drift on the skill's inputs", "drift", False),
        ("leak", "Leak into the protected subspace", "leak", True),
    )
    found = [row for row in wanted if results.layers(row[0])]
    pictures = []
    for name, title, ylabel, log in found:
        series = results.layers(name)
        figure = plots.per_layer(series, results.styles, ylabel=ylabel, log=log, width=_width(len(found)))
        mean = {arm: sum(values.values()) / len(values) for arm, values in series.items()}
        means = (f"{results.label(arm)} {significant(value)}" for arm, value in mean.items())
        pictures.append(Picture(title, plots.to_html(figure, f"{title} per matrix. Means: {'; '.join(means)}.")))
    return pictures


def protection_summary(run: Run) -> str:
    """One line: the rule, what it protects, its budget, the mean coverage, and a warning where that is too little."""
    from palora.protection import coverage_warning

    rule, sides = run.protection.get("rule"), run.protection.get("sides")
    if not rule:
        return ""
    text = f"Rule {rule}: {RULES[rule]}." if rule in RULES else f"Rule {rule}."
    budget = [f"{key} = {value}" for key, value in _mapping(run.protection.get("budget")).items() if value is not None]
    sided = {"both": "both sides", "input": "input side", "output": "output side"}.get(str(sides), "")
    matrices = len(_modules(run))
    details = ", ".join(part for part in (sided, *budget, f"{matrices} matrices" if matrices else "") if part)
    text += f" {_capital(details)}." if details else ""
    means = {kind: _number(value) for kind, value in _mapping(run.protection.get("coverage")).items()}
    covered = [f"{percent(value)} of the {kind}'s" for kind, value in means.items() if value is not None]
    if covered:
        covered = [part.replace("facts's", "facts'") for part in covered]
        text += f" On average the protected input directions hold {_and(covered)} input energy."
        if {"skill", "facts"} <= means.keys() and (warning := coverage_warning(run.protection | {"coverage": means})):
            text += f" {_capital(warning)}."
    return text


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    kind: str
    prompt: str
    expected: str
    arms: list[tuple[ArmStyle, str, bool | None]]


def _judged(given: Any) -> bool | None:
    correct = _mapping(given).get("correct")
    return correct if isinstance(correct, bool) else None


def answers(run: Run, results: Results) -> list[Answer]:
    """The stored questions, each with every arm's answer (the recipe says how many; ten by default)."""
    rows = [_mapping(row) for row in run.evaluation.get("answers") or []]
    told = []
    for row in rows:
        given = _mapping(row.get("arms"))
        texts = [
            (results.styles[arm], str(_mapping(given[arm]).get("text") or ""), _judged(given[arm]))
            for arm in results.arms
            if arm in given
        ]
        expected = "" if row.get("expected") is None else str(row["expected"])
        told.append(Answer(str(row.get("kind") or ""), str(row.get("prompt") or ""), expected, texts))
    return told


# --- the page -------------------------------------------------------------------------------------


def _facts_about_expert(run: Run) -> dict[str, str]:
    """What expert.json says of the expert, for the settings."""
    keys = ("model", "skill", "objective", "parametrisation", "parameters", "seed")
    known = {key: run.expert[key] for key in keys if run.expert.get(key) is not None}
    told = {key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in known.items()}
    validation = _mapping(run.expert.get("validation_accuracy"))
    before, after = _number(validation.get("base")), _number(validation.get("expert"))
    if before is not None and after is not None:
        told["validation"] = f"{percent(before, 1)} → {percent(after, 1)}"
        told["validation"] += f" ({validation['n']} problems)" if validation.get("n") else ""
    return told


def _seconds(run: Run) -> list[tuple[str, str, float]]:
    """(stage, time in words, share of the longest)."""
    known = {stage: _number(value) for stage, value in _mapping(run.evaluation.get("seconds")).items()}
    times = {stage: value for stage, value in known.items() if value is not None and value >= 0}
    longest = max(times.values(), default=0.0) or 1.0
    return [(stage, duration(value), value / longest) for stage, value in times.items()]


def render(run: Run) -> str:
    """The page of a run, as HTML."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def strong(sentence: str) -> Markup:
        """The numbers of a sentence in bold."""
        return Markup(re.sub(r"((?:&[gl]t; )?\d[\d,.]*%)(?! interval)", r"<b>\1</b>", str(escape(sentence))))

    results = Results(run.evaluation)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["strong"] = strong
    environment.filters["drawing"] = Markup
    template = environment.from_string(files("palora").joinpath("report.html.jinja").read_text(encoding="utf-8"))
    covered, kinds = _coverage(run)
    spectra, more_spectra = _spectra(run)
    training, training_arms = _training(run, results)
    updated = [arm for arm in results.arms if _mapping(results.update(arm, "layers"))]
    versions = {name: str(value) for name, value in _mapping(run.evaluation.get("versions")).items() if value}
    return template.render(
        name=run.name,
        palette=plots.PALETTE,
        results=results,
        headline=headline(results),
        findings=findings(results),
        tradeoffs=_tradeoffs(results),
        table=table(results),
        definitions=DEFINITIONS,
        training=training,
        training_arms=training_arms,
        expert_training=expert_training(run),
        protection=protection_summary(run),
        directions=_directions(run),
        hard_directions=_is_hard(run),
        spectra=spectra,
        more_spectra=more_spectra,
        has_singular_values=bool(run.singular_values),
        from_expert=bool(run.scales),
        marked=any(module.get("indices") for module in _modules(run).values()),
        coverage=covered,
        coverage_kinds=kinds,
        updates=_updates(results),
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


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, atomically, and return its path.

    Reads evaluation.json and, where they are there, recipe.yaml, metrics.jsonl, expert/, protection/ and
    expert/singular_values.safetensors. Raises InputError where evaluation.json is missing or not one.
    """
    path = Path(run_dir) / "report.html"
    atomic_write_text(path, render(read_run(Path(run_dir))))
    return path
