"""Pictures along the matrices of a model: a band for each kind of matrix, the layers within it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from palora.common.module_names import by_depth, split_module
from palora.results.plots.figure import NARROW, WIDE, colour, log_axis, panel, percent_axis, styled
from palora.results.plots.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def per_layer(
    series: Mapping[str, Mapping[str, float]],
    styles: Mapping[str, Style],
    *,
    ylabel: str,
    log: bool = False,
    width: int = NARROW,
) -> "Figure":
    """A value per matrix and arm: x is the layer, once per kind of matrix. On a log axis 0 sits at 1e-9."""
    figure, axes = panel(width, 0.66 * width)
    placed = _band_axis(axes, dict.fromkeys(name for values in series.values() for name in values))
    count = sum(len(members) for members in placed.values())
    for arm, values in series.items():
        style = styles[arm]
        for members in placed.values():
            known = [(x, values[name]) for name, x in members if name in values]
            axes.plot(
                [x for x, _ in known],
                [max(value, 1e-9) if log else value for _, value in known],
                color=colour(style.slot),
                marker=style.marker,
                markeredgecolor=colour("page"),
                ms=7.5 if count <= 40 else 3.5,
                lw=1.4,
            )
    axes.set_ylabel(ylabel)
    if log:
        log_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    return figure


@styled
def coverage(modules: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> "Figure":
    """Energy covered: bars per matrix, one for each of `kinds` ("skill" full, "facts" open, others grey)."""
    figure, axes = panel(WIDE, 290)
    placed = _band_axis(axes, modules)
    width = 0.84 / len(kinds)
    for index, kind in enumerate(kinds):
        known = [(x, modules[name][kind]) for m in placed.values() for name, x in m if kind in modules[name]]
        fill = {"skill": colour("palora"), "facts": colour("page")}.get(kind, colour("line"))
        axes.bar(
            [x - 0.42 + width * (index + 0.5) for x, _ in known],
            [value for _, value in known],
            width * 0.86,
            color=fill,
            edgecolor=colour("muted" if kind not in ("skill", "facts") else "palora"),
            lw=1.2 if len(modules) <= 40 else 0.5,
        )
    axes.set(ylabel="input energy covered", ylim=(0, 1.02))
    percent_axis(axes.yaxis)
    return figure


def _band_axis(axes: "Axes", names: Iterable[str]) -> dict[str, list[tuple[str, float]]]:
    """Make x the matrices: a band per kind, the layers within it. Returns (name, x) per band."""
    bands = _bands(names)
    total = sum(len(members) for members in bands.values())
    gap = max(1.0, total * 0.03)
    step = math.ceil(total / 18)
    placed: dict[str, list[tuple[str, float]]] = {}
    ticks: list[float] = []
    labels: list[str] = []
    x = 0.0
    for kind, members in bands.items():
        if placed:
            axes.axvline(x - 0.5 + gap / 2, color=colour("line"), lw=1)
            x += gap
        placed[kind] = [(name, x + index) for index, name in enumerate(members)]
        for name, place in placed[kind][::step]:
            layer = split_module(name)[0]
            ticks.append(place)
            labels.append("" if layer is None else str(layer))
        title = kind.removesuffix("_proj") if len(bands) > 4 else kind
        middle = x + (len(members) - 1) / 2
        axes.text(middle, 1.02, title, transform=axes.get_xaxis_transform(), ha="center", fontsize=11)
        x += len(members)
    axes.set_xticks(ticks, labels)
    axes.set_xlim(-0.7, x - 0.3)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("layer")
    return placed


def _bands(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by what the matrix is, each group in order of depth."""
    bands: dict[str, list[str]] = {}
    for name in by_depth(names):
        bands.setdefault(split_module(name)[1], []).append(name)
    return bands
