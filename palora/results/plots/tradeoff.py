"""Pictures of one thing against another: what was learned against what was kept, a point or a line an arm or method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palora.results.plots.figure import WIDE, colour, level, panel, percent_axis, styled
from palora.results.plots.label_placement import best_place, is_far
from palora.results.plots.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """An arm in the main picture: shares in [0, 1] (`kept` may exceed 1), 95% intervals where known."""

    arm: str
    recall: float
    kept: float
    recall_ci: tuple[float, float] | None = None
    kept_ci: tuple[float, float] | None = None


@styled
def tradeoff(
    points: Sequence[Point],
    styles: Mapping[str, Style],
    *,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    goal: float = 0.95,
    width: int = WIDE,
) -> "Figure":
    """Facts learned (x) against what is kept (y), a labelled point per arm, as large as the arms let it be.

    The corner where both are at least `goal` is shaded. `levels` are the arms that were taught nothing: a dashed line
    each, where they stand on y, as far as that is near the others.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(width, 0.86 * width)
    left, right = window([p.recall for p in points], [p.recall_ci for p in points], 0.1)
    low, top = window([p.kept for p in points], [p.kept_ci for p in points], 0.15)
    axes.set(xlim=(left, right + 0.28 * (right - left)), ylim=(low, top))  # to the right is room for labels
    axes.set(xlabel="facts learned (recall)", ylabel=ylabel)
    note = f"shaded: both at least {goal:.0%}"
    axes.text(1, 1.015, note, transform=axes.transAxes, ha="right", fontsize=10.5, color=colour("muted"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # whole percents
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= 1 + 1e-9])
    _draw_levels(axes, {arm: y for arm, y in (levels or {}).items() if low < y < top}, styles)
    draw_points(axes, sorted(points, key=lambda point: point.arm == "palora"), styles, (goal, goal))
    return figure


def _draw_levels(axes: "Axes", levels: Mapping[str, float], styles: Mapping[str, Style]) -> None:
    """A dashed line an arm, named at its left: the upper of two above it, the lower below. Two at one place are one."""
    names: dict[float, list[str]] = {}
    for arm, y in levels.items():
        names.setdefault(round(y, 3), []).append(arm)
    for y, arms in names.items():
        slot = styles[arms[0]].slot if len(arms) == 1 else "muted"
        level(axes, y, color=colour(slot), zorder=0.8)
        above = len(names) > 1 and y == max(names)
        axes.annotate(
            ", ".join(styles[arm].label for arm in arms),
            (axes.get_xlim()[0], y),
            xytext=(4, 3 if above else -3),
            textcoords="offset points",
            va="bottom" if above else "top",
            fontsize=10.5,
            color=colour(slot),
        )


def window(
    values: Sequence[float], intervals: Sequence[tuple[float, float] | None], least: float
) -> tuple[float, float]:
    """The stretch of shares to draw: all values, their intervals, and 100%, at least `least` long, with a margin. An
    interval of more than half of it is cut there: one that is hardly known at all would make the others a dot."""
    low, high = min([1.0, *values]), max([1.0, *values])
    reach = max(0.5 * (high - low), 0.5 * least)
    ends = [end for interval in intervals if interval for end in interval]
    low, high = max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach)
    low = min(low, high - least)
    margin = 0.08 * (high - low)
    return low - margin, high + margin


# --- labelled points ------------------------------------------------------------------------------


def draw_points(axes: "Axes", points: Sequence[Point], styles: Mapping[str, Style], goal: tuple[float, float]) -> None:
    """Labelled points of shares, on the axes' limits, the corner beyond `goal` (x, y) shaded; palora's is larger."""
    from matplotlib.patches import Rectangle

    few = len(points) < 9
    (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    axes.add_patch(Rectangle(goal, right - goal[0], top - goal[1], color=colour("goal"), lw=0, zorder=0.5))
    level(axes, 1, zorder=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        percent_axis(axis)
    for order, point in enumerate(points):
        style = styles[point.arm]
        axes.errorbar(
            point.recall,
            point.kept,
            xerr=lengths(point.recall, point.recall_ci, axes.get_xlim()),
            yerr=lengths(point.kept, point.kept_ci, axes.get_ylim()),
            fmt=style.marker,
            color=colour(style.slot),
            markersize=(9 if few else 8) + 2 * (point.arm == "palora"),
            markeredgecolor=colour("page"),
            markeredgewidth=1 if few else 0.5,
            elinewidth=1.6 if few else 0.9,
            clip_on=False,
            zorder=3 + order * 0.1,
        )
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # fixes the layout that the labels are placed in
    _place_labels(axes, points, styles)


def lengths(
    value: float, interval: tuple[float, float] | None, limits: tuple[float, float]
) -> list[list[float]] | None:
    """Error bars from an interval, as far as the axis goes; never negative, as rounding may put the value just
    outside."""
    if interval is None:
        return None
    low, high = max(interval[0], limits[0]), min(interval[1], limits[1])
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _place_labels(axes: "Axes", points: Sequence[Point], styles: Mapping[str, Style]) -> None:
    """Label each point where its text covers least, greedily; a thin line leads to a label that is far off."""
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    to_pixels = axes.transData.transform
    line = to_pixels((0, 1))[1]
    taken = [(frame[0], line - 2, frame[2], line + 2)]
    for point in points:
        x, y = to_pixels((point.recall, point.kept))
        taken.append((x - 8, y - 8, x + 8, y + 8))
        low, high = point.recall_ci or (point.recall, point.recall)
        taken.append((to_pixels((low, 0))[0], y - 2, to_pixels((high, 0))[0], y + 2))
        low, high = point.kept_ci or (point.kept, point.kept)
        taken.append((x - 2, to_pixels((0, low))[1], x + 2, to_pixels((0, high))[1]))
    for point in sorted(points, key=lambda point: (point.arm != "palora", -point.kept)):
        style = styles[point.arm]
        look: dict[str, Any] = {
            "fontsize": 13 if len(points) < 9 else 11,
            "fontweight": "bold" if point.arm == "palora" else "normal",
        }
        probe = axes.text(0, 0, style.label, **look)
        extent = probe.get_window_extent()
        probe.remove()
        x, y = to_pixels((point.recall, point.kept))
        dx, dy, box = best_place(x, y, extent.width, extent.height, taken, frame)
        taken.append(box)
        far = is_far(x, y, box)
        line = {"arrowstyle": "-", "color": colour(style.slot), "lw": 0.8, "shrinkA": 1, "shrinkB": 6}
        axes.annotate(
            style.label,
            (point.recall, point.kept),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colour(style.slot),
            arrowprops=line if far else None,
            zorder=6,
            **look,
        ).set_in_layout(False)
