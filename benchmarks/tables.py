"""Write the tables and pictures of docs/evidence.md from benchmarks/results: `python benchmarks/tables.py`.

A table stands between `<!-- NAME LOAD [RECALL] -->` and `<!-- end -->`, where NAME is a file of the results. With
`paired` before NAME it holds the paired differences to the reference, with `predictors` the rank correlations.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from palora.compare_report import draw_kept, families, kept_points, table, test_rows, with_interval
from palora.plots import to_png

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence.md"
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
    paired, (name, load, *recall) = what[0] == "paired", what[1:] if what[0] == "paired" else what
    milestone = recall[0] if recall else "0.95"
    rows = _paired(result(name), load, milestone) if paired else _methods(result(name), load, milestone)
    return "\n".join(rows).rstrip()


def _methods(found: Mapping[str, Any], load: str, milestone: str) -> list[str]:
    skills = list(found["references"]["expert"])
    heads = ["method", "rate", "reached", *(f"`{s}` kept" for s in skills), "known facts left", "paraphrases"]
    rows = []
    for name, row in found["table"][load][milestone].items():
        reached = "scaled" if row["scaled"] else f"{row['reached']} of {row['seeds']}"
        kept = [_short(row["retention"].get(skill, {}).get("vs_expert")) for skill in skills]
        plain = [_number(row[key]) for key in ("drift", "norm", "epoch", "seconds")]
        paraphrased = f"{row['paraphrase_recall']['mean']:.0%}" if row["paraphrase_recall"] else "–"
        known = _short(row["locality"])
        rows.append([f"`{name}`", f"{row['learning_rate']:g}", reached, *kept, known, paraphrased, *plain])
    return table([*heads, "drift", "‖ΔW‖", "epochs", "s"], rows)


def _paired(found: Mapping[str, Any], load: str, milestone: str) -> list[str]:
    rows: dict[str, list[str]] = {}
    tested = families(found["paired"][load][milestone])
    for _, tests in tested:
        for name, *rest in test_rows(tests):
            rows.setdefault(f"`{name}`", []).extend(rest[:2])
    heads = [cell for what, _ in tested for cell in (what, "p (t, Holm)")]
    return table(["method", *heads], [(name, *cells) for name, cells in rows.items()])


def _predictors(found: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, *("–" if p[key] is None else f"{p[key]:+.2f}" for key in ("spearman", "known_facts", "epochs")))
        for name, p in found["predictors"].items()
    ]
    n = max(p["n"] for p in found["predictors"].values())
    heads = [f"over {n} trainings", "with the skill kept", "with the known facts left", "with the epochs it took"]
    return table(heads, rows)


def _short(estimate: Mapping[str, Any] | None) -> str:
    """97.4% [96.0, 99.0]"""
    return re.sub(r"%(?=[,\]])", "", with_interval(estimate))


def _number(estimate: Mapping[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['mean']:.3g}"


def main() -> None:
    """Rewrite the page and its pictures."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, load in sorted(set(re.findall(r"images/kept-(\w[\w-]*)-(\d+)\.png", PAGE.read_text(encoding="utf-8")))):
        found = result(name)
        picture = draw_kept(found, load, kept_points(found, load))
        (PAGE.parent / "images" / f"kept-{name}-{load}.png").write_bytes(to_png(picture))


if __name__ == "__main__":
    main()
