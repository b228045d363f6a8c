"""Pictures along the singular components, or the input directions, of a matrix: which are changed, which protected."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from palora.common.module_names import by_depth
from palora.results.plots.figure import NARROW, colour, panel, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def spectrum(
    values: np.ndarray,
    protected: Sequence[int],
    *,
    ylabel: str,
    limit: float | None = None,
    singular_values: np.ndarray | None = None,
) -> "Figure":
    """A stem per singular component, largest singular value first; protected ones in the accent with a dot.

    Args:
        values: (r,), the height of each stem, usually z_eff - 1.
        protected: indices of the protected components.
        limit: the y axis covers [-limit, limit] (or [0, limit] where no value is negative); None: fitted.
        singular_values: (r,), drawn as a grey area behind, scaled to the panel's height.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(NARROW, 210)
    rank = len(values)
    marked = np.zeros(rank, dtype=bool)
    marked[np.asarray([index for index in protected if 0 <= index < rank], dtype=int)] = True
    if limit is None or limit <= 0:
        limit = float(np.abs(values).max()) or 1.0
    low = -limit * 1.1 if (values < 0).any() else 0.0
    if singular_values is not None and len(singular_values) and singular_values.max() > 0:
        step = max(1, len(singular_values) // 256)
        shape = singular_values[::step] / singular_values.max() * (limit * 1.1 - low) + low
        axes.fill_between(np.arange(len(singular_values))[::step], low, shape, color=colour("area"), lw=0)
    _stems(axes, values, ~marked, "muted", 0.9)
    _stems(axes, values, marked, "palora", 1.5)
    if marked.sum() <= 128:
        where = np.flatnonzero(marked)
        axes.plot(where, values[where], "o", color=colour("palora"), ms=3.4, mew=0)
    axes.axhline(0, color=colour("muted"), lw=0.8)
    axes.set(xlim=(-0.02 * rank, 1.02 * rank), ylim=(low, limit * 1.1), ylabel=ylabel, xlabel="component")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", visible=False)
    return figure


def _stems(axes: "Axes", values: np.ndarray, chosen: np.ndarray, slot: str, width: float) -> None:
    """Stems from zero as one path; more than 256 of them are drawn as the range within each of 256 bins."""
    index = np.flatnonzero(chosen)
    if not len(index):
        return
    if len(index) <= 256:
        xs, lows, highs = index.astype(float), np.zeros(len(index)), values[index]
    else:
        bins = np.array_split(index, 256)
        xs = np.array([part.mean() for part in bins])
        lows = np.array([min(0.0, values[part].min()) for part in bins])
        highs = np.array([max(0.0, values[part].max()) for part in bins])
    gaps = np.full(len(xs), np.nan)
    axes.plot(
        np.column_stack([xs, xs, gaps]).ravel(),
        np.column_stack([lows, highs, gaps]).ravel(),
        color=colour(slot),
        lw=width,
        solid_capstyle="butt",
    )


@styled
def protected_weights(scores: Mapping[str, np.ndarray]) -> "Figure":
    """The weight each input eigen-direction is protected with, in order of energy.

    A line per layer of one kind of matrix, stronger with depth.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(NARROW, 250)
    names = by_depth(scores)
    for index, name in enumerate(names):
        depth = index / max(1, len(names) - 1)
        values = scores[name]
        step = max(1, len(values) // 512)
        axes.plot(
            np.arange(1, len(values) + 1)[::step],
            values[::step],
            color=colour("palora"),
            alpha=0.4 + 0.6 * depth,
            lw=1.2 + 0.8 * depth,
        )
    axes.set(xlabel="input direction, by energy", ylabel="protected", xlim=(0, None), ylim=(0, 1.03))
    percent_axis(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@styled
def protected_energy(eigenvalues: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> "Figure":
    """The share of the input energy that the first directions carry, a line per layer of one kind of matrix.

    Args:
        eigenvalues: (n,) by module, descending.
        counts: how many leading directions are protected: that part is drawn in the accent and ends in a dot.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(NARROW, 250)
    for name in by_depth(eigenvalues):
        share = np.concatenate([[0.0], np.cumsum(eigenvalues[name])])
        share /= share[-1] or 1.0
        k = min(counts[name], len(share) - 1)
        step = max(1, len(share) // 512)
        axes.plot(np.arange(len(share))[k::step], share[k::step], color=colour("muted"), lw=1)
        axes.plot(np.arange(k + 1), share[: k + 1], color=colour("palora"), lw=1.8)
        axes.plot([k], [share[k]], "o", color=colour("palora"), ms=6, mec=colour("page"), zorder=3)
    axes.set(xlabel="input directions, by energy", ylabel="energy carried", xlim=(0, None), ylim=(0, 1.03))
    percent_axis(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure
