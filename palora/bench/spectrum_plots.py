"""Pictures of where a skill lives: what is left without a band of components, and what enters through each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from palora.common.module_names import split_module
from palora.results.plots.figure import NARROW, WIDE, colour, level, log_axis, panel, percent_axis, styled
from palora.results.plots.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

STYLES = {
    "top": Style("top: largest singular values", "palora", "o", "●"),
    "middle": Style("middle", "extra-2", "s", "■"),
    "bottom": Style("bottom: smallest", "expert", "^", "▲"),
    "random": Style("random, mean of the draws", "base", "D", "◆"),
    "expert": Style("those the expert moved most", "lora", "v", "▼"),
}
SKILL, FACTS = "palora", "lora"  # colours
KINDS = ("palora", "lora", "expert", "extra-1", "extra-2", "extra-3")  # colours of the kinds of matrices


def measured(row: Row, measure: str) -> Any:
    """`skill` and `known_facts` are accuracies, `perplexity:<text>` a perplexity; None where it was not measured."""
    if measure.startswith("perplexity:"):
        return row["perplexity"].get(measure.partition(":")[2])
    found = row.get(measure)
    return None if found is None else found["accuracy"]


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that were measured; None without any."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def part_fraction(result: Row) -> float:
    """The width that is measured part by part: the middle one."""
    fractions = sorted(result["settings"]["fractions"])
    return float(fractions[len(fractions) // 2])


def _slot(kind: str) -> str:
    return SKILL if kind == "skill" else FACTS


# --- pictures -------------------------------------------------------------------------------------


@styled
def by_width(result: Row, measure: str, ylabel: str) -> "Figure":
    """How much is left (y) when a band of some width (x) is gone from every matrix; a line per kind of band."""
    figure, axes = panel(WIDE, 270)
    for kind, style in STYLES.items():
        rows = [row for row in result["removals"] if row["part"] == "all" and row["kind"] == kind]
        xs, ys = [], []
        for width in sorted({row["fraction"] for row in rows}):
            y = mean([measured(row, measure) for row in rows if row["fraction"] == width])
            if y is not None:
                xs.append(width)
                ys.append(y)
        axes.plot(xs, ys, color=colour(style.slot), marker=style.marker, mec=colour("page"), lw=2, ms=8)
    base = measured(result["base"], measure)
    if base is not None:
        level(axes, base)
    axes.set(xlabel="components changed, of every matrix", ylabel=ylabel)
    _fraction_axis(axes, result)
    _percent_or_log(axes, measure)
    return figure


def _fraction_axis(axes: "Axes", result: Row) -> None:
    """A logarithmic x axis with a tick at every width that was measured."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(result["settings"]["fractions"])))
    axes.xaxis.set_minor_locator(NullLocator())
    percent_axis(axes.xaxis)


def _percent_or_log(axes: "Axes", measure: str) -> None:
    if measure.startswith("perplexity:"):
        log_axis(axes)
    else:
        axes.set_ylim(-0.03, 1.05)
        percent_axis(axes.yaxis)


@styled
def by_slice(result: Row) -> "Figure":
    """What is left when one slice of the spectrum is gone from every matrix, slice by slice."""
    figure, axes = panel(WIDE, 290)
    rows = sorted((r for r in result["removals"] if r["kind"] == "slice"), key=lambda row: row["start"])
    measures = [m for m in ("skill", "known_facts") if measured(result["base"], m) is not None]
    for index, measure in enumerate(measures):
        own = colour(_slot(measure))
        width = 0.86 / len(measures)
        x = np.arange(len(rows)) - 0.43 + width * (index + 0.5)
        y = np.array([measured(row, measure) for row in rows], dtype=float)
        ci = np.array([row[measure]["ci95"] for row in rows]).T
        axes.bar(x, y, 0.9 * width, color=own)
        error = np.abs(np.array([y - ci[0], ci[1] - y]).clip(min=0))
        axes.errorbar(x, y, error, fmt="none", ecolor=colour("ink"), lw=1)
        level(axes, measured(result["base"], measure), color=own, lw=1.2)
    ends = [(row["start"], row["start"] + row["fraction"]) for row in rows]
    axes.set_xticks(range(len(rows)), [f"{100 * low:.3g}–\n{100 * high:.3g}%" for low, high in ends])
    axes.set(ylim=(0, 1.05), xlabel="slice of the spectrum, largest singular values first", ylabel="still right")
    percent_axis(axes.yaxis)
    axes.grid(axis="x", visible=False)
    return figure


@styled
def by_part(result: Row, measure: str) -> "Figure":
    """What is left when a band is gone from one part of the model: a row per part, a column per kind of band."""
    from matplotlib.colors import LinearSegmentedColormap

    fraction = part_fraction(result)
    rows = [row for row in result["removals"] if row["fraction"] == fraction and row["kind"] in STYLES]
    names = list(dict.fromkeys(row["part"] for row in rows))
    kinds = [kind for kind in STYLES if any(row["kind"] == kind for row in rows)]
    figure, axes = panel(WIDE, 70 + 30 * len(names))
    table = [
        [mean([measured(r, measure) for r in rows if (r["part"], r["kind"]) == (n, k)]) for k in kinds] for n in names
    ]
    colours = LinearSegmentedColormap.from_list("left", [colour("page"), colour(_slot(measure))])
    axes.imshow(np.array(table, dtype=float), cmap=colours, vmin=0, vmax=1, aspect="auto", alpha=0.75)
    for y, line in enumerate(table):
        for x, value in enumerate(line):
            axes.text(x, y, "–" if value is None else f"{value:.0%}", ha="center", va="center", color=colour("ink"))
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(names)), ["all matrices" if name == "all" else name for name in names])
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


@styled
def by_drift(result: Row) -> "Figure":
    """Every change of the weights as a point: how far it moves the outputs (x), and what is left of the skill (y)."""
    figure, axes = panel(WIDE, 290)
    for kind, style in {**STYLES, "slice": Style("", "line", "o", "")}.items():
        rows = [row for row in result["removals"] if row["kind"] == kind]
        axes.plot(
            [row["drift"] for row in rows],
            [measured(row, "skill") for row in rows],
            style.marker,
            color=colour(style.slot),
            mec=colour("muted" if kind == "slice" else "page"),
            ms=7.5,
            zorder=2 if kind == "slice" else 3,
        )
    level(axes, measured(result["base"], "skill"))
    axes.set(xlabel="drift: how far the outputs move, on the skill's inputs", ylabel="skill, still right")
    axes.set(ylim=(-0.03, 1.05), xlim=(0, None))
    percent_axis(axes.yaxis)
    return figure


@styled
def overlaps(matrix: Row) -> "Figure":
    """The share of the input energy that enters through each component, for each kind of text; s is the grey area."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(NARROW, 230)
    for kind, values in matrix["overlap"].items():
        shares = np.array(values)
        bins = np.array_split(np.arange(len(shares)), min(len(shares), 64))
        y = np.array([shares[part].mean() for part in bins]).clip(min=1e-9)
        axes.plot([part.mean() for part in bins], y, color=colour(_slot(kind)), lw=1.6)
    level(axes, 1 / len(matrix["singular_values"]))
    axes.set(xlabel="component", ylabel="share of input energy")
    log_axis(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _singular_values(axes, matrix)
    return figure


def _singular_values(axes: "Axes", matrix: Row) -> None:
    """The singular values as a grey area behind, on a scale of its own."""
    s = np.array(matrix["singular_values"])
    step = max(1, len(s) // 256)
    behind = axes.inset_axes((0, 0, 1, 1), zorder=-1)
    behind.fill_between(np.arange(len(s))[::step], 0, (s / s.max())[::step], color=colour("area"), lw=0)
    behind.set(xlim=axes.get_xlim(), ylim=(0, 1.05))
    behind.axis("off")


@styled
def alignments(result: Row) -> "Figure":
    """The update's alignment with the dominant components, over what chance gives, by k; a line per matrix."""
    figure, axes = panel(WIDE, 290)
    known = {name: m["alignment"] for name, m in result["matrices"].items() if m["alignment"]}
    kinds = dict.fromkeys(split_module(name)[1] for name in known)
    colours = {kind: colour(KINDS[index % len(KINDS)]) for index, kind in enumerate(kinds)}
    for name, found in known.items():
        ratio = np.array(found["dominant"]) / np.array(found["dominant_chance"])
        axes.plot(
            result["settings"]["fractions"], ratio, color=colours[split_module(name)[1]], lw=1.6, marker="o", ms=5
        )
    for kind, own in colours.items():
        axes.plot([], [], color=own, marker="o", ms=5, label=kind)
    axes.legend(frameon=False, fontsize=11)
    level(axes, 1)
    axes.set(xlabel="k, of the components", ylabel="alignment, times chance", ylim=(0, None))
    _fraction_axis(axes, result)
    return figure
