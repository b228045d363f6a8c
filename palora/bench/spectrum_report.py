"""The page of `palora spectrum`: where a skill lives, at a glance. The numbers of `spectrum.json` in, HTML out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palora.bench import spectrum_plots as plots
from palora.bench.significance import rank_correlation
from palora.bench.spectrum_plots import STYLES, Row, mean, measured, part_fraction
from palora.common.module_names import module_label
from palora.results.pages import page
from palora.results.plots import components
from palora.results.plots.figure import Picture, to_html
from palora.results.table import number, percent

MAX_MATRICES = 12  # drawn component by component; the JSON has all of them

# --- sentences ------------------------------------------------------------------------------------


def whole(result: Row, kind: str, fraction: float, measure: str = "skill") -> float | None:
    """What is left when this band is gone from every matrix; the mean of the draws of a random one."""
    of = (r for r in result["removals"] if (r["part"], r["kind"], r["fraction"]) == ("all", kind, fraction))
    return mean([measured(row, measure) for row in of])


def headline(result: Row) -> str:
    """The one sentence to remember, whatever it turns out to be."""
    fraction = part_fraction(result)
    left = {kind: whole(result, kind, fraction) or 0.0 for kind in ("top", "bottom", "random")}
    done = "removed" if result["settings"]["scale"] == 0 else f"scaled by {result['settings']['scale']:g}"
    return (
        f"With {fraction:.0%} of the components {done}, {result['skill']} goes "
        f"from {measured(result['base'], 'skill'):.1%} to "
        f"{left['top']:.1%} (the largest), {left['random']:.1%} (random ones), {left['bottom']:.1%} (the smallest)"
    )


def findings(result: Row) -> list[str]:
    """What else can be read off, with the numbers."""
    fraction = part_fraction(result)
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
        base = measured(result["base"], "known_facts")
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
    skill = [measured(row, "skill") or 0.0 for row in result["removals"]]
    rank = rank_correlation(drifts, skill) or 0.0
    said.append(f"Rank correlation of drift and skill left, over {len(drifts)} bands: {rank:.2f}.")
    aligned = [m["alignment"] for m in result["matrices"].values() if m["alignment"]]
    if aligned and aligned[0]["protected"] is not None:
        share = mean([a["protected"] for a in aligned]) or 0.0
        chance = mean([a["protected_chance"] for a in aligned]) or 0.0
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


# --- the page -------------------------------------------------------------------------------------


def render(result: Row) -> str:
    """The page, as HTML: self-contained, light and dark, like the report."""
    skill, base = result["skill"], result["base"]
    names = {m: name for m, name in (("skill", skill), ("known_facts", "known facts")) if measured(base, m) is not None}
    drawn = list(result["matrices"].items())[:MAX_MATRICES]
    aligned = {name: m["alignment"] for name, m in result["matrices"].items() if m["alignment"]}
    return page.fill(
        Path(__file__).with_name("spectrum.html.jinja"),
        result=result,
        headline=headline(result),
        findings=findings(result),
        bands=[STYLES[k] for k in STYLES if any(row["kind"] == k for row in result["removals"])],
        fraction=part_fraction(result),
        widths=_widths(result, names),
        slices=to_html(plots.by_slice(result), "what is left when one slice of the spectrum is gone"),
        drift=to_html(plots.by_drift(result), "skill left against drift"),
        parts=[
            Picture(name, to_html(plots.by_part(result, m), f"{m} left, part by part")) for m, name in names.items()
        ],
        overlaps=[
            Picture(module_label(name), to_html(plots.overlaps(matrix), f"overlap, {module_label(name)}"))
            for name, matrix in drawn
        ],
        gradients=_stems(drawn, "gradient", 0.0, "dL/dz", thousandths=True),
        scales=_stems(drawn, "scales", 1.0, "z − 1") if drawn[0][1]["scales"] else [],
        alignments=to_html(plots.alignments(result), "alignment of the update") if aligned else None,
        protected=[(module_label(name), alignment) for name, alignment in aligned.items()],
        sure=sure(result),
        has_facts="known_facts" in names,
        more=len(result["matrices"]) - len(drawn),
    )


def _widths(result: Row, names: Mapping[str, str]) -> list[Picture]:
    """What is left by the width of a band: of the skill, the known facts, and the perplexities that were measured."""
    ylabels = {"skill": "problems solved", "known_facts": "facts known"}
    pictures = [
        Picture(name, to_html(plots.by_width(result, m, ylabels[m]), f"{m.replace('_', ' ')} left by width"))
        for m, name in names.items()
    ]
    texts = {"skill": f"{result['skill']}: worked solutions", "known_facts": "known facts", "text": "text"}
    for kind, value in result["base"]["perplexity"].items():
        if value is not None:
            figure = plots.by_width(result, f"perplexity:{kind}", "perplexity")
            pictures.append(Picture("perplexity", to_html(figure, f"perplexity of {kind} by width"), texts[kind]))
    return pictures


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
            to_html(
                components.spectrum(
                    values[name], [], ylabel=ylabel, limit=limit, singular_values=np.array(matrix["singular_values"])
                ),
                f"{ylabel} of every component, {module_label(name)}",
            ),
        )
        for name, matrix in drawn
    ]


def spectrum_table(result: Mapping[str, Any]) -> None:
    """Print what is left without each band of every matrix at once, and how far that moves the outputs."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What is left without a band of components, of every matrix", title_justify="left")
    for heading in ("band", "width", result["skill"], "known facts", "perplexity", "drift"):
        table.add_column(heading, justify="left" if heading == "band" else "right")
    whole = [row for row in result["removals"] if row["part"] == "all" and row["kind"] != "slice"]
    for row in ({"kind": "–", "fraction": None, "drift": None, **result["base"]}, *whole):
        low, high = row["skill"]["ci95"]
        table.add_row(
            row["kind"],
            "–" if row["fraction"] is None else f"{row['fraction']:.0%}",
            f"{percent(row['skill']['accuracy'])} [{low:.0%}, {high:.0%}]",
            percent(row["known_facts"]["accuracy"] if row["known_facts"] else None),
            number(row["perplexity"]["skill"]),
            number(row["drift"]),
        )
    Console(width=None if Console().is_terminal else 120).print(table)
