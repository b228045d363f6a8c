"""The pictures of a report: which of a run's numbers are drawn, and the words beside and behind each drawing."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from palora.common.module_names import by_depth, module_label, split_module
from palora.common.wording import enumeration, percent, significant
from palora.results.pages.results import GOAL, UNTRAINED, Results
from palora.results.pages.run_folder import Run, finite, mapping
from palora.results.plots import components, curves, layers, tradeoff
from palora.results.plots.figure import NARROW, WIDE, Picture, to_html
from palora.results.plots.style import Style, arm_styles
from palora.results.plots.tradeoff import Point

PANELS = 12  # about so many spectra are shown at once; a larger model's others are folded away


def tradeoffs(results: Results) -> list[Picture]:
    """Facts learned against each skill kept, and against the known facts kept."""
    found = {skill: points for skill in [*results.skills, None] if (points := _points(results, skill))}
    pictures = []
    for skill, points in found.items():
        what = f"{skill} skill" if skill else "known facts"
        taught = [point for point in points if point.arm not in UNTRAINED]
        figure = tradeoff.tradeoff(
            taught or points,
            results.styles,
            ylabel=f"{what} kept ({results.reference(skill) if skill else 'base'} = 100%)",
            levels={point.arm: point.kept for point in points if point.arm in UNTRAINED} if taught else {},
            goal=GOAL,
            width=_width(len(found)),
        )
        told = (f"{results.label(p.arm)}: learned {percent(p.recall)}, kept {percent(p.kept)}" for p in points)
        text = f"Facts learned against {what} kept. {'; '.join(told)}."
        pictures.append(Picture(f"Facts learned, {what} kept", to_html(figure, text)))
    return pictures


def _points(results: Results, skill: str | None) -> list[Point]:
    """The arms that have both a recall and a share of `skill` kept, or of the known facts (None)."""
    points = []
    for arm in results.arms:
        recall, kept = results.measure(arm, "recall"), results.kept(arm, skill) if skill else results.known(arm)
        sure = results.kept_interval(arm, skill) if skill else results.known_interval(arm)
        if recall is not None and kept is not None:
            points.append(Point(arm, recall, kept, results.recall_interval(arm), sure))
    return points


def training(run: Run, results: Results) -> tuple[list[Picture], list[Style]]:
    """The training curves, and the styles of the arms in them."""
    stages = list(dict.fromkeys(str(row["stage"]) for row in run.metrics if row.get("stage")))
    styles = arm_styles(dict.fromkeys([*results.styles, *stages]))  # in their order: each in its own colour
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
        figure = curves.curves(
            lines,
            styles,
            xlabel=x,
            ylabel=ylabel,
            log=log and all(y > 0 for _, ys in lines.values() for y in ys),
            percent=share,
            width=_width(len(found)),
        )
        ends = (f"{styles[arm].label} ends at {significant(ys[-1])}" for arm, (_, ys) in lines.items())
        pictures.append(Picture(title, to_html(figure, f"{title} by {x}. {'; '.join(ends)}.")))
    return pictures, [styles[stage] for stage in stages]


Series = dict[str, tuple[list[float], list[float]]]


def _series(run: Run, stages: Iterable[str], key: str, x: str) -> Series:
    """{stage: (x values, y values)} of the metric `key`, for the stages that have it."""
    series: Series = {}
    for stage in stages:
        rows = [row for row in run.metrics if row.get("stage") == stage]
        pairs = [(finite(row.get(x)), finite(row.get(key))) for row in rows]
        known = sorted((a, b) for a, b in pairs if a is not None and b is not None)
        if known:
            series[stage] = ([a for a, _ in known], [b for _, b in known])
    return series


def directions(run: Run) -> list[Picture]:
    """For input rules, a panel per kind of matrix. Soft: the weight that each direction is protected with. Hard: the
    share of the energy that the first directions carry, and how many of them are protected."""
    hard = run.hard
    kinds: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, int] = {}
    for name, module in run.modules.items():
        scores = _scores(module)
        if len(scores) and not module.get("indices"):
            kinds.setdefault(split_module(name)[1], {})[name] = scores
            counts[name] = int(finite(module.get("k_input")) or 0)
    pictures = []
    for kind, scores_of in kinds.items():
        length = max(len(values) for values in scores_of.values())
        if hard:
            figure = components.protected_energy(scores_of, counts)
            protected, form = float(np.mean([counts[name] for name in scores_of])), ",.0f"
        else:
            figure = components.protected_weights(scores_of)
            protected, form = float(np.mean([values.sum() for values in scores_of.values()])), ",.1f"
        note = f"{'' if hard else 'in effect '}{protected:{form}} of {length:,} directions"
        text = f"Protection along the input directions of {kind}, {len(scores_of)} layers: {note}"
        pictures.append(Picture(kind, to_html(figure, text), note))
    return pictures


def coverage(run: Run) -> tuple[Picture | None, list[str]]:
    """The share of input energy that is covered per matrix, and the kinds of input it is known for."""
    if not run.constrained:
        return None, []
    modules: dict[str, dict[str, float]] = {}
    for name, module in run.modules.items():
        known = {kind: finite(value) for kind, value in mapping(module.get("coverage")).items()}
        if values := {kind: value for kind, value in known.items() if value is not None}:
            modules[name] = values
    kinds = list(dict.fromkeys(kind for values in modules.values() for kind in values))
    if not modules:
        return None, []
    drawing = to_html(layers.coverage(modules, kinds), f"Coverage of {enumeration(kinds)} for {len(modules)} matrices.")
    return Picture("Input energy covered", drawing), kinds


def spectra(run: Run) -> tuple[list[Picture], list[Picture]]:
    """A panel per matrix: what the expert did to each component, and which components are protected.

    Two lists: those to show at once (of a large model, evenly spaced layers), and the others.
    """
    modules = run.modules
    names = by_depth(modules or run.scales)
    changes = {name: run.scales[name] - 1 for name in names if name in run.scales}
    limit = max((float(np.abs(change).max()) for change in changes.values() if len(change)), default=0.0)
    depths = list(dict.fromkeys(split_module(name)[0] for name in names))
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
        figure = components.spectrum(values, indices, ylabel=ylabel, limit=bound, singular_values=singular)
        note = f"{len(indices):,} of {len(values):,} protected" if indices else ""
        text = f"{ylabel} of the {len(values)} components of {name}. {note}"
        picture = Picture(module_label(name), to_html(figure, text), note)
        (shown if split_module(name)[0] in at_once else others).append(picture)
    return shown, others


def _scores(module: Mapping[str, Any]) -> np.ndarray:
    """What the rule went by, for each component or direction of a matrix."""
    return np.array([score for value in module.get("scores") or [] if (score := finite(value)) is not None])


def updates(results: Results) -> list[Picture]:
    """Size, drift and leak of every arm's update, matrix by matrix, as far as they are known."""
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
        figure = layers.per_layer(series, results.styles, ylabel=ylabel, log=log, width=_width(len(found)))
        mean = {arm: sum(values.values()) / len(values) for arm, values in series.items()}
        means = (f"{results.label(arm)} {significant(value)}" for arm, value in mean.items())
        pictures.append(Picture(title, to_html(figure, f"{title} per matrix. Means: {'; '.join(means)}.")))
    return pictures


def _width(count: int) -> int:
    """The width to draw `count` panels at: the page sets 1, 2 or 4 of them in two columns, else in three."""
    return WIDE if count in (1, 2, 4) else NARROW
