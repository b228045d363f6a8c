"""The pictures of a comparison: what each method keeps, by method and by run."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from palora.results.plots.figure import WIDE, colour, level, panel, percent_axis, styled
from palora.results.plots.style import Style
from palora.results.plots.tradeoff import Point, draw_points, lengths, window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 8  # methods; more need a large picture for their labels, and their lines cannot be told apart


@styled
def kept(points: Sequence[Point], styles: Mapping[str, Style], *, xlabel: str, ylabel: str) -> "Figure":
    """Two things kept against each other, a labelled point a method (`Point.recall` is x). The corner where at least
    95% of the one and 90% of the other are kept is shaded."""
    many = len(points) > MANY
    figure, axes = panel(2 * WIDE if many else WIDE, 540 if many else 360)
    xs = window([p.recall for p in points], [p.recall_ci for p in points], 0.2)
    ys = window([p.kept for p in points], [p.kept_ci for p in points], 0.1)
    axes.set(xlim=xs, ylim=ys, xlabel=xlabel, ylabel=ylabel)
    draw_points(axes, points, styles, (0.9, 0.95))
    return figure


@styled
def frontier(
    lines: Mapping[str, Sequence[tuple[float, float, tuple[float, float] | None]]],
    styles: Mapping[str, Style],
    *,
    ylabel: str,
    bold: Collection[str] = (),
) -> "Figure":
    """Facts learned (x) against skill kept (y): a line per method through its means (recall, kept, 95% interval), one
    for each milestone that it reached. Upwards and to the right is better. Of more than `MANY` methods all but those in
    `bold` are faint."""
    figure, axes = panel(WIDE, 320)
    level(axes, 1, zorder=0.8)
    measured = [point for points in lines.values() for point in points]
    ylim = window([y for _, y, _ in measured], [i for *_, i in measured], 0.1)
    for method, points in lines.items():
        if not points:
            continue
        xs, ys, intervals = zip(*points, strict=True)
        errors = [lengths(y, i, ylim) or [[0.0], [0.0]] for y, i in zip(ys, intervals, strict=True)]
        faint = len(lines) > MANY and method not in bold
        style = styles[method]
        axes.errorbar(
            xs,
            ys,
            yerr=np.array([[e[0][0] for e in errors], [e[1][0] for e in errors]]),
            color=colour(style.slot),
            marker=style.marker,
            ms=7,
            lw=1.4,
            elinewidth=1,
            markeredgecolor=colour("page"),
            alpha=0.25 if faint else 1,
            zorder=2 if faint else 3,
            clip_on=False,
        )
    axes.set(xlabel="facts learned (mean recall at the milestone)", ylabel=ylabel, ylim=ylim)
    for axis in (axes.xaxis, axes.yaxis):
        percent_axis(axis)
    return figure


@styled
def clouds(
    points: Mapping[str, Sequence[tuple[float, float]]], styles: Mapping[str, Style], *, xlabel: str, ylabel: str
) -> "Figure":
    """A point (x, share kept) a run, in the colour and marker of its method."""
    figure, axes = panel(WIDE, 320)
    for method, pairs in points.items():
        style = styles[method]
        xs, ys = zip(*pairs, strict=True)
        axes.plot(xs, ys, style.marker, color=colour(style.slot), ms=6, mec=colour("page"), mew=0.6, clip_on=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_ylim(*window([y for pairs in points.values() for _, y in pairs], [], 0.1))
    percent_axis(axes.yaxis)
    return figure
