"""The page of `palora spectrum`: where a skill lives, at a glance. The numbers of `spectrum.json` in, HTML out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palora import plots
from palora.plots import PALETTE, module_label, split_module, to_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
MAX_MATRICES = 12  # drawn component by component; the JSON has all of them


@dataclass(frozen=True)
class _Style:
    """How a band looks in every picture."""

    label: str
    slot: str
    marker: str
    glyph: str


STYLES = {
    "top": _Style("top: largest singular values", "palora", "o", "●"),
    "middle": _Style("middle", "extra-2", "s", "■"),
    "bottom": _Style("bottom: smallest", "expert", "^", "▲"),
    "random": _Style("random, mean of the draws", "base", "D", "◆"),
    "expert": _Style("those the expert moved most", "lora", "v", "▼"),
}
SKILL, FACTS = "palora", "lora"  # colours


@dataclass(frozen=True)
class Picture:
    title: str
    drawing: str
    note: str = ""


def _value(row: Row, measure: str) -> Any:
    """`skill` and `known_facts` are accuracies, `perplexity:<text>` a perplexity; None where it was not measured."""
    if measure.startswith("perplexity:"):
        return row["perplexity"].get(measure.partition(":")[2])
    found = row.get(measure)
    return None if found is None else found["accuracy"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


# --- pictures -------------------------------------------------------------------------------------


@plots._styled
def by_width(result: Row, measure: str, ylabel: str) -> "Figure":
    """How much is left (y) when a band of some width (x) is gone from every matrix; a line per kind of band."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    figure, axes = plots._figure(plots.WIDE, 270)
    for kind, style in STYLES.items():
        rows = [row for row in result["removals"] if row["part"] == "all" and row["kind"] == kind]
        xs, ys = [], []
        for width in sorted({row["fraction"] for row in rows}):
            y = _mean([_value(row, measure) for row in rows if row["fraction"] == width])
            if y is not None:
                xs.append(width)
                ys.append(y)
        axes.plot(xs, ys, color=PALETTE[style.slot][0], marker=style.marker, mec=PALETTE["page"][0], lw=2, ms=8)
    base = _value(result["base"], measure)
    if base is not None:
        axes.axhline(base, color=PALETTE["muted"][0], lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="components changed, of every matrix", ylabel=ylabel, xscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(result["settings"]["fractions"])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(length=0)
    _percent_or_log(axes, measure)
    return figure


def _percent_or_log(axes: "Axes", measure: str) -> None:
    from matplotlib.ticker import PercentFormatter

    if measure.startswith("perplexity:"):
        plots._log_axis(axes)
    else:
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


@plots._styled
def by_slice(result: Row) -> "Figure":
    """What is left when one slice of the spectrum is gone from every matrix, slice by slice."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = plots._figure(plots.WIDE, 290)
    rows = sorted((r for r in result["removals"] if r["kind"] == "slice"), key=lambda row: row["start"])
    measures = [m for m in ("skill", "known_facts") if _value(result["base"], m) is not None]
    for index, measure in enumerate(measures):
        colour = PALETTE[SKILL if measure == "skill" else FACTS][0]
        width = 0.86 / len(measures)
        x = np.arange(len(rows)) - 0.43 + width * (index + 0.5)
        y = np.array([_value(row, measure) for row in rows], dtype=float)
        ci = np.array([row[measure]["ci95"] for row in rows]).T
        axes.bar(x, y, 0.9 * width, color=colour)
        error = np.abs(np.array([y - ci[0], ci[1] - y]).clip(min=0))
        axes.errorbar(x, y, error, fmt="none", ecolor=PALETTE["ink"][0], lw=1)
        axes.axhline(_value(result["base"], measure), color=colour, lw=1.2, ls=(0, (4, 3)))
    ends = [(row["start"], row["start"] + row["fraction"]) for row in rows]
    axes.set_xticks(range(len(rows)), [f"{100 * low:.3g}–\n{100 * high:.3g}%" for low, high in ends])
    axes.set(ylim=(0, 1.05), xlabel="slice of the spectrum, largest singular values first", ylabel="still right")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
    return figure


@plots._styled
def by_part(result: Row, measure: str) -> "Figure":
    """What is left when a band is gone from one part of the model: a row per part, a column per kind of band."""
    from matplotlib.colors import LinearSegmentedColormap

    fraction = _part_fraction(result)
    rows = [row for row in result["removals"] if row["fraction"] == fraction and row["kind"] in STYLES]
    names = list(dict.fromkeys(row["part"] for row in rows))
    kinds = [kind for kind in STYLES if any(row["kind"] == kind for row in rows)]
    figure, axes = plots._figure(plots.WIDE, 70 + 30 * len(names))
    table = [
        [_mean([_value(r, measure) for r in rows if (r["part"], r["kind"]) == (n, k)]) for k in kinds] for n in names
    ]
    colours = LinearSegmentedColormap.from_list("left", [PALETTE["page"][0], PALETTE[_colour_of(measure)][0]])
    axes.imshow(np.array(table, dtype=float), cmap=colours, vmin=0, vmax=1, aspect="auto", alpha=0.75)
    for y, line in enumerate(table):
        for x, value in enumerate(line):
            axes.text(x, y, "–" if value is None else f"{value:.0%}", ha="center", va="center", color=PALETTE["ink"][0])
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(names)), ["all matrices" if name == "all" else name for name in names])
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _colour_of(measure: str) -> str:
    return SKILL if measure == "skill" else FACTS


def _part_fraction(result: Row) -> float:
    return float(sorted(result["settings"]["fractions"])[len(result["settings"]["fractions"]) // 2])


@plots._styled
def by_drift(result: Row) -> "Figure":
    """Every change of the weights as a point: how far it moves the outputs (x), and what is left of the skill (y)."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = plots._figure(plots.WIDE, 290)
    for kind, style in {**STYLES, "slice": _Style("", "line", "o", "")}.items():
        rows = [row for row in result["removals"] if row["kind"] == kind]
        axes.plot(
            [row["drift"] for row in rows],
            [_value(row, "skill") for row in rows],
            style.marker,
            color=PALETTE[style.slot][0],
            mec=PALETTE["muted" if kind == "slice" else "page"][0],
            ms=7.5,
            zorder=2 if kind == "slice" else 3,
        )
    axes.axhline(_value(result["base"], "skill"), color=PALETTE["muted"][0], lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="drift: how far the outputs move, on the skill's inputs", ylabel="skill, still right")
    axes.set(ylim=(-0.03, 1.05), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(length=0)
    return figure


@plots._styled
def overlaps(matrix: Row) -> "Figure":
    """The share of the input energy that enters through each component, for each kind of text; s is the grey area."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = plots._figure(plots.NARROW, 230)
    lowest = 1.0
    for kind, values in matrix["overlap"].items():
        shares = np.array(values)
        bins = np.array_split(np.arange(len(shares)), min(len(shares), 64))
        y = np.array([shares[part].mean() for part in bins]).clip(min=1e-9)
        lowest = min(lowest, float(y.min()))
        axes.plot([part.mean() for part in bins], y, color=PALETTE[_colour_of(kind)][0], lw=1.6)
    axes.axhline(1 / len(matrix["singular_values"]), color=PALETTE["muted"][0], lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="component", ylabel="share of input energy")
    plots._log_axis(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0)
    _singular_values(axes, matrix)
    return figure


def _singular_values(axes: "Axes", matrix: Row) -> None:
    """The singular values as a grey area behind, on a scale of its own."""
    s = np.array(matrix["singular_values"])
    step = max(1, len(s) // 256)
    behind = axes.inset_axes((0, 0, 1, 1), zorder=-1)
    behind.fill_between(np.arange(len(s))[::step], 0, (s / s.max())[::step], color=PALETTE["area"][0], lw=0)
    behind.set(xlim=axes.get_xlim(), ylim=(0, 1.05))
    behind.axis("off")


@plots._styled
def alignments(result: Row) -> "Figure":
    """The update's alignment with the dominant components, over what chance gives, by k; a line per matrix."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    figure, axes = plots._figure(plots.WIDE, 290)
    known = {name: m["alignment"] for name, m in result["matrices"].items() if m["alignment"]}
    kinds = list(dict.fromkeys(split_module(name)[1] for name in known))
    for name, found in known.items():
        slot = ("palora", "lora", "expert", "extra-1", "extra-2", "extra-3")[kinds.index(split_module(name)[1]) % 6]
        ratio = np.array(found["dominant"]) / np.array(found["dominant_chance"])
        axes.plot(result["settings"]["fractions"], ratio, color=PALETTE[slot][0], lw=1.6, marker="o", ms=5)
    for index, kind in enumerate(kinds):
        slot = ("palora", "lora", "expert", "extra-1", "extra-2", "extra-3")[index % 6]
        axes.plot([], [], color=PALETTE[slot][0], marker="o", ms=5, label=kind)
    axes.legend(frameon=False, fontsize=11)
    axes.axhline(1, color=PALETTE["muted"][0], lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="k, of the components", ylabel="alignment, times chance", xscale="log", ylim=(0, None))
    axes.xaxis.set_major_locator(FixedLocator(sorted(result["settings"]["fractions"])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(length=0)
    return figure


# --- sentences ------------------------------------------------------------------------------------


def whole(result: Row, kind: str, fraction: float, measure: str = "skill") -> float | None:
    """What is left when this band is gone from every matrix; the mean of the draws of a random one."""
    of = (r for r in result["removals"] if (r["part"], r["kind"], r["fraction"]) == ("all", kind, fraction))
    return _mean([_value(row, measure) for row in of])


def headline(result: Row) -> str:
    """The one sentence to remember, whatever it turns out to be."""
    fraction = _part_fraction(result)
    left = {kind: whole(result, kind, fraction) or 0.0 for kind in ("top", "bottom", "random")}
    done = "removed" if result["settings"]["scale"] == 0 else f"scaled by {result['settings']['scale']:g}"
    return (
        f"With {fraction:.0%} of the components {done}, {result['skill']} goes "
        f"from {_value(result['base'], 'skill'):.1%} to "
        f"{left['top']:.1%} (the largest), {left['random']:.1%} (random ones), {left['bottom']:.1%} (the smallest)"
    )


def findings(result: Row) -> list[str]:
    """What else can be read off, with the numbers."""
    fraction = _part_fraction(result)
    held, entered = energy(result, fraction)
    said = [
        f"The largest {fraction:.0%} hold {held:.0%} of the matrices' squared norm, and take in {entered:.0%} of the "
        "skill's input energy. An update can work on the rest of it without touching them."
    ]
    inside = [sum(m["overlap"]["skill"]) for m in result["matrices"].values()]
    outside = [1 - share for share in inside if share < 0.99]
    if outside:
        said.append(
            f"In {len(outside)} of {len(inside)} matrices {min(outside):.0%} to {max(outside):.0%} of it enters "
            "through no component at all: it lies in the null space, where W does nothing and an update can."
        )
    facts = {kind: whole(result, kind, fraction, "known_facts") for kind in ("top", "random", "bottom")}
    if facts["top"] is not None:
        base = _value(result["base"], "known_facts")
        text = ", ".join(f"{value:.1%} ({kind})" for kind, value in facts.items())
        said.append(f"The known facts go from {base:.1%} to {text} with the same bands.")
    expert = whole(result, "expert", fraction)
    if expert is not None:
        random = whole(result, "random", fraction) or 0.0
        low, high = next(
            row["skill"]["ci95"]
            for row in result["removals"]
            if (row["part"], row["kind"], row["fraction"]) == ("all", "expert", fraction)
        )
        said.append(
            f"Without the {fraction:.0%} that the expert moved most, {expert:.1%} of the problems are solved "
            f"(95% interval {low:.1%} to {high:.1%}); without as many random ones, {random:.1%}."
        )
    drifts = [row["drift"] for row in result["removals"]]
    skill = [_value(row, "skill") or 0.0 for row in result["removals"]]
    said.append(
        f"Rank correlation of drift and skill left, over {len(drifts)} bands: {rank_correlation(drifts, skill):.2f}."
    )
    aligned = [m["alignment"] for m in result["matrices"].values() if m["alignment"]]
    if aligned and aligned[0]["protected"] is not None:
        share = _mean([a["protected"] for a in aligned]) or 0.0
        chance = _mean([a["protected_chance"] for a in aligned]) or 0.0
        said.append(
            f"Of the update's energy {share:.1%} lies in the protected subspace; by chance it would be {chance:.1%}."
        )
    return said


def sure(result: Row) -> str:
    """How much of the gradient is more than noise."""
    matrices = result["matrices"].values()
    known = [abs(g) > 2 * e for m in matrices for g, e in zip(m["gradient"], m["gradient_error"], strict=True)]
    return f"{sum(known) / len(known):.0%} of the components have one over twice its standard error (5% by chance)."


def energy(result: Row, fraction: float) -> tuple[float, float]:
    """The means of what the largest components hold of a matrix's squared norm, and take in of the skill's inputs."""
    held, entered = [], []
    for matrix in result["matrices"].values():
        s2 = np.array(matrix["singular_values"]) ** 2
        k = max(1, round(fraction * len(s2)))
        held.append(float(s2[:k].sum() / s2.sum()))
        entered.append(float(np.sum(matrix["overlap"]["skill"][:k])))
    return float(np.mean(held)), float(np.mean(entered))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, with the mean rank for ties; 0 where one of them does not vary."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    a, b = ranks(x), ranks(y)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


# --- the page -------------------------------------------------------------------------------------


def render(result: Row) -> str:
    """The page, as HTML: self-contained, light and dark, like the report."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("palora")
    report = folder.joinpath("report.html.jinja").read_text(encoding="utf-8")
    style = re.search(r"<style>.*?</style>", report, re.S)  # one style for both pages
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(folder.joinpath("spectrum.html.jinja").read_text(encoding="utf-8"))
    drawn = list(result["matrices"].items())[:MAX_MATRICES]
    measured = {m for m in ("skill", "known_facts") if _value(result["base"], m) is not None}
    widths = [Picture(result["skill"], _html(by_width(result, "skill", "problems solved"), "skill left by width"))]
    if "known_facts" in measured:
        drawing = _html(by_width(result, "known_facts", "facts known"), "known facts left by width")
        widths.append(Picture("known facts", drawing))
    texts = {"skill": f"{result['skill']}: worked solutions", "known_facts": "known facts", "text": "text"}
    for kind, value in result["base"]["perplexity"].items():
        if value is None:
            continue
        drawing = _html(by_width(result, f"perplexity:{kind}", "perplexity"), f"perplexity of {kind} by width")
        widths.append(Picture("perplexity", drawing, texts[kind]))
    by_parts = [
        Picture({"skill": result["skill"]}.get(m, "known facts"), _html(by_part(result, m), f"{m} left, part by part"))
        for m in ("skill", "known_facts")
        if m in measured
    ]
    aligned = any(m["alignment"] for m in result["matrices"].values())
    return page.render(
        style=Markup(environment.from_string(style[0] if style else "").render(palette=PALETTE)),
        result=result,
        headline=headline(result),
        findings=findings(result),
        bands=[STYLES[k] for k in STYLES if any(row["kind"] == k for row in result["removals"])],
        fraction=_part_fraction(result),
        widths=widths,
        slices=_html(by_slice(result), "what is left when one slice of the spectrum is gone"),
        drift=_html(by_drift(result), "skill left against drift"),
        parts=by_parts,
        overlaps=[Picture(module_label(n), _html(overlaps(m), f"overlap, {module_label(n)}")) for n, m in drawn],
        gradients=_stems(drawn, "gradient", 0.0, "dL/dz", thousandths=True),
        scales=_stems(drawn, "scales", 1.0, "z − 1") if drawn[0][1]["scales"] else [],
        alignments=_html(alignments(result), "alignment of the update") if aligned else None,
        protected=[(module_label(n), m["alignment"]) for n, m in result["matrices"].items() if m["alignment"]],
        sure=sure(result),
        has_facts="known_facts" in measured,
        more=len(result["matrices"]) - len(drawn),
    )


def _stems(
    drawn: Sequence[tuple[str, Row]], key: str, origin: float, ylabel: str, thousandths: bool = False
) -> list[Picture]:
    """A stem per component, of each matrix on the same scale."""
    values = {name: (np.array(matrix[key]) - origin) * (1000 if thousandths else 1) for name, matrix in drawn}
    ylabel += ", in thousandths" if thousandths else ""
    limit = float(max(np.abs(v).max() for v in values.values()))
    return [
        Picture(
            module_label(name),
            _html(
                plots.spectrum(
                    values[name],
                    [],
                    ylabel=ylabel,
                    limit=limit,
                    singular_values=np.array(matrix["singular_values"]),
                ),
                f"{ylabel} of every component, {module_label(name)}",
            ),
        )
        for name, matrix in drawn
    ]


def _html(figure: "Figure", description: str) -> Any:
    from markupsafe import Markup

    return Markup(to_html(figure, description))
