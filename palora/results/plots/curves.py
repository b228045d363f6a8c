"""Training curves: a line an arm."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from palora.results.plots.figure import NARROW, colour, log_axis, panel, percent_axis, styled
from palora.results.plots.style import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, Style],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    percent: bool = False,
    width: int = NARROW,
) -> "Figure":
    """One line per arm, (x, y). Of a long one the running mean is drawn, over the values themselves, faint."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(width, 0.66 * width)
    for arm, (xs, ys) in series.items():
        style = styles[arm]
        look: dict[str, Any] = {"color": colour(style.slot), "marker": style.marker, "markeredgecolor": colour("page")}
        if len(ys) > 40:
            axes.plot(xs, ys, color=colour(style.slot), lw=0.8, alpha=0.3)
            axes.plot(xs, _running_mean(ys), lw=2, markevery=max(1, len(xs) // 6), ms=6.5, **look)
        else:
            axes.plot(xs, ys, lw=2, ms=6.5, **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if log:
        log_axis(axes)
    if percent:
        values = [value for _, ys in series.values() for value in ys]
        span = max(values) - min(values)
        percent_axis(axes.yaxis, 0 if span > 0.05 else 1)
        if span > 0.5:
            axes.set_ylim(-0.03, 1.05)
    return figure


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """A centred mean over about a twentieth of the curve, with a shorter window at the ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    return (total[high] - total[low]) / (high - low)
