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
    points: Sequence[Point], styles: Mapping[str, Style], *, skill: str, reference: str = "expert", goal: float = 0.95
) -> "Figure":
    """Facts learned (x) against skill kept (y), a labelled point per arm.

    The corner where both are at least `goal` is shaded. `reference` is the arm whose skill counts as 100%.
    """
    from matplotlib.ticker import MultipleLocator

    figure, axes = panel(WIDE, 380)
    top = max([1.12, *((point.kept_ci or (0, point.kept))[1] + 0.09 for point in points)])
    right = 1.24  # beyond 100% is room for the labels of the arms, most of which crowd there
    axes.set(xlim=(-0.06, right), ylim=(-0.05, top), xlabel="facts learned (recall)")
    axes.set_ylabel(f"{skill} skill kept ({reference} = 100%)")
    note = f"shaded: learned and kept at least {goal:.0%}"
    axes.text(1, 1.015, note, transform=axes.transAxes, ha="right", fontsize=10.5, color=colour("muted"))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_locator(MultipleLocator(0.25 if top < 1.8 else 0.5 if top < 4 else 1))
    draw_points(axes, sorted(points, key=lambda point: point.arm == "palora"), styles, (goal, goal))
    return figure


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
            xerr=lengths(point.recall, point.recall_ci),
            yerr=lengths(point.kept, point.kept_ci),
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


def lengths(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Error bars from an interval; never negative, as rounding may put the value just outside."""
    if interval is None:
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


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
