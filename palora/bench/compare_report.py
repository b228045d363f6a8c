"""What a comparison found (`summary.py`), for people: a Markdown table, a page, and the picture of what is kept."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.bench import tradeoff_plots
from palora.bench.comparison import mark
from palora.bench.matched import findings, front, headline, kept_points, kept_skill, share
from palora.common.files import atomic_write_bytes, atomic_write_text
from palora.common.wording import markdown as escaped
from palora.results.pages import page
from palora.results.plots.figure import Picture, to_html, to_png
from palora.results.plots.style import arm_styles
from palora.results.plots.tradeoff import Point
from palora.results.table import number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- tables ---------------------------------------------------------------------------------------


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, all columns but the first to the right."""
    ruler = "|---|" + "---:|" * (len(heads) - 1)
    return ["| " + " | ".join(heads) + " |", ruler, *("| " + " | ".join(row) + " |" for row in rows), ""]


KL = ("facts", "prompts", "skill")  # what KL from the base is measured on


def columns(result: Mapping[str, Any]) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """The headings of the main table, and how each is read from a row of `table`."""

    def plain(key: str, form: Callable[[float | None], str]) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: form(row[key]["mean"]) if row.get(key) else "–"

    def inner(key: str, of: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: number(entry["mean"]) if (entry := row.get(key, {}).get(of)) else "–"

    def kept(skill: str, key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: with_interval(row["retention"].get(skill, {}).get(key))

    rows = [row for by in result["table"].values() for methods in by.values() for row in methods.values()]
    skills, arms = list(result["references"]["base"]), [a for a in ("expert", "base") if a in result["references"]]
    return [
        ("rate", lambda row: f"{row['learning_rate']:g}"),
        ("reached", lambda row: "scaled" if row["scaled"] else f"{row['reached']} of {row['seeds']}"),
        ("recall", plain("recall", percent)),
        ("exact", plain("recall_exact", percent)),
        ("F1", plain("recall_f1", percent)),
        *((f"{skill}, of the {arm}'s", kept(skill, f"vs_{arm}")) for arm in arms for skill in skills),
        ("paraphrases", plain("paraphrase_recall", percent)),
        *((f"words, {skill}", inner("words", skill)) for skill in result["references"].get("words", {})),
        *((f"KL, {of}", inner("kl", of)) for of in KL if any(r.get("kl", {}).get(of) for r in rows)),
        ("known facts", lambda row: with_interval(_within(row["locality"]))),
        ("drift", plain("drift", number)),
        ("‖ΔW‖/‖W‖", plain("relative_norm", number)),
        ("leak", plain("leak", number)),
        ("epochs", plain("epoch", number)),
        ("seconds", plain("seconds", number)),
        ("MiB in memory", plain("peak_memory", lambda v: number(v and v / 2**20))),
        ("KiB saved", plain("saved_bytes", lambda v: number(v and v / 2**10))),
    ]


def with_interval(estimate: Mapping[str, Any] | None, form: str = ".1%") -> str:
    """0.974 [0.96, 0.99] as "97.4% [96.0%, 99.0%]"; a dash where it was not measured."""
    if estimate is None:
        return "–"
    interval = estimate["ci95"]
    return format(estimate["mean"], form) + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")


def _within(estimate: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """An estimate of a share, whose interval ends at 0 and 100%."""
    return estimate and {**estimate, "ci95": share(estimate["ci95"])}


def families(paired: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What was tested at a milestone, each a family of its own for Holm: the skill kept, and the known facts left."""
    minus = f"minus {paired['against']}'s"
    tested = ((f"{paired['skill']} kept, {minus}", "tests"), (f"known facts left, {minus}", "known_facts"))
    return [(what, paired[key]) for what, key in tested if paired.get(key)]


def test_rows(tests: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Method, difference, p of the paired t-test and of the sign-flip test, both after Holm."""

    def p(value: float | None) -> str:
        return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"

    return [
        (name, with_interval(t["difference"], "+.1%"), p(t.get("p_t_holm")), p(t.get("p_sign_flip_holm")))
        for name, t in tests.items()
    ]


def describe(result: Mapping[str, Any]) -> list[str]:
    """What was done, in sentences that hold for any result."""
    c = result["comparison"]
    n = len(c["seeds"])
    smallest = 2 / 2**n
    return [
        f"{len(result['runs'])} runs: {len(c['methods'])} methods, {', '.join(map(str, c['loads']))} facts, {n} seeds. "
        f"A seed has its own {'expert, ' if c['expert'] else ''}batches and test problems; all methods share them.",
        f"Methods are compared at the moment when recall first passes each milestone (it is looked at every "
        f"{c['inject']['recall_every']} epochs; at most {c['inject']['epochs']} epochs). The tables are of that "
        "moment, with the recall that it had.",
        f"The first sentence and picture of the page are of exactly {c['choose_at']:.0%} recall: between the moments "
        "measured before and after it, a straight line.",
        f"Each method at the learning rate of its sweep that keeps most of {', '.join(c['keep_skills'])} at "
        f"{c['choose_at']:.0%} recall on {c['validation']} validation problems, of the rates that reach it with most "
        "seeds; of rates that tie, the one with the highest final recall. "
        f"What is shown is measured on {c['evaluate']['problems']} test problems a skill and seed.",
        f"Kept: skill accuracy over {_standard(result)}'s. Means over the seeds that reached the "
        "milestone, with 95% t-intervals; those of known facts are cut at 0 and 100%.",
        "Paired differences over seeds, corrected by Holm within a milestone. The t-test takes differences to be about "
        f"normal; the exact sign-flip test does not, but with {n} seeds its p is at least {smallest:.3g} before that.",
        *(
            f"{name} trains nothing: it is {m['scaled']['of']}'s adapter at the norm that {m['scaled']['to']}'s update "
            "has at the milestone, and its recall is whatever comes of it; it is in no test and no picture."
            for name, m in c["methods"].items()
            if m["scaled"]
        ),
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as `compare.md`."""
    references = result["references"]
    skills = list(references["base"])
    lines = [*(f"- {escaped(sentence)}" for sentence in [*describe(result), f"Machine: {result['machine']}."]), ""]
    rows: list[Sequence[str]] = [
        (arm, *(with_interval(references[arm][skill]) for skill in skills))
        for arm in ("base", "expert")
        if arm in references
    ]
    lines += named_table(["accuracy", *skills], rows)
    for load, milestones in result["table"].items():
        for milestone, methods in milestones.items():
            lines += [f"### {load} facts, recall first at {float(milestone):.0%}", ""]
            shown = columns(result)
            lines += named_table(
                ["method", *(h for h, _ in shown)], [(m, *(f(row) for _, f in shown)) for m, row in methods.items()]
            )
            paired = result["paired"][load][milestone]
            if milestone == mark(result["comparison"]["choose_at"]) and (points := kept_points(result, load)):
                on_front = escaped(", ".join(front(points)))
                lines += [
                    f"On the Pareto front of {escaped(paired['skill'])} kept and known facts left: {on_front}.",
                    "",
                ]
            for what, tests in families(paired):
                lines += named_table([what, "difference", "p (t, Holm)", "p (sign flip, Holm)"], test_rows(tests))
    lines += ["### What tells retention, over all runs at the choosing milestone", ""]
    found = [
        (name, *(number(p[key]) for key in ("spearman", "known_facts", "epochs")), str(p["n"]))
        for name, p in result["predictors"].items()
    ]
    heads = ["rank correlation with", "the skill kept", "the known facts left", "epochs to the recall", "runs"]
    lines += named_table(heads, found)
    return "\n".join(lines)


def named_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose heads and first column hold names that somebody chose."""
    return markdown_table(list(map(escaped, heads)), [[escaped(first), *cells] for first, *cells in rows])


# --- the page -------------------------------------------------------------------------------------


def write_pages(result: Mapping[str, Any], out: Path) -> None:
    """Write `compare.md`, `compare.html` and, for every load, the picture of what is kept."""
    atomic_write_text(out / "compare.md", markdown(result))
    atomic_write_text(out / "compare.html", render(result, out.resolve().name))
    for load in result["table"]:
        if points := kept_points(result, load):
            atomic_write_bytes(out / f"kept-{load}.png", to_png(draw_kept(result, load, points)))


def _standard(result: Mapping[str, Any]) -> str:
    """What retention is measured against."""
    return "expert" if result["comparison"]["expert"] else "base"


def draw_kept(result: Mapping[str, Any], load: str, points: list[Point]) -> "Figure":
    """The picture of what is kept, a point a method (`kept_points`)."""
    c = result["comparison"]
    return tradeoff_plots.kept(
        points,
        arm_styles(c["methods"]),
        xlabel=f"known facts still right ({c['choose_at']:.0%} of {load} new ones learned)",
        ylabel=f"{kept_skill(result)} kept ({_standard(result)} = 100%)",
    )


def render(result: Mapping[str, Any], name: str) -> str:
    """The page, self-contained."""
    c = result["comparison"]
    styles = arm_styles(c["methods"])
    at = mark(c["choose_at"])
    kept = {load: kept_points(result, load) for load in result["table"]}
    return page.fill(
        Path(__file__).with_name("compare.html.jinja"),
        name=name,
        styles=styles,
        headlines={
            load: (headline(result, load, points), findings(result, load, points)) for load, points in kept.items()
        },
        kept=[
            Picture(
                f"{load} facts, {c['choose_at']:.0%} learned", to_html(draw_kept(result, load, points), _told(points))
            )
            for load, points in kept.items()
            if points
        ],
        many=max(map(len, kept.values()), default=0) > tradeoff_plots.MANY,
        pictures=[*_frontiers(result, kept), *_clouds(result)],
        milestones={load: sorted(of, key=lambda m: (m != at, -float(m))) for load, of in result["table"].items()},
        sentences=describe(result),
        methods=sorted(c["methods"], key=lambda method: (method != "palora", method != c["reference"])),
        result=result,
        columns=columns(result),
        families=families,
        test_rows=test_rows,
        with_interval=with_interval,
        number=number,
    )


def _told(points: Sequence[Point]) -> str:
    """The picture of what is kept, for who cannot see it."""
    told = (f"{p.arm}: {percent(p.recall)} of the known facts, {percent(p.kept)} of the skill" for p in points)
    return f"What is kept, by method. {'; '.join(told)}. On the Pareto front: {', '.join(front(points))}."


def _frontiers(result: Mapping[str, Any], kept: Mapping[str, Sequence[Point]]) -> list[Picture]:
    """Learned against kept, a picture a load and skill."""
    c = result["comparison"]
    pictures = []
    for load, milestones in result["table"].items():
        bold = {"palora", c["reference"], *front(kept[load])}
        for skill in result["references"]["base"]:
            lines = {
                method: [
                    (row["recall"]["mean"], left["mean"], left["ci95"])
                    for rows in milestones.values()
                    if (row := rows[method])["recall"] and (left := row["retention"].get(skill, {}).get("vs_expert"))
                ]
                for method in c["methods"]
                if not c["methods"][method]["scaled"]
            }
            ylabel = f"{skill} kept ({_standard(result)} = 100%)"
            figure = tradeoff_plots.frontier(lines, arm_styles(c["methods"]), ylabel=ylabel, bold=bold)
            title = f"{load} facts: learned, and {skill} kept"
            pictures.append(Picture(title, to_html(figure, f"{title}, by method")))
    return pictures


def _clouds(result: Mapping[str, Any]) -> list[Picture]:
    """What is kept of the skill against the drift, and against the coverage: a point a run."""
    c, skill = result["comparison"], kept_skill(result)
    at = mark(c["choose_at"])
    wanted: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None]], ...] = (
        ("drift", "drift of the update on the skill's inputs", lambda run: run["moments"][at]["drift"]),
        ("coverage of the skill", "skill input energy protected", lambda run: run["coverage"]["skill"]),
    )
    pictures = []
    for key, title, value in wanted:
        points: dict[str, list[tuple[float, float]]] = {}
        for run in result["runs"]:
            if at in run["moments"] and run["kind"] != "scaled":
                x, kept = value(run), run["moments"][at]["retention"][skill]["vs_expert"]
                if x is not None and kept is not None:
                    points.setdefault(run["method"], []).append((x, kept))
        figure = tradeoff_plots.clouds(points, arm_styles(c["methods"]), xlabel=title, ylabel=f"{skill} kept")
        rank = number(result["predictors"][key]["spearman"])
        heading = f"Every run at {c['choose_at']:.0%} recall: {title}"
        pictures.append(Picture(heading, to_html(figure, heading), f"rank correlation {rank}"))
    return pictures
