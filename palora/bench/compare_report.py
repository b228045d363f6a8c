"""What a comparison found (`summary.py`), for people: a Markdown table, a page, and the picture of what is kept."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palora.bench import tradeoff_plots
from palora.bench.comparison import mark
from palora.common.files import atomic_write_bytes, atomic_write_text
from palora.common.wording import markdown as escaped
from palora.results.pages import page
from palora.results.plots.figure import to_html, to_png
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
        ("known facts", lambda row: with_interval(row["locality"])),
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
        f"{c['inject']['recall_every']} epochs; at most {c['inject']['epochs']} epochs).",
        f"Each method at the learning rate of its sweep that keeps most of {', '.join(c['keep_skills'])} at "
        f"{c['choose_at']:.0%} recall on {c['validation']} validation problems, of the rates that reach it with most "
        "seeds; of rates that tie, the one with the highest final recall. "
        f"What is shown is measured on {c['evaluate']['problems']} test problems a skill and seed.",
        f"Kept: skill accuracy over {_standard(result)}'s. Means over the seeds that reached the "
        "milestone, with 95% t-intervals.",
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


def front(points: Sequence[Point]) -> list[str]:
    """The methods on the Pareto front: no other keeps at least as much of both things and more of one, by the means."""

    def beaten(own: Point) -> bool:
        mine = (own.recall, own.kept)
        others = [(p.recall, p.kept) for p in points if p is not own]
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others)

    return [point.arm for point in points if not beaten(point)]


def _standard(result: Mapping[str, Any]) -> str:
    """What retention is measured against."""
    return "expert" if result["comparison"]["expert"] else "base"


def _kept_skill(result: Mapping[str, Any]) -> str:
    """The skill that the tests and the pictures are of: the same at every load and milestone."""
    milestones = next(iter(result["paired"].values()))
    return str(next(iter(milestones.values()))["skill"])


def kept_points(result: Mapping[str, Any], load: str) -> list[Point]:
    """For every method that has learned the facts: known facts that are still right (x), the kept skill (y)."""
    at, skill = mark(result["comparison"]["choose_at"]), _kept_skill(result)
    points = []
    for method, row in result["table"][load][at].items():
        y = row["retention"].get(skill, {}).get("vs_expert")
        if row["locality"] and y and not row["scaled"]:
            x = row["locality"]
            intervals = [tuple(e["ci95"]) if e["ci95"] else None for e in (x, y)]
            points.append(Point(method, x["mean"], y["mean"], *intervals))
    return points


def draw_kept(result: Mapping[str, Any], load: str, points: list[Point]) -> "Figure":
    """The picture of what is kept, a point a method (`kept_points`)."""
    c = result["comparison"]
    return tradeoff_plots.kept(
        points,
        arm_styles(c["methods"]),
        xlabel=f"known facts (no method saw them) still right, {c['choose_at']:.0%} of {load} new ones learned",
        ylabel=f"{_kept_skill(result)} kept ({_standard(result)} = 100%)",
    )


def render(result: Mapping[str, Any], name: str) -> str:
    """The page, self-contained."""
    c = result["comparison"]
    styles = arm_styles(c["methods"])
    at, skill = mark(c["choose_at"]), _kept_skill(result)
    pictures = []
    for load in result["table"]:
        if points := kept_points(result, load):
            title = f"{load} facts at {c['choose_at']:.0%} recall: the skill and the known facts that are left"
            told = f"{title}. On the Pareto front: {', '.join(front(points))}"
            pictures.append((told, to_html(draw_kept(result, load, points), title)))
    for load, milestones in result["table"].items():
        for shown in result["references"]["base"]:
            lines = {
                method: [
                    (row["recall"]["mean"], kept["mean"], kept["ci95"])
                    for rows in milestones.values()
                    if (row := rows[method])["recall"] and (kept := row["retention"].get(shown, {}).get("vs_expert"))
                ]
                for method in c["methods"]
                if not c["methods"][method]["scaled"]
            }
            figure = tradeoff_plots.frontier(lines, styles, ylabel=f"{shown} kept ({_standard(result)} = 100%)")
            title = f"{load} facts: learned, and {shown} kept"
            pictures.append((title, to_html(figure, f"{title}, by method")))
    for x, title in (
        ("drift", "drift of the update on the skill's inputs"),
        ("coverage", "skill input energy protected"),
    ):
        clouds: dict[str, list[tuple[float, float]]] = {}
        for run in result["runs"]:
            if at in run["moments"] and run["kind"] != "scaled":
                moment = run["moments"][at]
                value = moment["drift"] if x == "drift" else run["coverage"]["skill"]
                kept = moment["retention"][skill]["vs_expert"]
                if value is not None and kept is not None:
                    clouds.setdefault(run["method"], []).append((value, kept))
        figure = tradeoff_plots.clouds(clouds, styles, xlabel=title, ylabel=f"{skill} kept")
        key = "drift" if x == "drift" else "coverage of the skill"
        rank = number(result["predictors"][key]["spearman"])
        heading = f"Every run at {c['choose_at']:.0%} recall: {title} (rank correlation {rank})"
        pictures.append((heading, to_html(figure, heading)))
    return page.fill(
        Path(__file__).with_name("compare.html.jinja"),
        name=name,
        styles=styles,
        pictures=pictures,
        sentences=describe(result),
        result=result,
        columns=columns(result),
        families=families,
        test_rows=test_rows,
        with_interval=with_interval,
        number=number,
    )
