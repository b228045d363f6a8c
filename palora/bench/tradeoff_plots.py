"""The pictures of a comparison: what each method keeps, by method and by run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from palora.results.plots.figure import WIDE, colour, level, panel, percent_axis, styled
from palora.results.plots.style import Style
from palora.results.plots.tradeoff import Point, draw_points, lengths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def kept(points: Sequence[Point], styles: Mapping[str, Style], *, xlabel: str, ylabel: str) -> "Figure":
    """Two things kept against each other, a labelled point a method (`Point.recall` is x). The corner where at least
    95% of the one and 90% of the other are kept is shaded."""
    figure, axes = panel(2 * WIDE, 520)
    low = min([0.8, *((p.kept_ci or (p.kept, 0))[0] - 0.05 for p in points)])
    top = max([1.06, *((p.kept_ci or (0, p.kept))[1] + 0.03 for p in points)])
    left = min([0.5, *((p.recall_ci or (p.recall, 0))[0] - 0.05 for p in points)])
    axes.set(xlim=(max(-0.03, left), 1.03), ylim=(max(0.0, low), top), xlabel=xlabel, ylabel=ylabel)
    draw_points(axes, points, styles, (0.9, 0.95))
    return figure


@styled
def frontier(
    lines: Mapping[str, Sequence[tuple[float, float, tuple[float, float] | None]]],
    styles: Mapping[str, Style],
    *,
    ylabel: str,
) -> "Figure":
    """Facts learned (x) against skill kept (y): a line per method through its means (recall, kept, 95% interval), one
    for each milestone that it reached. Upwards and to the right is better."""
    figure, axes = panel(WIDE, 320)
    level(axes, 1, zorder=0.8)
    for method, points in lines.items():
        if not points:
            continue
        xs, ys, intervals = zip(*points, strict=True)
        errors = [lengths(y, i) or [[0.0], [0.0]] for y, i in zip(ys, intervals, strict=True)]
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
        )
    axes.set(xlabel="facts learned (mean recall at the milestone)", ylabel=ylabel)
    axes.set_ylim(max(0.0, axes.get_ylim()[0]), max(1.08, axes.get_ylim()[1]))
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
        axes.plot(xs, ys, style.marker, color=colour(style.slot), ms=6, mec=colour("page"), mew=0.6)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None), xlim=(0, None))
    percent_axis(axes.yaxis)
    return figure
