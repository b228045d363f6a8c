"""Write the tables and pictures of docs/evidence.md from benchmarks/results: `python benchmarks/tables.py`.

A table stands between `<!-- NAME LOAD [METHOD,…] -->` and `<!-- end -->`, where NAME is a file of the results: the
methods (all, or those named) when recall first passes the milestone that rates are chosen at, 95% unless the comparison
says otherwise. With `paired` before NAME it holds the paired differences to the reference, with `predictors` the rank
correlations; `minus METHOD NAME:LOAD… METHOD,…` is the methods minus one of them, at several loads.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from palora.bench.compare_report import draw_kept, families, markdown_table, test_rows, with_interval
from palora.bench.comparison import mark
from palora.bench.matched import kept_points
from palora.bench.summary import kept_of, paired_tests
from palora.results.plots.figure import to_png

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence.md"
PICTURE = re.compile(r"images/kept-(\w[\w-]*)-(\d+)\.png")
MARKED = re.compile(r"<!-- (?!end)(?P<what>[^>]+?) -->\n.*?<!-- end -->", re.S)


@cache
def result(name: str) -> Any:
    """The content of `compare.json` of a comparison."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def written(page: str) -> str:
    """The page with every table as the results have it."""
    return MARKED.sub(lambda m: f"<!-- {m['what']} -->\n{_table_of(*m['what'].split())}\n<!-- end -->", page)


def _table_of(*what: str) -> str:
    if what[0] == "predictors":
        return "\n".join(_predictors(result(what[1]))).rstrip()
    if what[0] == "minus":
        return "\n".join(_minus(what[1], what[2:-1], what[-1].split(","))).rstrip()
    paired, (name, load, *methods) = what[0] == "paired", what[1:] if what[0] == "paired" else what
    only = methods[0].split(",") if methods else None
    rows = _paired(result(name), load) if paired else _methods(result(name), load, only)
    return "\n".join(rows).rstrip()


def _methods(found: Mapping[str, Any], load: str, only: Sequence[str] | None) -> list[str]:
    skills = list(found["references"]["expert"])
    heads = ["method", "rate", "reached", *(f"`{s}` kept" for s in skills), "known facts left", "paraphrases"]
    rows = []
    methods = found["table"][load][_at(found)]
    for name, row in methods.items() if only is None else [(name, methods[name]) for name in only]:
        reached = "scaled" if row["scaled"] else f"{row['reached']} of {row['seeds']}"
        kept = [_short(row["retention"].get(skill, {}).get("vs_expert")) for skill in skills]
        plain = [_number(row[key]) for key in ("drift", "norm", "epoch", "seconds")]
        paraphrased = f"{row['paraphrase_recall']['mean']:.0%}" if row["paraphrase_recall"] else "–"
        known = _short(row["locality"])
        rows.append([f"`{name}`", f"{row['learning_rate']:g}", reached, *kept, known, paraphrased, *plain])
    return markdown_table([*heads, "drift", "‖ΔW‖", "epochs", "s"], rows)


def _at(found: Mapping[str, Any]) -> str:
    return mark(found["comparison"]["choose_at"])


def _paired(found: Mapping[str, Any], load: str) -> list[str]:
    tested = families(found["paired"][load][_at(found)])
    columns = [{name: (difference, p) for name, difference, p, _ in test_rows(tests)} for _, tests in tested]
    names = dict.fromkeys(name for column in columns for name in column)
    heads = [cell for what, _ in tested for cell in (what, "p (t, Holm)")]
    rows = [(f"`{name}`", *(cell for column in columns for cell in column.get(name, ("–", "–")))) for name in names]
    return markdown_table(["method", *heads], rows)


def _minus(against: str, places: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Methods minus one, paired by seed at the milestone, with the p of the t-test (not corrected)."""
    heads, rows = [], []
    for name, load in (place.split(":") for place in places):
        found = result(name)
        at, skill = _at(found), found["paired"][load][_at(found)]["skill"]
        told: dict[str, tuple[str, Callable[[Any], float | None]]] = {
            f"`{skill}` kept": ("+.1%", kept_of(skill)),
            "known facts left": ("+.1%", lambda moment: moment["locality"]),
            "epochs": ("+.1f", lambda moment: moment["epoch"]),
        }
        heads = ["new facts", f"minus `{against}`", *told, "seeds"]
        best = [run for run in found["runs"] if run["chosen"] and str(run["load"]) == load]
        of = {method: [run for run in best if run["method"] == method] for method in (against, *methods)}
        tests = [(form, paired_tests(of, against, at, value)) for form, value in told.values()]
        for method in methods:
            cells = [_difference(test.get(method), form) for form, test in tests]
            seeds = max((test[method]["difference"]["n"] for _, test in tests if method in test), default=0)
            rows.append([f"{int(load):,}", f"`{method}`", *cells, str(seeds)])
    return markdown_table(heads, rows)


def _difference(test: Mapping[str, Any] | None, form: str) -> str:
    """-3.3% [-4.5, -2.0] (p = 0.002)"""
    if test is None:
        return "–"
    said = _short(test["difference"], form)
    return said if test["p_t"] is None else f"{said} (p = {test['p_t']:.2g})"


def _predictors(found: Mapping[str, Any]) -> list[str]:
    told = {"spearman": "the skill kept", "known_facts": "the known facts left", "epochs": "the epochs it took"}
    rows = [
        (name, *("–" if p[key] is None else f"{p[key]:+.2f}" for key in told), str(p["n"]))
        for name, p in found["predictors"].items()
    ]
    return markdown_table(["rank correlation of", *(f"with {what}" for what in told.values()), "trainings"], rows)


def _short(estimate: Mapping[str, Any] | None, form: str = ".1%") -> str:
    """97.4% [96.0, 99.0]"""
    return re.sub(r"%(?=[,\]])", "", with_interval(estimate, form))


def _number(estimate: Mapping[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['mean']:.3g}"


def main() -> None:
    """Rewrite the page and its pictures."""
    page = written(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    for name, load in sorted(set(PICTURE.findall(page))):
        found = result(name)
        picture = draw_kept(found, load, kept_points(found, load))
        (PAGE.parent / "images" / f"kept-{name}-{load}.png").write_bytes(to_png(picture))


if __name__ == "__main__":
    main()
