"""The pictures of a run: numbers in, matplotlib figures out. Nothing here reads a file.

Every picture is one small panel, about as wide as a phone: the report's grid sets several side by side on a
screen and stacks them on a phone, with text of the same size. A picture is drawn once, in the light colours of
`PALETTE`; `to_html` then replaces each colour in the SVG by the CSS variable of the same name, so one drawing
serves light and dark. matplotlib is imported on the first drawing; pyplot, with its global state, never is.
"""

import base64
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# name -> (light, dark). The hues are Okabe and Ito's, darkened to a contrast of at least 3:1 on white.
PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14181d"),
    "ink": ("#1b1f24", "#e6e9ed"),
    "muted": ("#68707a", "#9aa4af"),
    "line": ("#d3d8de", "#3b434d"),
    "area": ("#eceff2", "#262d35"),
    "goal": ("#dcefe6", "#1d3b30"),
    "palora": ("#0072b2", "#5bb8f5"),
    "lora": ("#d55e00", "#ff9254"),
    "expert": ("#00876a", "#3fcfa4"),
    "base": ("#5b6069", "#b4bac2"),
    "extra-1": ("#a1478d", "#e391d3"),
    "extra-2": ("#8c6a00", "#e3b93c"),
    "extra-3": ("#5a4ab4", "#aa9dff"),
    "extra-4": ("#08848f", "#52d6e3"),
}
SVG_LIMIT = 300_000  # characters; a larger drawing is embedded as PNG
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
WIDE, NARROW = 440, 340  # pixels: a panel of which the page sets two, or three, side by side

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; in the page its own font replaces it
    "font.size": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "text.usetex": False,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "text.color": PALETTE["ink"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.edgecolor": PALETTE["line"][0],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["line"][0],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["line"][0],
    "ytick.color": PALETTE["line"][0],
    "xtick.labelcolor": PALETTE["muted"][0],
    "ytick.labelcolor": PALETTE["muted"][0],
    "figure.facecolor": "none",
    "figure.dpi": 72,  # so that a unit of every size here is a pixel of the page
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "palora",
    "path.simplify": True,
}


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run `draw` in our matplotlib settings and put the user's back afterwards."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return styled


def _colour(name: str) -> str:
    return PALETTE[name][0]


def _figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """A figure of `width` x `height` pixels and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


# --- arms: one colour and one marker each, the same in every picture ------------------------------


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks everywhere: `slot` is its colour in PALETTE, `glyph` its marker as a character."""

    label: str
    slot: str
    marker: str
    glyph: str


_KNOWN_ARMS = {
    "base": ArmStyle("base", "base", "D", "◆"),
    "expert": ArmStyle("expert", "expert", "^", "▲"),
    "lora": ArmStyle("plain LoRA", "lora", "s", "■"),
    "palora": ArmStyle("palora", "palora", "o", "●"),
}
_EXTRA_MARKERS = (("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"), ("<", "◀"), (">", "▶"))


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """The style of every arm; arms beyond the known four take the remaining colours and markers in order."""
    styles: dict[str, ArmStyle] = {}
    extra = 0
    for arm in arms:
        if arm in _KNOWN_ARMS:
            styles[arm] = _KNOWN_ARMS[arm]
        else:
            marker, glyph = _EXTRA_MARKERS[extra % len(_EXTRA_MARKERS)]
            styles[arm] = ArmStyle(arm, f"extra-{extra % 4 + 1}", marker, glyph)
            extra += 1
    return styles


# --- facts learned against skill kept -------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """An arm in the main picture: shares in [0, 1] (`kept` may exceed 1), 95% intervals where known."""

    arm: str
    recall: float
    kept: float
    recall_ci: tuple[float, float] | None = None
    kept_ci: tuple[float, float] | None = None


@_styled
def tradeoff(
    points: Sequence[Point],
    styles: Mapping[str, ArmStyle],
    *,
    skill: str,
    reference: str = "expert",
    goal: float = 0.95,
) -> "Figure":
    """Facts learned (x) against skill kept (y), a labelled point per arm.

    The corner where both are at least `goal` is shaded. `reference` is the arm whose skill counts as 100%.
    """
    from matplotlib.ticker import MultipleLocator

    figure, axes = _figure(WIDE, 380)
    top = max([1.12, *((point.kept_ci or (0, point.kept))[1] + 0.09 for point in points)])
    right = 1.24  # beyond 100% is room for the labels of the arms, most of which crowd there
    axes.set(xlim=(-0.06, right), ylim=(-0.05, top), xlabel="facts learned (recall)")
    axes.set_ylabel(f"{skill} skill kept ({reference} = 100%)")
    note = f"shaded: learned and kept at least {goal:.0%}"
    axes.text(1, 1.015, note, transform=axes.transAxes, ha="right", fontsize=10.5, color=_colour("muted"))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_locator(MultipleLocator(0.25 if top < 1.8 else 0.5 if top < 4 else 1))
    _draw_points(axes, sorted(points, key=lambda point: point.arm == "palora"), styles, (goal, goal))
    return figure


def _draw_points(
    axes: "Axes", points: Sequence[Point], styles: Mapping[str, ArmStyle], goal: tuple[float, float]
) -> None:
    """Labelled points of shares, on the axes' limits, the corner beyond `goal` (x, y) shaded; palora's is larger."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import PercentFormatter

    few = len(points) < 9
    (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    axes.add_patch(Rectangle(goal, right - goal[0], top - goal[1], color=_colour("goal"), lw=0, zorder=0.5))
    axes.axhline(1, color=_colour("muted"), lw=1, ls=(0, (4, 3)), zorder=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_tick_params(length=0)
    for order, point in enumerate(points):
        style = styles[point.arm]
        axes.errorbar(
            point.recall,
            point.kept,
            xerr=_lengths(point.recall, point.recall_ci),
            yerr=_lengths(point.kept, point.kept_ci),
            fmt=style.marker,
            color=_colour(style.slot),
            markersize=(9 if few else 8) + 2 * (point.arm == "palora"),
            markeredgecolor=_colour("page"),
            markeredgewidth=1 if few else 0.5,
            elinewidth=1.6 if few else 0.9,
            clip_on=False,
            zorder=3 + order * 0.1,
        )
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # fixes the layout that the labels are placed in
    _place_labels(axes, points, styles)


def _lengths(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Error bars from an interval; never negative, as rounding may put the value just outside."""
    if interval is None:
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _place_labels(axes: "Axes", points: Sequence[Point], styles: Mapping[str, ArmStyle]) -> None:
    """Label each point where its text covers least, greedily; a thin line leads to a label that is far off."""
    frame: Box = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
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
        dx, dy, box = _best_place(x, y, extent.width, extent.height, taken, frame)
        taken.append(box)
        far = _is_far(x, y, box)
        line = {"arrowstyle": "-", "color": _colour(style.slot), "lw": 0.8, "shrinkA": 1, "shrinkB": 6}
        axes.annotate(
            style.label,
            (point.recall, point.kept),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            color=_colour(style.slot),
            arrowprops=line if far else None,
            zorder=6,
            **look,
        ).set_in_layout(False)


def _best_place(
    x: float, y: float, width: float, height: float, taken: Sequence[Box], frame: Box
) -> tuple[float, float, Box]:
    """The offset of a text's centre from (x, y), and its box, with the least overlap, near before far."""
    best_cost, best = math.inf, (0.0, 0.0, (x, y, x, y))
    for radius in (12, 18, 28, 40, 55, 75, 100):
        for side, up in ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            dx = side * (radius + width / 2)
            dy = up * ((radius - 9 if side else radius) + height / 2)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            cost = radius + 5 * (width * height - _overlap(box, frame)) + sum(_overlap(box, b) for b in taken)
            if _is_far(x, y, box):  # the thin line it then gets should not run through others
                path = [(x + dx * step / 20, y + dy * step / 20) for step in range(3, 20)]
                cost += 20 * sum(b[0] < u < b[2] and b[1] < v < b[3] for b in taken for u, v in path)
            if cost < best_cost:
                best_cost, best = cost, (dx, dy, box)
    return best


def _is_far(x: float, y: float, box: Box) -> bool:
    """Whether a label is too far from its point to be told as its own without a line."""
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3])) > 20


def _overlap(a: Box, b: Box) -> float:
    """The area two boxes (x0, y0, x1, y1) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


# --- training curves ------------------------------------------------------------------------------


@_styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, ArmStyle],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    percent: bool = False,
    width: int = NARROW,
) -> "Figure":
    """One line per arm, (x, y). Of a long one the running mean is drawn, over the values themselves, faint."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _figure(width, 0.66 * width)
    for arm, (xs, ys) in series.items():
        style = styles[arm]
        look: dict[str, Any] = {
            "color": _colour(style.slot),
            "marker": style.marker,
            "markeredgecolor": _colour("page"),
        }
        if len(ys) > 40:
            axes.plot(xs, ys, color=_colour(style.slot), lw=0.8, alpha=0.3)
            axes.plot(xs, _running_mean(ys), lw=2, markevery=max(1, len(xs) // 6), ms=6.5, **look)
        else:
            axes.plot(xs, ys, lw=2, ms=6.5, **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(length=0)
    if log:
        _log_axis(axes)
    if percent:
        values = [value for _, ys in series.values() for value in ys]
        span = max(values) - min(values)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if span > 0.05 else 1))
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


def _log_axis(axes: "Axes") -> None:
    """A logarithmic y axis with labels in plain text (10⁻³), which any font of the page can set."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 10:  # less than a decade may hold no labelled tick
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axes.tick_params(which="minor", length=0)


def power_of_ten(value: float) -> str:
    """1e-07 -> 10⁻⁷; from 0.1 to 100 the plain number."""
    if 0.09 < value < 101:
        return f"{value:g}"
    exponent = f"{math.log10(value):.0f}" if value > 0 else "0"
    return "10" + exponent.translate(SUPERSCRIPT)


# --- along the matrices ---------------------------------------------------------------------------


def split_module(name: str) -> tuple[int | None, str]:
    """model.layers.3.mlp.down_proj -> (3, "down_proj"): the layer, and what the matrix is within it."""
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", name)
    if not match:
        return None, name
    return int(match[1]), re.sub(r"^(mlp|self_attn|attn)\.", "", match[2])


def module_label(name: str) -> str:
    """model.layers.3.mlp.down_proj -> "layer 3 · down_proj"."""
    layer, kind = split_module(name)
    return kind if layer is None else f"layer {layer} · {kind}"


def by_depth(names: Iterable[str]) -> list[str]:
    """Names in the order of the network: by layer, then as given."""
    return sorted(names, key=lambda name: split_module(name)[0] or 0)


def _bands(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by what the matrix is, each group in order of depth."""
    bands: dict[str, list[str]] = {}
    for name in by_depth(names):
        bands.setdefault(split_module(name)[1], []).append(name)
    return bands


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
            axes.axvline(x - 0.5 + gap / 2, color=_colour("line"), lw=1)
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
    axes.tick_params(length=0)
    axes.set_xlabel("layer")
    return placed


@_styled
def per_layer(
    series: Mapping[str, Mapping[str, float]],
    styles: Mapping[str, ArmStyle],
    *,
    ylabel: str,
    log: bool = False,
    width: int = NARROW,
) -> "Figure":
    """A value per matrix and arm: x is the layer, once per kind of matrix. On a log axis 0 sits at 1e-9."""
    figure, axes = _figure(width, 0.66 * width)
    placed = _band_axis(axes, dict.fromkeys(name for values in series.values() for name in values))
    count = sum(len(members) for members in placed.values())
    for arm, values in series.items():
        style = styles[arm]
        for members in placed.values():
            known = [(x, values[name]) for name, x in members if name in values]
            axes.plot(
                [x for x, _ in known],
                [max(value, 1e-9) if log else value for _, value in known],
                color=_colour(style.slot),
                marker=style.marker,
                markeredgecolor=_colour("page"),
                ms=7.5 if count <= 40 else 3.5,
                lw=1.4,
            )
    axes.set_ylabel(ylabel)
    if log:
        _log_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    return figure


@_styled
def coverage(modules: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> "Figure":
    """Energy covered: bars per matrix, one for each of `kinds` ("skill" full, "facts" open, others grey)."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = _figure(WIDE, 290)
    placed = _band_axis(axes, modules)
    width = 0.84 / len(kinds)
    for index, kind in enumerate(kinds):
        known = [(x, modules[name][kind]) for m in placed.values() for name, x in m if kind in modules[name]]
        fill = {"skill": _colour("palora"), "facts": _colour("page")}.get(kind, _colour("line"))
        axes.bar(
            [x - 0.42 + width * (index + 0.5) for x, _ in known],
            [value for _, value in known],
            width * 0.86,
            color=fill,
            edgecolor=_colour("muted" if kind not in ("skill", "facts") else "palora"),
            lw=1.2 if len(modules) <= 40 else 0.5,
        )
    axes.set(ylabel="input energy covered", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


# --- along the spectrum of one matrix -------------------------------------------------------------


@_styled
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

    figure, axes = _figure(NARROW, 210)
    rank = len(values)
    marked = np.zeros(rank, dtype=bool)
    marked[np.asarray([index for index in protected if 0 <= index < rank], dtype=int)] = True
    if limit is None or limit <= 0:
        limit = float(np.abs(values).max()) or 1.0
    low = -limit * 1.1 if (values < 0).any() else 0.0
    if singular_values is not None and len(singular_values) and singular_values.max() > 0:
        step = max(1, len(singular_values) // 256)
        shape = singular_values[::step] / singular_values.max() * (limit * 1.1 - low) + low
        axes.fill_between(np.arange(len(singular_values))[::step], low, shape, color=_colour("area"), lw=0)
    _stems(axes, values, ~marked, _colour("muted"), 0.9)
    _stems(axes, values, marked, _colour("palora"), 1.5)
    if marked.sum() <= 128:
        where = np.flatnonzero(marked)
        axes.plot(where, values[where], "o", color=_colour("palora"), ms=3.4, mew=0)
    axes.axhline(0, color=_colour("muted"), lw=0.8)
    axes.set(xlim=(-0.02 * rank, 1.02 * rank), ylim=(low, limit * 1.1), ylabel=ylabel, xlabel="component")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
    return figure


def _stems(axes: "Axes", values: np.ndarray, chosen: np.ndarray, colour: str, width: float) -> None:
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
        color=colour,
        lw=width,
        solid_capstyle="butt",
    )


@_styled
def protected_weights(scores: Mapping[str, np.ndarray]) -> "Figure":
    """The weight each input eigen-direction is protected with, in order of energy.

    A line per layer of one kind of matrix, stronger with depth.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _figure(NARROW, 250)
    names = by_depth(scores)
    for index, name in enumerate(names):
        depth = index / max(1, len(names) - 1)
        values = scores[name]
        step = max(1, len(values) // 512)
        axes.plot(
            np.arange(1, len(values) + 1)[::step],
            values[::step],
            color=_colour("palora"),
            alpha=0.4 + 0.6 * depth,
            lw=1.2 + 0.8 * depth,
        )
    axes.set(xlabel="input direction, by energy", ylabel="protected", xlim=(0, None), ylim=(0, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0)
    return figure


@_styled
def protected_energy(eigenvalues: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> "Figure":
    """The share of the input energy that the first directions carry, a line per layer of one kind of matrix.

    Args:
        eigenvalues: (n,) by module, descending.
        counts: how many leading directions are protected: that part is drawn in the accent and ends in a dot.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _figure(NARROW, 250)
    for name in by_depth(eigenvalues):
        share = np.concatenate([[0.0], np.cumsum(eigenvalues[name])])
        share /= share[-1] or 1.0
        k = min(counts[name], len(share) - 1)
        step = max(1, len(share) // 512)
        axes.plot(np.arange(len(share))[k::step], share[k::step], color=_colour("muted"), lw=1)
        axes.plot(np.arange(k + 1), share[: k + 1], color=_colour("palora"), lw=1.8)
        axes.plot([k], [share[k]], "o", color=_colour("palora"), ms=6, mec=_colour("page"), zorder=3)
    axes.set(xlabel="input directions, by energy", ylabel="energy carried", xlim=(0, None), ylim=(0, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0)
    return figure


# --- methods of a comparison ----------------------------------------------------------------------


@_styled
def frontier(
    lines: Mapping[str, Sequence[tuple[float, float, tuple[float, float] | None]]],
    styles: Mapping[str, ArmStyle],
    *,
    ylabel: str,
) -> "Figure":
    """Facts learned (x) against skill kept (y): a line per method through its means (recall, kept, 95% interval), one
    for each milestone that it reached. Upwards and to the right is better."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = _figure(WIDE, 320)
    axes.axhline(1, color=_colour("muted"), lw=1, ls=(0, (4, 3)), zorder=0.8)
    for method, points in lines.items():
        if not points:
            continue
        xs, ys, intervals = zip(*points, strict=True)
        errors = [_lengths(y, i) or [[0.0], [0.0]] for y, i in zip(ys, intervals, strict=True)]
        style = styles[method]
        axes.errorbar(
            xs,
            ys,
            yerr=np.array([[e[0][0] for e in errors], [e[1][0] for e in errors]]),
            color=_colour(style.slot),
            marker=style.marker,
            ms=7,
            lw=1.4,
            elinewidth=1,
            markeredgecolor=_colour("page"),
        )
    axes.set(xlabel="facts learned (mean recall at the milestone)", ylabel=ylabel)
    axes.set_ylim(max(0.0, axes.get_ylim()[0]), max(1.08, axes.get_ylim()[1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(length=0)
    return figure


@_styled
def kept(points: Sequence[Point], styles: Mapping[str, ArmStyle], *, xlabel: str, ylabel: str) -> "Figure":
    """Two things kept against each other, a labelled point a method (`Point.recall` is x). The corner where at least
    95% of the one and 90% of the other are kept is shaded."""
    figure, axes = _figure(2 * WIDE, 520)
    low = min([0.8, *((p.kept_ci or (p.kept, 0))[0] - 0.05 for p in points)])
    top = max([1.06, *((p.kept_ci or (0, p.kept))[1] + 0.03 for p in points)])
    left = min([0.5, *((p.recall_ci or (p.recall, 0))[0] - 0.05 for p in points)])
    axes.set(xlim=(max(-0.03, left), 1.12), ylim=(max(0.0, low), top), xlabel=xlabel, ylabel=ylabel)
    _draw_points(axes, points, styles, (0.9, 0.95))
    return figure


@_styled
def clouds(
    points: Mapping[str, Sequence[tuple[float, float]]], styles: Mapping[str, ArmStyle], *, xlabel: str, ylabel: str
) -> "Figure":
    """A point (x, share kept) per run, in the colour and marker of its method."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = _figure(WIDE, 320)
    for method, pairs in points.items():
        style = styles[method]
        xs, ys = zip(*pairs, strict=True)
        axes.plot(xs, ys, style.marker, color=_colour(style.slot), ms=6, mec=_colour("page"), mew=0.6)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(length=0)
    return figure


# --- out of matplotlib ----------------------------------------------------------------------------


@_styled
def to_html(figure: "Figure", description: str) -> str:
    """The figure as inline SVG in CSS colours (above SVG_LIMIT as PNG), with a description for who cannot see."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    label = escape(description, quote=True)
    if len(svg) > SVG_LIMIT:
        data = base64.b64encode(to_png(figure, dpi=144)).decode("ascii")
        return f'<img class="plot" alt="{label}" src="data:image/png;base64,{data}">'
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', svg)
    start = f'<svg class="plot" role="img" aria-label="{label}" viewBox="{box[1] if box else ""}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: start, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    prefix = f"f{zlib.crc32(svg.encode()):x}-"  # ids are global in a page: make them this picture's own
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # coordinates, not labels
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg)


@_styled
def to_png(figure: "Figure", dpi: int = 200) -> bytes:
    """The figure as PNG on the light page colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=_colour("page"))
    return buffer.getvalue()
