"""`palora compare` on the tiny model: resume, done cells, the choice of rates, milestones, the pages."""

import json
import logging
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import palora
from conftest import rising
from pydantic import ValidationError

from palora.algebra.statistics import InputStatistics, KeptInputs, Statistics
from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.bench import cells, compare, prepared, tradeoff_plots
from palora.bench.cells import run_training
from palora.bench.compare_report import render, write_pages
from palora.bench.comparison import Comparison, load_comparison
from palora.bench.keys import Cell, shared_inputs, training_key
from palora.bench.matched import at_recall, findings, front, headline, kept_points, late
from palora.bench.prepared import shuffle_scales
from palora.bench.summary import choose_rates, summarise
from palora.common.errors import DivergedError, InputError
from palora.common.files import load_tensors, read_json
from palora.common.settings import KeepAllSettings, ProtectSettings
from palora.data.facts import Lesson, write_facts
from palora.front.recipe import merged
from palora.language import keep
from palora.results.plots.style import arm_styles
from palora.results.plots.tradeoff import Point
from palora.testbed.world import known_facts, new_facts
from palora.training.protection import check_protection
from palora.training.svf import Expert


@pytest.fixture(scope="module", autouse=True)
def _the_last_expert_is_the_best():
    """The tiny model solves nothing, before and after: by its validation no expert would move anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palora.training.expert.share_correct", rising())
        yield


@pytest.fixture(scope="module")
def values(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_facts(folder / "new.jsonl", new_facts(6))
    write_facts(folder / "known.jsonl", known_facts()[:4])
    expert = {"objective": "next_token", "iterations": 1, "batch_size": 4, "validation_size": 2, "train_size": 8}
    expert |= {"learning_rate": 0.05}
    rule = {"keep": {"examples": 8}}
    return {
        "model": str(model_folder),
        "skills": ["chain", "minmax"],
        "keep_skills": ["chain"],
        "facts": str(folder / "new.jsonl"),
        "known_facts": str(folder / "known.jsonl"),
        "loads": [4],
        "seeds": [0, 1],
        "milestones": [0.25, 0.5, 1.0],
        "choose_at": 0.5,
        "validation": 2,
        "expert": expert,
        "inject": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "epochs": 40, "batch_size": 4, "recall_every": 2},
        "evaluate": {"problems": 2, "max_answer_tokens": 12},
        "methods": {
            "lora": {"learning_rates": [0.03]},
            "shuffled": {"learning_rates": [0.03], "protect": {"rule": "svf", "k": 4, **rule}, "shuffle": True},
            "soft": {"learning_rates": [0.03], "protect": {"rule": "covariance", "strength": 3, **rule}},
            "scaled": {"scaled": {"of": "lora", "to": "soft"}},
        },
    }


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    result = compare.compare(Comparison.model_validate(values), out)
    shutil.copy(out / "comparison.yaml", out.with_name("first.yaml"))  # other tests compare in the same folder
    return out, result


def test_every_method_is_measured_at_every_milestone(finished, values):
    _, result = finished
    assert {(r["method"], r["seed"]) for r in result["runs"]} == {(m, s) for m in values["methods"] for s in (0, 1)}
    for run in result["runs"]:
        if run["kind"] != "training":
            continue
        assert run["failed"] is None and run["saved_bytes"] > 0 and run["peak_memory"] > 2**20
        assert run["machine"] == result["machine"] and result["machine"]
        recall_at, first = dict(run["curve"]), {}
        for epoch, recall in run["curve"]:
            first |= {m: epoch for m in ("0.25", "0.5", "1") if recall >= float(m) and m not in first}
        assert {m: moment["epoch"] for m, moment in run["moments"].items()} == first, "the first passing, no other"
        assert list(run["moments"]) == ["0.25", "0.5", "1"], "the tiny model learns four facts"
        assert all(moment["recall"] == recall_at[moment["epoch"]] for moment in run["moments"].values())
        assert run["curve"][-1][0] == run["moments"]["1"]["epoch"] < 40, "it stopped at the last milestone"
        assert run["final"] == run["moments"]["1"]
        moment = run["final"]
        assert set(moment["skills"]) == {"chain", "minmax"} and set(moment["validation"]) == {"chain"}
        assert (moment["leak"] is not None) == (run["method"] == "shuffled")
        assert moment["drift"] > 0 and moment["locality"] is not None and moment["paraphrase_recall"] is not None
    by = {(r["method"], r["seed"]): r for r in result["runs"]}
    assert by["shuffled", 0]["final"]["leak"] < 1e-5
    assert by["soft", 0]["final"]["drift"] < by["lora", 0]["final"]["drift"]
    assert by["soft", 0]["coverage"]["skill"] > by["lora", 0]["coverage"]["skill"] == 0


def test_a_scaled_adapter_has_the_norm_it_was_scaled_to(finished):
    _, result = finished
    by = {(r["method"], r["seed"]): r["moments"] for r in result["runs"]}
    for m in ("0.25", "0.5", "1"):
        soft, scaled, lora = (by[name, 1][m] for name in ("soft", "scaled", "lora"))
        assert scaled["norm"] == pytest.approx(soft["norm"], rel=1e-5)
        assert scaled["drift"] == pytest.approx(lora["drift"] * scaled["factor"], rel=1e-3)


def test_done_cells_are_not_done_again_and_changed_ones_are(finished, values, monkeypatch):
    out, result = finished
    ran = []
    monkeypatch.setattr(compare.Workers, "run", lambda self, jobs: ran.extend(job.label for job in jobs))
    again = compare.compare(Comparison.model_validate(values), out)
    assert not ran and again == json.loads(json.dumps(result))

    c = Comparison.model_validate(values)
    shared = shared_inputs(c)
    key = training_key(c, shared, Cell("soft", 4, 0.03, 0))
    changes = {
        "strength": {"methods": {**values["methods"], "soft": {"learning_rates": [0.03], "protect": {"strength": 4}}}},
        "batch": {"inject": {**values["inject"], "batch_size": 2}},
        "expert": {"expert": {**values["expert"], "iterations": 2}},
        "milestones": {"milestones": [0.5, 1.0]},
        "facts": {"facts": values["known_facts"]},
    }
    for what, change in changes.items():
        other = Comparison.model_validate(values | change)
        assert training_key(other, shared_inputs(other), Cell("soft", 4, 0.03, 0)) != key, what
    renamed = Comparison.model_validate(values | {"methods": {**values["methods"], "new": values["methods"]["soft"]}})
    assert training_key(renamed, shared_inputs(renamed), Cell("new", 4, 0.03, 0)) == key, "a name is no input"
    assert len({training_key(c, shared, cell) for cell in compare.plan(c)}) == len(compare.plan(c)) == 6
    bare = {"learning_rates": [0.03], "protect": {"rule": "covariance"}}
    other = Comparison.model_validate(values | {"methods": {**values["methods"], "soft": bare}})
    before = training_key(other, shared_inputs(other), Cell("soft", 4, 0.03, 0))
    monkeypatch.setattr("palora.algebra.rules.DEFAULT_STRENGTH", 2.0)
    assert training_key(other, shared_inputs(other), Cell("soft", 4, 0.03, 0)) != before, "a default that has changed"


def test_a_method_changes_one_weight_of_what_all_keep(values):
    shared = values["inject"] | {"keep": {"known_facts": 0, "examples": 64}}
    methods = values["methods"] | {"lora": {"learning_rates": [0.03], "inject": {"keep": {"prompts": 0}}}}
    keep = Comparison.model_validate(values | {"inject": shared, "methods": methods}).training("lora", 0.03).keep
    assert (keep.skills, keep.known_facts, keep.prompts, keep.text, keep.examples) == (1, 0, 0, 1, 64)


def test_a_skill_whose_files_have_changed_is_another_skill(values, tmp_path):
    (tmp_path / "test.jsonl").write_text("{}")
    c = Comparison.model_validate(values | {"skills": ["chain", f"gsm8k:{tmp_path}"]})
    before = shared_inputs(c)
    (tmp_path / "test.jsonl").write_text("{ }")
    assert shared_inputs(c) != before


def test_a_training_that_is_scaled_now_is_done_when_its_adapters_are_there(finished, values, tmp_path):
    """Whether another method scales it changes nothing in its numbers, so nothing in its key."""
    out, _ = finished
    c = Comparison.model_validate(values)
    alone = Comparison.model_validate(values | {"methods": {"lora": values["methods"]["lora"]}})
    cell = Cell("lora", 4, 0.03, 0)
    key = training_key(c, shared_inputs(c), cell)
    assert key == training_key(alone, shared_inputs(alone), cell)
    assert cells.is_done(c, out, cell, key) and cells.is_done(alone, out, cell, key)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{key}.json").write_text('{"moments": {"0.25": {}, "0.5": {}}}')
    (tmp_path / "adapters" / key / "0.25").mkdir(parents=True)
    assert cells.is_done(alone, tmp_path, cell, key) and not cells.is_done(c, tmp_path, cell, key)
    (tmp_path / "adapters" / key / "0.5").mkdir()
    assert cells.is_done(c, tmp_path, cell, key)


def test_interrupted_in_a_training_it_ends_with_the_same_numbers(finished, values, monkeypatch, tmp_path):
    """Stopped right after the first milestone was measured: what was measured is kept, and not measured again."""
    whole, _ = finished
    (tmp_path / "out").mkdir()
    for name in ("experts", "protections", "statistics"):
        (tmp_path / "out" / name).symlink_to(whole / name)
    c, cell = Comparison.model_validate(values), Cell("soft", 4, 0.03, 0)
    key = training_key(c, shared_inputs(c), cell)
    write, asked = cells.write_json, []
    ask = cells.Bench.ask

    def stop(path, value):
        write(path, value)
        if path.name == "moments.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cells, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(c, tmp_path / "out", key, cell)
    assert not (tmp_path / "out" / "cells").exists(), "an unfinished cell is not there"
    monkeypatch.setattr(cells.Bench, "ask", lambda self, model: asked.append(1) or ask(self, model))
    run_training(c, tmp_path / "out", key, cell)
    first, again = (read_json(out / "cells" / f"{key}.json") for out in (whole, tmp_path / "out"))
    timeless = [
        {m: {k: v for k, v in moment.items() if k != "seconds"} for m, moment in found["moments"].items()}
        for found in (first, again)
    ]
    assert timeless[0] == timeless[1] and again["curve"] == first["curve"] and again["resumed"]
    assert len(asked) == len({m["epoch"] for m in first["moments"].values()}) - 1
    assert not (tmp_path / "out" / "work" / key).exists()


def test_a_rate_that_diverges_is_a_result(finished, values):
    out, _ = finished
    c = Comparison.model_validate(values | {"methods": {"lora": {"learning_rates": [1e30]}}, "seeds": [0]})
    result = compare.compare(c, out)
    [run] = result["runs"]
    assert "no longer a number" in run["failed"] and run["moments"] == {}
    assert "0 of 1" in (out / "compare.md").read_text()


def test_several_workers_say_the_same(finished, values, tmp_path, caplog):
    out, result = finished
    (tmp_path / "out").mkdir()
    for name in ("experts", "protections", "comparison.yaml"):
        (tmp_path / "out" / name).symlink_to(out / name)
    two = {"methods": {name: values["methods"][name] for name in ("lora", "soft")}, "seeds": [0]}
    with caplog.at_level(logging.INFO, logger="palora"):
        again = compare.compare(Comparison.model_validate(values | two), tmp_path / "out", workers=2)
    assert "[3/3] " in caplog.text and len(again["runs"]) == 2
    for run in again["runs"]:
        [before] = [r for r in result["runs"] if (r["method"], r["seed"]) == (run["method"], 0)]
        for m, moment in run["moments"].items():
            same = {k: v for k, v in moment.items() if k != "seconds"}
            assert same == {k: v for k, v in before["moments"][m].items() if k != "seconds"}


def synthetic(kept, validation, reached=(0, 1, 2), method="lora", rate=1.0, drift=0.1):
    """Runs of three seeds with the given accuracies on test and validation problems, at the one milestone 0.5."""
    moment = {
        "recall": 0.5,
        "paraphrase_recall": None,
        "locality": 0.5,
        "norm": 1.0,
        "relative_norm": 0.1,
        "leak": None,
    }
    moment |= {"drift": drift, "epoch": 2, "seconds": 1.0}
    runs = []
    for seed in range(3):
        at = {**moment, "skills": {"chain": kept[seed]}, "validation": {"chain": validation[seed]}}
        moments = {"0.5": at} if seed in reached else {}
        runs.append({"method": method, "load": 4, "learning_rate": rate, "seed": seed, "moments": moments, "final": at})
        runs[-1] |= {"coverage": {"skill": 0.0, "facts": 0.0}}
    return runs


REFERENCES = [
    {
        "seed": s,
        **{a: {"skills": {"chain": 0.8}, "validation": {"chain": 0.8}, "locality": 1.0} for a in ("base", "expert")},
    }
    for s in range(3)
]


def small(values, **methods):
    return Comparison.model_validate(values | {"milestones": [0.5], "seeds": [0, 1, 2], "methods": methods})


def test_rates_are_chosen_on_validation_problems_among_those_that_reach_the_milestone(values):
    c = small(values, lora={"learning_rates": [1.0, 2.0, 3.0]})
    runs = [
        *synthetic([0.2] * 3, [0.4] * 3, rate=1.0),  # best on validation of those that reach it with every seed
        *synthetic([0.8] * 3, [0.3] * 3, rate=2.0),  # best on test: must not count
        *synthetic([0.8] * 3, [0.8] * 3, rate=3.0, reached=(0, 1)),  # keeps most, but one seed never gets there
    ]
    assert choose_rates(c, runs, REFERENCES) == {"4": {"lora": 1.0}}


def test_retention_and_paired_differences_by_hand(values):
    """lora keeps 0.4, 0.2, 0.6 of 0.8; soft 0.6, 0.6, 0.8: differences in retention 0.25, 0.5, 0.25."""
    c = small(values, lora={"learning_rates": [1.0]}, soft={"learning_rates": [1.0]}, none={"learning_rates": [1.0]})
    runs = [
        *synthetic([0.4, 0.2, 0.6], [0.4] * 3, drift=0.3),
        *synthetic([0.6, 0.6, 0.8], [0.4] * 3, method="soft"),
        *synthetic([0.4, 0.2, 0.6], [0.4] * 3, method="none", drift=0.2),
    ]
    result = summarise(c, runs, REFERENCES, choose_rates(c, runs, REFERENCES))
    row = result["table"]["4"]["0.5"]["soft"]
    assert row["retention"]["chain"]["vs_expert"]["mean"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    assert (row["reached"], row["seeds"]) == (3, 3)
    tests = result["paired"]["4"]["0.5"]["tests"]
    assert set(tests) == {"soft", "none"}, "each method against the reference, which is not tested against itself"
    assert tests["soft"]["difference"]["mean"] == pytest.approx(1 / 3)
    assert tests["soft"]["p_t"] == pytest.approx(0.057191, abs=1e-4)  # t = (1/3) / (0.144338 / √3) = 4, df 2
    assert tests["soft"]["p_t_holm"] == pytest.approx(2 * tests["soft"]["p_t"])
    assert tests["soft"]["p_sign_flip"] == tests["soft"]["smallest_p_sign_flip"] == 2 / 8
    assert tests["none"]["p_t"] == tests["none"]["p_t_holm"] == 1
    for run, known in zip(runs, [0.1, 0.2, 0.3, 0.3, 0.5, 0.4, 0.1, 0.2, 0.3], strict=True):
        run["moments"]["0.5"]["locality"] = known  # soft's are 0.2, 0.3 and 0.1 more
    known = summarise(c, runs, REFERENCES, choose_rates(c, runs, REFERENCES))["paired"]["4"]["0.5"]["known_facts"]
    assert known["soft"]["difference"]["mean"] == pytest.approx(0.2)
    assert known["soft"]["p_t_holm"] == pytest.approx(2 * 0.074180, abs=1e-4)  # t = 0.2 / (0.1 / √3), df 2
    assert known["none"]["p_t"] == 1
    told = result["predictors"]["drift"]
    assert told["spearman"] < 0 and told["n"] == 9 and told["known_facts"] is None, "which does not vary here"


def test_only_the_chosen_rate_is_run_on_seeds_that_are_not_swept(values, tmp_path, monkeypatch):
    """The rates are tried on seed 0; the other seeds get the one that kept more there."""
    kept = {0.01: 0.5, 0.02: 1.0}
    ran = []

    def run(self, jobs):
        for job in jobs:
            if job.work is cells.run_training:
                _, out, key, cell = job.arguments
                ran.append((cell.learning_rate, cell.seed))
                [found, *_] = synthetic(
                    [kept[cell.learning_rate]] * 3, [kept[cell.learning_rate]] * 3, rate=cell.learning_rate
                )
                found |= {"seed": cell.seed, "machine": "one core"}
                cells.write_json(out / "cells" / f"{key}.json", {**found, "kind": "training"})
            elif job.work is cells.run_reference:
                _, out, key, seed = job.arguments
                cells.write_json(out / "cells" / f"{key}.json", {**REFERENCES[seed], "machine": "one core"})

    monkeypatch.setattr(compare.Workers, "run", run)
    monkeypatch.setattr(compare, "write_pages", lambda result, out: None)
    c = small(values, lora={"learning_rates": [0.01, 0.02]}).model_copy(update={"sweep_seeds": [0], "choose_at": 0.5})
    result = compare.compare(c, tmp_path / "out")
    assert ran == [(0.01, 0), (0.02, 0), (0.02, 1), (0.02, 2)]
    assert result["chosen"] == {"4": {"lora": 0.02}} and result["table"]["4"]["0.5"]["lora"]["seeds"] == 3
    assert result["machine"] == "one core"


def test_the_front_is_what_nothing_beats():
    points = [
        Point("a", 0.5, 1.0),
        Point("b", 0.9, 0.9),
        Point("c", 0.9, 0.8),
        Point("d", 0.4, 1.0),
        Point("e", 0.5, 1.0),
    ]
    assert front(points) == ["a", "b", "e"]


def test_methods_are_read_at_the_very_same_recall():
    """From (92%, 0.8) to (97%, 0.6) the straight line is at 0.68 where it crosses 95%."""
    run = {"moments": {"0.9": {"recall": 0.92, "kept": 0.8}, "0.95": {"recall": 0.97, "kept": 0.6}}}
    assert at_recall(run, 0.95, lambda moment: moment["kept"]) == pytest.approx(0.68)
    assert at_recall(run, 0.99, lambda moment: moment["kept"]) is None, "it never got there"
    run["moments"]["0.9"]["recall"] = 0.97  # both passed at once
    assert at_recall(run, 0.95, lambda moment: moment["kept"]) == 0.6
    run["moments"]["0.9"] = {"recall": 0.92, "kept": None}
    assert at_recall(run, 0.95, lambda moment: moment["kept"]) == 0.6


def compared(values):
    """A result by hand: palora keeps 0.6 of 0.8 and lora 0.4 of it, in one seed less."""
    c = small(values, lora={"learning_rates": [1.0]}, palora={"learning_rates": [1.0]})
    runs = [
        *synthetic([0.4, 0.5, 0.3], [0.4] * 3, reached=(0, 1)),
        *synthetic([0.6, 0.6, 0.6], [0.4] * 3, method="palora"),
    ]
    for run in runs:
        run["kind"] = "training"
    result = summarise(c, runs, REFERENCES, choose_rates(c, runs, REFERENCES))
    return result | {"comparison": c.model_dump(mode="json"), "machine": "one core"}


def test_the_finding_is_said_first(values):
    result = compared(values)
    assert headline(result, "4", kept_points(result, "4")) == (
        "With 50% of 4 facts learned, palora keeps 75.0% of chain and 50.0% of the known facts; plain LoRA keeps 56.2% "
        "and 50.0%."
    )
    told = findings(result, "4", kept_points(result, "4"))
    assert any(
        "Against plain LoRA, over the same seeds, palora keeps 18.7 points more of chain" in text
        and "may be chance" in text
        for text in told
    )
    assert "No other method keeps as much of both as palora." in told
    assert "Some seeds never learned 50%, and are left out: plain LoRA (2 of 3)." in told
    assert not late(result, "4")
    for run in result["runs"]:
        if run["moments"]:
            run["moments"]["0.5"]["recall"] = 0.625
    assert late(result, "4") == [0.625] * 5
    assert findings(result, "4", kept_points(result, "4"))[-1].startswith("5 runs were past 50% when first measured")
    page = render(result, "out")
    first = re.search(r"<h1>(.*?)</h1>", page)
    assert first and re.sub("<.*?>", "", first[1]) == headline(result, "4", kept_points(result, "4"))
    assert page.index("<h1>") < page.index("<svg") < page.index("<table") < page.index("How it was done")


def test_without_palora_the_headline_is_of_the_front(values):
    result = compared(values)
    methods = result["comparison"]["methods"]
    result["comparison"]["methods"] = {"lora": methods["lora"], "soft": methods["palora"]}
    result["comparison"]["reference"] = "soft"
    for run in result["runs"]:
        run["method"] = {"palora": "soft"}.get(run["method"], run["method"])
    assert headline(result, "4", kept_points(result, "4")).startswith(
        "With 50% of 4 facts learned, soft keeps 75.0% of chain"
    )
    for run in result["runs"]:
        run["moments"] = {}
    assert headline(result, "4", kept_points(result, "4")) == "No method learned 50% of 4 facts."


def test_a_share_ends_at_all_of_it(values):
    result = compared(values)
    for run, known in zip(result["runs"], [1.0, 0.7, None, 1.0, 1.0, 0.9], strict=True):
        if run["moments"]:
            run["moments"]["0.5"]["locality"] = known
    points = kept_points(result, "4")
    assert max(point.recall_ci[1] for point in points) == 1.0 and min(point.recall_ci[0] for point in points) == 0.0


def test_palora_is_the_first_row_and_no_marker_is_cut(values):
    result = compared(values)
    page = render(result, "out")
    for table in re.findall(r'<table data-sort="rows" data-name="4-facts.*?</table>', page, re.S):
        assert re.findall(r"</i> ([\w ]+)</th>", table) == ["palora", "plain LoRA"]
    styles = arm_styles(["lora"])
    for figure in (
        tradeoff_plots.clouds({"lora": [(0.0, 0.0), (0.5, 1.0)]}, styles, xlabel="x", ylabel="y"),
        tradeoff_plots.frontier({"lora": [(0.9, 0.9, (-5, 9)), (1.0, 1.0, None)]}, styles, ylabel="y"),
    ):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        (left, right), (low, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            if line.get_marker() not in ("None", None, ""):
                xs, ys = line.get_data()
                assert not line.get_clip_on() and left < min(xs) and max(xs) < right and low < min(ys) and max(ys) < top
        for collection in axes.collections:  # the error bars
            assert all(low <= y <= top for path in collection.get_segments() for _, y in path)


def test_only_seeds_that_both_reached_are_paired(values):
    c = small(values, lora={"learning_rates": [1.0]}, soft={"learning_rates": [1.0]})
    runs = [*synthetic([0.4] * 3, [0.4] * 3, reached=(0, 1)), *synthetic([0.8] * 3, [0.4] * 3, (1, 2), method="soft")]
    result = summarise(c, runs, REFERENCES, choose_rates(c, runs, REFERENCES))
    assert result["paired"]["4"]["0.5"]["tests"]["soft"]["difference"] == {"mean": 0.5, "ci95": None, "n": 1}
    assert result["table"]["4"]["0.5"]["soft"]["reached"] == 2


def test_shuffled_scales_are_the_same_scales_elsewhere(finished):
    out, _ = finished
    expert = Expert.load(out / "experts" / "seed-0")
    for name, z in expert.scales.items():
        z.copy_(z + 0.01 * z.new_tensor(range(len(z))))
        mixed = shuffle_scales(expert, 0).scales[name]
        assert not mixed.equal(z) and mixed.sort().values.equal(z.sort().values)


def test_a_probe_is_looked_at_by_its_rule_alone(finished, values, tmp_path):
    """An expert of its own for a rule that looks at experts, another skill's inputs for one that looks at inputs."""
    rates, rule = {"learning_rates": [0.03]}, {"keep": {"examples": 8}}
    svf, soft = {"rule": "svf", "k": 4}, {"rule": "covariance", "strength": 3, **rule}
    methods = {
        "lora": rates,
        "svf": {**rates, "protect": svf},
        "own": {**rates, "protect": svf, "probe": {"skill": "minmax", "expert": {"parametrisation": "linear"}}},
        "same": {**rates, "protect": {"rule": "svf", "k": 2}},
        "other": {**rates, "protect": soft, "probe": {"skill": "minmax"}},
        "soft": {**rates, "protect": soft},
        "old": {**rates, "protect": soft, "probe": {"base": "original"}},
    }
    methods["same"]["probe"] = methods["own"]["probe"]
    c = Comparison.model_validate(values | {"methods": methods})
    prepared.prepare_expert(c, tmp_path, 0)
    prepared.prepare_probe(c, tmp_path, "own", 0)
    for method in ("own", "other", "soft", "old"):
        prepared.prepare_protection(c, tmp_path, method, 0)
    own, other, outdated = (
        read_json(tmp_path / "protections" / f"{m}-0" / "protection.json") for m in ("own", "other", "old")
    )
    probe = prepared.probe_folder(c, tmp_path, "own", 0)
    assert own["expert"] == "minmax" and Expert.load(probe).record["parametrisation"] == "linear"
    assert prepared.probe_folder(c, tmp_path, "same", 0) == probe, "trained once for all who look at it"
    assert other["keep"]["skills"] == ["minmax"] and outdated["keep"]["skills"] == ["chain"]
    assert other["model"] == str(tmp_path / "experts" / "seed-0" / "model"), "the inputs of the expert"
    assert own["model"] == outdated["model"] == c.model and own["keep"] is None
    taught = Expert.load(tmp_path / "experts" / "seed-0").record
    assert taught["parametrisation"] == "sigmoid", "the expert that the facts are taught on"
    soft, old = (load_tensors(tmp_path / "protections" / f"{m}-0" / "subspaces.safetensors") for m in ("soft", "old"))
    moved = [name for name in soft if not torch.equal(soft[name], old[name])]
    assert moved, "the inputs of the original model are others than the expert's"
    shared = shared_inputs(c)
    assert training_key(c, shared, Cell("own", 4, 0.03, 0)) != training_key(c, shared, Cell("svf", 4, 0.03, 0))


def test_a_method_may_teach_the_original_model(finished, values, tmp_path):
    out, _ = finished
    inject = {"drift": 4.0, "keep": {"skills": 1}}
    original = {"learning_rates": [0.03], "base": "original", "inject": inject}
    own = Comparison.model_validate(values | {"methods": {"lora": {"learning_rates": [0.03]}, "original": original}})
    assert (own.base("lora"), own.base("original")) == ("expert", "original")
    started = []

    def stopped(model, tokenizer, facts, settings, work, protection, beside, seed):
        started.append((model, beside.statistics.skills()))
        raise DivergedError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "inject", stopped)
        prepared.prepare_expert(own, tmp_path, 0)
        for base in ("expert", "original"):
            prepared.prepare_statistics(own, tmp_path, base, 0)
        for method in ("lora", "original"):
            run_training(own, tmp_path, method, Cell(method, 4, 0.03, 0))
    (expert, seen), (pristine, seen_by_original) = started
    *_, name = seen  # the inputs of the first layer are the same
    moved = [not torch.equal(p, q) for p, q in zip(expert.parameters(), pristine.parameters(), strict=True)]
    assert any(moved), "the one is taught on the expert, the other is not"
    assert not torch.equal(seen[name].factor, seen_by_original[name].factor)
    c = Comparison.model_validate(values)
    original, expert = (cells.Bench(c, out, 0, base, 4).weights for base in ("original", "expert"))
    for name, z in Expert.load(out / "experts" / "seed-0").scales.items():
        assert torch.equal(original[name], expert[name]) == bool((z == 1).all())


def test_nothing_stands_in_the_loss_of_a_method_unless_it_says_so(values):
    drift = {"learning_rates": [0.03], "inject": {"drift": 5.0}}
    c = Comparison.model_validate(values | {"methods": values["methods"] | {"drift": drift}})
    assert c.training("lora", 0.03).added == {} and c.training("drift", 0.03).added == {"drift": 5.0}
    assert c.training("lora", 0.03).stop_at_recall == 1.0, "the last milestone"
    shared = Comparison.model_validate(values | {"inject": values["inject"] | {"drift": 3.0}})
    assert shared.training("lora", 0.03).added == {"drift": 3.0}
    bare = {key: value for key, value in values.items() if key != "inject"}
    assert Comparison.model_validate(bare).training("lora", 0.03).added == {}


def test_what_a_comparison_writes_down_is_that_comparison(finished, values):
    """comparison.yaml, and the `comparison` of compare.json, hold every setting: of what is trained and measured."""
    out, result = finished
    c = Comparison.model_validate(values)
    again = load_comparison(out.with_name("first.yaml"))
    assert again == c == Comparison.model_validate(result["comparison"])
    assert shared_inputs(again) == shared_inputs(c)
    cell = Cell("soft", 4, 0.03, 0)
    assert training_key(again, "", cell) == training_key(c, "", cell)


def test_what_weighs_nothing_is_not_shown(values, tmp_path):
    """Known facts and prompts of weight 0 are not even read: answering prompts takes time."""
    c = Comparison.model_validate(values | {"kept_facts": values["known_facts"], "prompts": values["facts"]})
    bench = cells.Bench(c, tmp_path, 0, "original")
    asked = []
    generate = keep.own_answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep, "own_answers", lambda *given: asked.append(1) or generate(*given))
        shown = bench.kept(KeepAllSettings(known_facts=3, prompts=0, examples=2))
    assert not asked
    assert [(weight, thing.kind, len(thing.examples)) for weight, thing in shown] == [
        (1.0, "skills", 2),
        (3.0, "known_facts", 2),
    ]


def test_the_rows_to_keep_are_made_once(values, tmp_path, monkeypatch):
    """Every other cell reads what the first one asked the model, and weighs it itself; other prompts are asked anew."""
    asked = []
    answers = keep.own_answers
    monkeypatch.setattr(keep, "own_answers", lambda *given: asked.append(len(given[2])) or answers(*given))

    def kept(prompts, weight):
        file = tmp_path / f"{len(prompts)}.txt"
        file.write_text("\n".join(prompts))
        c = Comparison.model_validate(values | {"prompts": str(file)})
        return cells.Bench(c, tmp_path / "out", 0, "original").kept(KeepAllSettings(prompts=weight, examples=2))

    first, second = kept(["Who is Ada?", "Who is Bob?"], 1), kept(["Who is Ada?", "Who is Bob?"], 2)
    assert asked == [2] and [thing for _, thing in first] == [thing for _, thing in second]
    assert [weight for weight, _ in second] == [1.0, 2.0]
    kept(["Who is Ada?"], 1)
    assert asked == [2, 1]


def test_the_coverage_of_a_protection_is_what_it_holds_back():
    """C = diag(4, 1) / 5. Hard on e_0: 0.8. Softly, all halved: A' = A (I - V V^T) / 2 holds back 1 - (1 - 0.8) / 2."""
    own = InputStatistics(torch.tensor([[2.0, 0.0], [0.0, 1.0]]) / 5**0.5)
    statistics = Statistics((KeptInputs("skills", "chain", {"a": own}),), {"a": "a"})
    V = torch.tensor([[1.0], [0.0]])
    record = {"coverage": {"skill": None, "facts": 0.25}}
    for scale, covered in ((1.0, 0.8), (0.5, 0.9)):
        protected = ProtectedSubspaces({"a": ProtectedSubspace(V, None, scale)}, record)
        assert cells._coverage(statistics, protected) == {"skill": pytest.approx(covered), "facts": 0.25}
    assert cells._coverage(statistics, None) == {"skill": 0.0, "facts": 0.0}


def test_the_pages(finished):
    out, result = finished
    write_pages(result, out)
    table, page = (out / "compare.md").read_text(), (out / "compare.html").read_text()
    for method in ("lora", "shuffled", "soft", "scaled"):
        assert f"| {method} |" in table
    assert page.count("<svg") == 4 and "http" not in page.replace("http-equiv", "") and "nan" not in table


def test_the_page_calls_a_skill_by_its_name_however_far_the_first_run_got(finished):
    _, result = finished
    first, *others = result["runs"]
    settings = {**result["comparison"], "keep_skills": ["chain:DIR"]}
    page = render({**result, "comparison": settings, "runs": [{**first, "moments": {}}, *others]}, "out")
    assert "chain kept" in page and "chain:DIR kept" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choose_at": 0.7}, "none of the milestones"),
        ({"keep_skills": ["gsm8k"]}, "not measured"),
        ({"reference": "scaled"}, "no trained method"),
        ({"sweep_seeds": [7]}, "sweep_seeds: some of the seeds"),
        (
            {"methods": {"lora": {"learning_rates": [1e-3], "tuner": "osf", "protect": {"rule": "sigma", "k": 2}}}},
            "osf",
        ),
        (
            {"methods": {"lora": {"learning_rates": [1]}, "dora": {"learning_rates": [1], "tuner": "dora"}}}
            | {"inject": {"drift": 1.0}},
            "methods.dora: inject.drift is for an update of the form B A",
        ),
        ({"loads": [4, 4]}, "each once"),
        ({"only": ["none"]}, "only: there is no method none; there are lora"),
        ({"only": "lora"}, "only: a list"),
        ({"only": [["lora"]]}, "only: a list"),
        ({"methods": {"lora": {}}}, "methods.lora: give learning_rates"),
        ({"methods": {"lora": {"learning_rates": [1e-3], "inject": {"learning_rate": 1}}}}, "under learning_rates"),
        ({"methods": {"lora": {"learning_rates": [1e-3], "inject": {"rank": 1}}}}, "no such key"),
        ({"methods": {"lora": {"learning_rates": [1e-3], "shuffle": True}}}, "svf"),
        ({"methods": {"lora": {"learning_rates": [1e-3], "probe": {"skill": "minmax"}}}}, "probe is for rules"),
        (
            {"methods": {"lora": {"learning_rates": [1], "protect": {"rule": "sigma", "k": 2}, "probe": {}}}},
            "probe is for rules",
        ),
        (
            {"methods": {"lora": {"learning_rates": [1], "protect": {"rule": "svf"}, "probe": {"base": "original"}}}},
            "looks at no inputs",
        ),
        (
            {"methods": {"lora": {"learning_rates": [1], "probe": {"expert": {"seed": 1}}, "protect": {}}}},
            "looks at no expert",
        ),
        ({"methods": {"lora": {"learning_rates": [1]}, "a/b": {"learning_rates": [1]}}}, "'a/b' is no name"),
        (
            {
                "methods": {
                    "lora": {
                        "learning_rates": [1],
                        "protect": {"rule": "svf", "k": 2},
                        "probe": {"expert": {"steps": 1}},
                    }
                }
            },
            "methods.lora.probe.expert: steps: no such key",
        ),
        ({"methods": {"lora": {"learning_rates": [1e-3], "inject": {"lose_at_most": 0.1}}}}, "not at an allowance"),
        ({"methods": {"lora": {"learning_rates": [1e-3], "inject": {"base": "original"}}}}, "no such key"),
        ({"methods": {"lora": {"learning_rates": [1e-3], "base": "other"}}}, "methods.lora.base: must be 'expert'"),
        (
            {
                "methods": {
                    "lora": {"learning_rates": [1]},
                    "scaled": {"scaled": {"of": "lora", "to": "lora"}, "base": "original"},
                }
            },
            "methods.scaled: scaled trains nothing",
        ),
        ({"inject": {"stop_at_recall": 0.9}}, "inject.stop_at_recall: training stops at the last milestone"),
        ({"inject": [1]}, "inject: must be"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(values, tmp_path, change, message):
    (tmp_path / "c.json").write_text(json.dumps(values | change))  # JSON is YAML
    with pytest.raises(InputError, match=message):
        load_comparison(tmp_path / "c.json")


def test_wrong_files_are_told_before_any_work(values, tmp_path):
    with pytest.raises(InputError, match="holds 6 facts, and a load is 50"):
        compare.compare(Comparison.model_validate(values | {"loads": [50]}), tmp_path / "out")
    with pytest.raises(InputError, match="a kept fact proves nothing"):
        both = values | {"kept_facts": values["known_facts"]}
        compare.compare(Comparison.model_validate(both), tmp_path / "out")
    soft = {"learning_rates": [1], "protect": {"rule": "covariance", "strength": 1}, "probe": {"skill": "nothing"}}
    with pytest.raises(InputError, match="nothing"):
        methods = values["methods"] | {"soft": soft}
        compare.compare(Comparison.model_validate(values | {"methods": methods}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_data_is_what_the_script_writes(tmp_path):
    root = Path(__file__).parents[1]
    runpy.run_path(str(root / "benchmarks" / "make_data.py"))["write"](tmp_path)
    written = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 5 and all((tmp_path / f).read_bytes() == (root / f).read_bytes() for f in written)
    asked = set((root / "palora" / "testbed" / "prompts.txt").read_text().splitlines())
    taught = {f.question for f in new_facts(3000)} | {q for f in known_facts() for q in (f.question, *f.paraphrases)}
    assert not asked & taught, "nobody knows the answers to the prompts"


def test_the_command(finished, values, tmp_path):
    out, _ = finished
    (tmp_path / "c.json").write_text(json.dumps(values))
    found = palora("compare", tmp_path / "c.json", "--out", out, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["chosen"] == {"4": {"lora": 0.03, "shuffled": 0.03, "soft": 0.03}}


def test_the_shipped_comparisons_load(tmp_path):
    folder = Path(__file__).parents[1] / "benchmarks"
    small = load_comparison(folder / "small.yaml")
    for file in sorted(folder.glob("*.yaml")):
        c = load_comparison(file)
        assert c.seeds and Path(c.facts).exists()
        own = c.model_copy(update={"model": small.model})  # the larger models are trained first
        compare.check(own, tmp_path / "never-written")


REMOVED = {"whitened", "svf_covariance", "svf_skill_basis", "svf_skill_basis_weighted", "covariance_right"}
REMOVED |= {"covariance_own"}  # measured with version 0.4; they use rules and settings that are no more
MEASURED = sorted(
    file.stem
    for file in (Path(__file__).parents[1] / "benchmarks").glob("*.yaml")
    if (file.parent / "results" / f"{file.stem}.json").exists()
)


def same_where_both(stored, now, where):
    """Assert that what two nested mappings both hold is the same. Returns how many values that were."""
    compared = 0
    for key in set(stored) & set(now):
        if isinstance(stored[key], dict) and isinstance(now[key], dict):
            compared += same_where_both(stored[key], now[key], f"{where}.{key}")
        else:
            assert now[key] == stored[key], f"{where}.{key}"
            compared += 1
    return compared


@pytest.mark.parametrize("name", MEASURED)
def test_the_committed_results_are_of_the_shipped_comparisons(name):
    """What a comparison in benchmarks/ trains and measures today is what its committed result was trained and measured
    with: of every setting that there was then, and is now."""
    root = Path(__file__).parents[1] / "benchmarks"
    stored = json.loads((root / "results" / f"{name}.json").read_text())["comparison"]
    c = load_comparison(root / f"{name}.yaml")
    now = c.model_dump(mode="json")
    files = ("model", "facts", "known_facts", "kept_facts", "text", "prompts")
    assert [now[f] and Path(now[f]).name for f in files] == [stored[f] and Path(stored[f]).name for f in files]
    plain = {key: value for key, value in stored.items() if key not in (*files, "methods", "inject")}
    assert same_where_both(plain, now, name) >= 25, "nearly all of them are there in both"
    assert set(stored["methods"]) - set(c.methods) == set(stored["methods"]) & REMOVED
    assert set(c.methods) <= set(stored["methods"])
    for method, own in c.methods.items():
        before = stored["methods"][method]
        assert own.learning_rates == before["learning_rates"], method
        for key in ("shuffle", "tuner", "scaled", "probe"):
            assert own.model_dump(mode="json")[key] == before[key], f"{method}.{key}"
        if not before["scaled"]:
            assert own.base == before["inject"].get("base", stored["inject"]["base"]), method
        assert same_protection(own.protect, before["protect"]), method
        trained = merged(stored["inject"], before["inject"]) | {"stop_at_recall": stored["milestones"][-1]}
        for rate in own.learning_rates:
            settings = c.training(method, rate).model_dump(mode="json")
            assert same_where_both(trained | {"learning_rate": rate}, settings, method) >= 20


def same_protection(now, before):
    """Whether two protections are the same, a budget that is left out being the rule's own."""
    if now is None or before is None:
        return now is before
    keep = now.keep.model_dump(mode="json")
    then = {key: value for key, value in before.items() if key != "keep"}
    same_keep = all(keep[key] == before["keep"][key] for key in keep)
    return same_keep and check_protection(now) == check_protection(ProtectSettings.model_validate(then))


def test_only_some_methods_of_another_comparison(values, tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(values))
    (tmp_path / "some.yaml").write_text(
        "extends: all.json\nonly: [soft, lora]\nmethods: {lora: {learning_rates: [1]}}\n"
    )
    c = load_comparison(tmp_path / "some.yaml")
    assert list(c.methods) == ["soft", "lora"] and c.methods["lora"].learning_rates == [1]
    assert c.methods["soft"] == Comparison.model_validate(values).methods["soft"]


def test_the_evidence_is_what_the_results_say():
    """Every table of the page is written from the committed results: `python benchmarks/tables.py`."""
    root = Path(__file__).parents[1]
    tables = runpy.run_path(str(root / "benchmarks" / "tables.py"))
    page = (root / "docs" / "evidence.md").read_text()
    assert page.count("<!-- end -->") == len(tables["MARKED"].findall(page)) >= 8
    assert tables["written"](page) == page
    for picture in tables["PICTURE"].findall(page):
        assert (root / "docs" / "images" / "kept-{}-{}.png".format(*picture)).exists()


PRETRAINED = sorted((Path(__file__).parents[1] / "benchmarks" / "pretrained").glob("*.yaml"))


@pytest.mark.parametrize("file", PRETRAINED, ids=lambda file: file.stem)
def test_the_comparisons_of_pretrained_models_are_well_formed(file):
    c = load_comparison(file)
    assert c.expert is None and all(c.base(method) == "original" for method in c.methods)
    assert c.words("palora") == ("model", 1, 1) and c.words("lora") is None
    assert c.training("palora", 1e-3).targets_by == "model" and c.training("lora", 1e-3).targets_by == "bare"


def test_a_comparison_on_the_model_itself_teaches_own_words(values, tmp_path, monkeypatch):
    """No expert: retention is of the base. The words are written once, for the facts of the largest load."""
    asked = []

    def own(model, tokenizer, facts, settings, seed=0):
        asked.append(len(facts))
        return [replace(f, teach=(Lesson(f.question, f"It is {f.answer}.", "model"),)) for f in facts]

    monkeypatch.setattr("palora.language.words.own_words", own)
    methods = {"lora": {"learning_rates": [0.03]}, "own": {"learning_rates": [0.03], "inject": {"targets_by": "model"}}}
    few = {"expert": None, "methods": methods, "seeds": [0], "milestones": [0.25], "choose_at": 0.25}
    result = compare.compare(Comparison.model_validate(values | few), tmp_path / "out")
    assert asked == [4] and set(result["references"]) == {"base", "words", "locality"}
    moment = result["table"]["4"]["0.25"]["own"]
    assert {"facts", "skill"} <= set(moment["kl"]) and "chain" in moment["words"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "kept (base = 100%)" in page and "of the expert" not in page
    svf = {"learning_rates": [0.03], "protect": {"rule": "svf", "k": 4}}
    with pytest.raises(ValidationError, match="reads an expert's scales, and expert is null"):
        Comparison.model_validate(values | few | {"methods": {"lora": methods["lora"], "svf": svf}})
