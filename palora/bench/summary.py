"""What a comparison found, as numbers: the learning rate of each method, means and intervals over seeds, paired tests,
predictors. `pages/compare_report.py` shows them.

`retention` is a skill's accuracy over that of the seed's own expert (vs_expert) or of the base (vs_base), on the seed's
own test problems; without an expert both are of the base. Everything else is of one run, and a mean is over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palora.bench import significance
from palora.bench.comparison import Comparison, mark

Run = dict[str, Any]
PLAIN = (
    "recall",
    "recall_exact",
    "recall_f1",
    "paraphrase_recall",
    "locality",
    "norm",
    "relative_norm",
    "drift",
    "leak",
    "epoch",
    "seconds",
)
OF_RUN = ("peak_memory", "saved_bytes")


def choose_rates(
    c: Comparison, runs: Sequence[Run], references: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """The learning rate of each trained method, by load.

    Of the rates that pass `choose_at` with the most seeds it is the one that keeps most of the kept skills at that
    moment, on *validation* problems; of those that keep as much, the one with the highest final recall. Where no rate
    passes, it is that as well.
    """
    experts = {r["seed"]: r[c.reference_arm]["validation"] for r in references}
    at = mark(c.choose_at)

    def merit(group: Sequence[Run]) -> tuple[float, ...]:
        kept = [
            _ratio(accuracy, experts[run["seed"]][skill]) or 0.0
            for run in group
            if at in run["moments"]
            for skill, accuracy in run["moments"][at]["validation"].items()
        ]
        recalls = [run["final"]["recall"] if run["final"] else 0.0 for run in group]
        passed = sum(at in run["moments"] for run in group)
        return passed, _mean(kept), _mean(recalls)

    return {
        str(load): {
            name: max(
                method.learning_rates,
                key=lambda rate: merit(
                    [r for r in runs if (r["method"], r["load"], r["learning_rate"]) == (name, load, rate)]
                ),
            )
            for name, method in c.methods.items()
            if method.learning_rates
        }
        for load in c.loads
    }


def summarise(
    c: Comparison,
    runs: Sequence[Run],
    references: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The content of `compare.json` but for the settings: every run, the chosen rates, the tables and the tests."""
    measured = [arm for arm in ("base", "expert") if references[0][arm]]
    references = [{**r, "expert": r[c.reference_arm]} for r in references]  # without one the base stands in its place
    by_seed = {r["seed"]: r for r in references}
    skill = next(iter(references[0]["expert"]["validation"]))
    runs = [_with_retention(run, by_seed[run["seed"]]) for run in runs]
    for run in runs:
        rate = chosen[str(run["load"])].get(run["method"])
        run["chosen"] = rate is None or run["learning_rate"] == rate  # a scaled adapter has no rate of its own
    best = [run for run in runs if run["chosen"]]
    table: dict[str, Any] = {}
    paired: dict[str, Any] = {}
    for load in c.loads:
        of_load = {name: [r for r in best if (r["method"], r["load"]) == (name, load)] for name in c.methods}
        for milestone in map(mark, c.milestones):
            rows = {name: _row(group, milestone) for name, group in of_load.items()}
            table.setdefault(str(load), {})[milestone] = rows
            matched = {name: group for name, group in of_load.items() if not c.methods[name].scaled}
            paired.setdefault(str(load), {})[milestone] = {
                "skill": skill,
                "against": c.reference,
                "tests": paired_tests(matched, c.reference, milestone, kept_of(skill)),
                "known_facts": paired_tests(matched, c.reference, milestone, lambda moment: moment["locality"]),
            }
    arms: dict[str, Any] = {
        arm: {skill: _estimate([r[arm]["skills"][skill] for r in references]) for skill in references[0][arm]["skills"]}
        for arm in measured
    }
    return {
        "chosen": chosen,
        "references": {
            **arms,
            "words": _means([r["expert"].get("words", {}) for r in references]),
            "locality": _estimate([r["expert"]["locality"] for r in references]),
        },
        "table": table,
        "paired": paired,
        "predictors": predictors(runs, mark(c.choose_at), skill),
        "runs": runs,
    }


def predictors(runs: Sequence[Run], milestone: str, skill: str) -> dict[str, Any]:
    """How well one number tells what a method keeps and costs, over all trainings that passed a milestone (every rate
    and seed): Spearman's rank correlation with the retention of the skill (`spearman`), with the known facts that are
    left (`known_facts`) and with the epochs that the milestone took (`epochs`). Runs of one method resemble each other:
    this tests nothing."""
    passed = [r for r in runs if milestone in r["moments"] and r.get("kind") != "scaled"]
    at = [r["moments"][milestone] for r in passed]
    told: dict[str, list[float | None]] = {
        "spearman": [m["retention"][skill]["vs_expert"] for m in at],
        "known_facts": [m["locality"] for m in at],
        "epochs": [m["epoch"] for m in at],
    }
    tell: dict[str, list[float | None]] = {
        "drift": [m["drift"] for m in at],
        "norm": [m["norm"] for m in at],
        "coverage of the skill": [r["coverage"]["skill"] for r in passed],
        "coverage of the skill minus the facts'": [
            _minus(r["coverage"]["skill"], r["coverage"]["facts"]) for r in passed
        ],
    }

    def correlation(xs: Sequence[float | None], ys: Sequence[float | None]) -> float | None:
        pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
        return significance.rank_correlation([x for x, _ in pairs], [y for _, y in pairs])

    return {
        name: {**{of: correlation(xs, ys) for of, ys in told.items()}, "n": sum(x is not None for x in xs)}
        for name, xs in tell.items()
    }


def _with_retention(run: Run, reference: Mapping[str, Any]) -> Run:
    def added(moment: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if moment is None:
            return None
        retention = {
            skill: {f"vs_{arm}": _ratio(accuracy, reference[arm]["skills"][skill]) for arm in ("expert", "base")}
            for skill, accuracy in moment["skills"].items()
        }
        return {**moment, "retention": retention}

    return {**run, "moments": {m: added(v) for m, v in run["moments"].items()}, "final": added(run["final"])}


def _row(group: Sequence[Run], milestone: str) -> dict[str, Any]:
    """A method at a milestone: how many seeds reached it, and the mean of everything over those that did."""
    reached = [run for run in group if milestone in run["moments"]]
    at = [run["moments"][milestone] for run in reached]
    row: dict[str, Any] = {
        "learning_rate": group[0]["learning_rate"] if group else None,
        "reached": len(reached),
        "scaled": any(run.get("kind") == "scaled" for run in group),
        "seeds": len(group),
        "final_recall": _estimate([run["final"]["recall"] for run in group if run["final"]]),
        **{key: _estimate([moment.get(key) for moment in at]) for key in PLAIN},
        "words": _means([moment.get("words", {}) for moment in at]),
        "kl": _means([moment.get("kl", {}) for moment in at]),
        **{key: _estimate([run.get(key) for run in reached]) for key in OF_RUN},
    }
    skills = at[0]["retention"] if at else {}
    row["retention"] = {
        skill: {key: _estimate([m["retention"][skill][key] for m in at]) for key in ("vs_expert", "vs_base")}
        for skill in skills
    }
    return row


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean of every entry, over the moments that have it."""
    keys = dict.fromkeys(key for values in found for key in values)
    return {key: _estimate([values[key] for values in found if key in values]) for key in keys}


def kept_of(skill: str) -> Callable[[Mapping[str, Any]], float | None]:
    """How much of a skill a moment keeps of the expert's."""
    return lambda moment: moment["retention"][skill]["vs_expert"]


def paired_tests(
    of_load: Mapping[str, Sequence[Run]],
    against: str,
    milestone: str,
    value: Callable[[Mapping[str, Any]], float | None],
) -> dict[str, Any]:
    """Each method's `value` at a milestone minus the reference's, over the seeds where both passed it."""

    def kept(name: str) -> dict[int, float]:
        at = {r["seed"]: r["moments"][milestone] for r in of_load[name] if milestone in r["moments"]}
        values = {seed: value(moment) for seed, moment in at.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    reference, tests = kept(against), {}
    for name in of_load:
        own = kept(name)
        differences = [own[seed] - reference[seed] for seed in own if seed in reference]
        if name == against or not differences:
            continue
        tests[name] = {
            "difference": _estimate(differences),
            "p_t": significance.paired_t(differences),
            "p_sign_flip": significance.sign_flip(differences),
            "smallest_p_sign_flip": 2 / 2 ** len(differences),
        }
    for key in ("p_t", "p_sign_flip"):
        known = [name for name, test in tests.items() if test[key] is not None]
        for name, p in zip(known, significance.holm([tests[name][key] for name in known]), strict=True):
            tests[name][f"{key}_holm"] = p
    return tests


def _estimate(values: Sequence[float | None]) -> dict[str, Any] | None:
    found = significance.estimate([float(v) for v in values if v is not None])
    if found is None:
        return None
    return {"mean": found.mean, "ci95": list(found.ci95) if found.ci95 else None, "n": found.n}


def _ratio(value: float, whole: float) -> float | None:
    return value / whole if whole else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
