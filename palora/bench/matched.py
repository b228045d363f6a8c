"""Methods at the very same recall, and what that says of them.

A training is measured when its recall first passes a milestone: that may be far beyond it. Between the moment before a
milestone (recall r₀, value v₀) and the one that passed it (r₁, v₁) a straight line is taken, and read at the milestone
m: v₀ + (v₁ − v₀) (m − r₀) / (r₁ − r₀). Where no moment lies before it, the one that passed it stands as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palora.bench import significance
from palora.bench.comparison import mark
from palora.common.wording import enumeration, percent
from palora.results.plots.style import arm_styles
from palora.results.plots.tradeoff import Point

Moment = Mapping[str, Any]


def at_recall(run: Mapping[str, Any], milestone: float, value: Callable[[Moment], float | None]) -> float | None:
    """A run's `value` at exactly the recall `milestone`; None where it did not get there."""
    passed = run["moments"].get(mark(milestone))
    own = None if passed is None else value(passed)
    if passed is None or own is None:
        return None
    earlier = [m for m in run["moments"].values() if m["recall"] < milestone and value(m) is not None]
    if not earlier:
        return own
    before = max(earlier, key=lambda moment: moment["recall"])
    start = float(value(before) or 0.0)
    return start + (own - start) * (milestone - before["recall"]) / (passed["recall"] - before["recall"])


def late(result: Mapping[str, Any], load: str) -> list[float]:
    """The recalls of runs that were not measured before they passed the choosing milestone: these are not matched."""
    at = result["comparison"]["choose_at"]
    runs = [run["moments"] for run in _chosen(result, load) if mark(at) in run["moments"]]
    unmatched = [moments for moments in runs if all(moment["recall"] >= at for moment in moments.values())]
    return [recall for moments in unmatched if (recall := moments[mark(at)]["recall"]) > at]


def kept_points(result: Mapping[str, Any], load: str) -> list[Point]:
    """For every method that has learned the facts, at the very same recall: known facts still right (x), the skill kept
    (y), means over the seeds that got there with their t-intervals."""
    at, skill = result["comparison"]["choose_at"], kept_skill(result)
    points = []
    for method in result["comparison"]["methods"]:
        runs = [run for run in _chosen(result, load) if run["method"] == method]
        x = _mean([at_recall(run, at, lambda moment: moment["locality"]) for run in runs])
        y = _mean([at_recall(run, at, lambda moment: moment["retention"][skill]["vs_expert"]) for run in runs])
        if x and y:
            points.append(Point(method, x.mean, y.mean, share(x.ci95), y.ci95))
    return points


def _chosen(result: Mapping[str, Any], load: str) -> list[Mapping[str, Any]]:
    """The trainings of a load, each method's at its chosen rate."""
    return [r for r in result["runs"] if r["chosen"] and str(r["load"]) == load and r.get("kind") != "scaled"]


def _mean(values: Sequence[float | None]) -> significance.Estimate | None:
    return significance.estimate([value for value in values if value is not None])


def share(interval: Sequence[float] | None) -> tuple[float, float] | None:
    """A t-interval of a share, cut at 0 and 100%: no share lies beyond."""
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def kept_skill(result: Mapping[str, Any]) -> str:
    """The skill that the tests and the pictures are of: the same at every load and milestone."""
    milestones = next(iter(result["paired"].values()))
    return str(next(iter(milestones.values()))["skill"])


def front(points: Sequence[Point]) -> list[str]:
    """The methods on the Pareto front: no other keeps at least as much of both things and more of one, by the means."""

    def beaten(own: Point) -> bool:
        mine = (own.recall, own.kept)
        others = [(p.recall, p.kept) for p in points if p is not own]
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others)

    return [point.arm for point in points if not beaten(point)]


# --- in sentences ---------------------------------------------------------------------------------


def headline(result: Mapping[str, Any], load: str, points: Sequence[Point]) -> str:
    """What palora and the reference kept, or where one of them is not there what the methods on the front did."""
    c, skill = result["comparison"], kept_skill(result)
    if not points:
        return f"No method learned {percent(c['choose_at'])} of {load} facts."
    by_arm = {point.arm: point for point in points}
    told = [arm for arm in dict.fromkeys(("palora", c["reference"])) if arm in by_arm]
    told = told if len(told) == 2 else front(points)[:3]
    clauses: list[str] = []
    for arm in told:
        of = ("", "") if clauses else (f" of {skill}", " of the known facts")
        kept, known = percent(by_arm[arm].kept, 1), percent(by_arm[arm].recall, 1)
        clauses.append(f"{_label(result, arm)} keeps {kept}{of[0]} and {known}{of[1]}")
    return f"With {percent(c['choose_at'])} of {load} facts learned, {'; '.join(clauses)}."


def findings(result: Mapping[str, Any], load: str, points: Sequence[Point]) -> list[str]:
    """What else the page says first: the differences that were tested, the front, who did not get there."""
    c = result["comparison"]
    at, subject = mark(c["choose_at"]), "palora" if "palora" in c["methods"] else None
    found = []
    paired = result["paired"][load][at]
    for what, key in ((f"of {paired['skill']}", "tests"), ("of the known facts", "known_facts")):
        test = (paired.get(key) or {}).get(subject or "")
        if test and test["difference"]["ci95"] and test.get("p_t_holm") is not None:
            difference, low, high = (100 * v for v in (test["difference"]["mean"], *test["difference"]["ci95"]))
            chance = "" if test["p_t_holm"] < 0.05 else ": it may be chance"
            p = f"p = {test['p_t_holm']:.2g} after Holm"
            more = f"{abs(difference):.1f} points {'more' if difference > 0 else 'less'}"
            found.append(
                f"Against {_label(result, c['reference'])}, over the same seeds, palora keeps {more} {what} "
                f"(95% interval {low:+.1f} to {high:+.1f}, {p}){chance}."
            )
    if len(points) > 1:
        best = enumeration(_label(result, arm) for arm in front(points))
        found.append(f"No other method keeps as much of both as {best}.")
    rows = result["table"][load][at]
    short = [
        f"{_label(result, m)} ({r['reached']} of {r['seeds']})" for m, r in rows.items() if r["reached"] < r["seeds"]
    ]
    if short:
        found.append(f"Some seeds never learned {percent(c['choose_at'])}, and are left out: {enumeration(short)}.")
    if past := late(result, load):
        runs = f"{len(past)} runs were" if len(past) > 1 else "One run was"
        found.append(
            f"{runs} past {percent(c['choose_at'])} when first measured, with up to {percent(max(past), 1)} learned."
        )
    return found


def _label(result: Mapping[str, Any], method: str) -> str:
    return arm_styles(result["comparison"]["methods"])[method].label
