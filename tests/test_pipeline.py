"""A whole run on the tiny model: every file of the contract, resume, and exports."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from palora.algebra.statistics import from_tensors
from palora.algebra.subspace import STATISTICS, ProtectedSubspaces
from palora.common.errors import InputError, PaloraError
from palora.common.files import load_tensors, read_json
from palora.data.facts import write_facts
from palora.front import pipeline, stages
from palora.front.recipe import parse_recipe
from palora.language.targets import find_targets, weight
from palora.results.export import export
from palora.results.inspection import inspect_folder
from palora.results.updates import Adapter
from palora.testbed.world import known_facts, new_facts
from palora.training.svf import Expert

IDS = torch.randint(4, 90, (4, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def values(model_folder, tmp_path_factory):
    """A recipe small enough for seconds: svf as an extra arm, the soft rule as palora's."""
    folder = tmp_path_factory.mktemp("data")
    write_facts(folder / "new.jsonl", new_facts(12))
    write_facts(folder / "known.jsonl", known_facts()[:8])
    training = {"r": 4, "lora_alpha": 8, "learning_rate": 0.01, "epochs": 4, "batch_size": 4}
    return {
        "model": str(model_folder),
        "skills": ["chain"],
        "facts": str(folder / "new.jsonl"),
        "known_facts": str(folder / "known.jsonl"),
        "expert": {
            "objective": "next_token",
            "iterations": 6,
            "batch_size": 16,
            "learning_rate": 0.1,
            "max_grad_norm": 1.0,
            "validate_every": 2,
            "validation_size": 8,
        },
        "protect": {"rule": "covariance", "strength": 5, "keep": {"examples": 32}},
        "inject": training,
        "evaluate": {"problems": 8, "max_answer_tokens": 8},
        "arms": {"svf": {"protect": {"rule": "svf", "k": 8, "keep": {"examples": 32}}}},
    }


def always_better():
    """Validation keeps the untouched base unless it is beaten; a random model never is, so let every one be better."""
    count = iter(range(1, 99))
    return lambda answers: next(count) / 100


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palora.training.expert.share_correct", always_better())
        pipeline.run(parse_recipe(values), out)
    return out


def test_keeping_nothing_but_the_skill_is_warned_of(values, tmp_path, caplog):
    """The loss holds known facts by what it is given of their kind."""

    def warned(**changes):
        recipe = parse_recipe(values | changes)
        caplog.clear()
        pipeline._check(recipe, stages.Base(recipe.model), tmp_path / "out")
        return "only the skill is kept" in caplog.text

    drift = {**values["inject"], "drift": 100.0}
    assert not warned(inject=drift)
    assert warned(inject=drift, known_facts=None)
    assert warned(inject=drift | {"keep": {"known_facts": 0}})
    assert not warned(inject=drift, known_facts=None, text=values["facts"])
    assert not warned(known_facts=None), "plain protection was never meant to hold them"


def test_the_contract(finished):
    for name in ("recipe.yaml", "metrics.jsonl", "evaluation.json", "report.html"):
        assert (finished / name).stat().st_size > 0, name
    for name in ("expert/scales.safetensors", "expert/expert.json", "protection/subspaces.safetensors"):
        assert (finished / name).exists(), name
    for name in ("adapter_config.json", "adapter_model.safetensors", "palora.json", "README.md"):
        assert (finished / "adapter" / name).exists(), name
    evaluation = read_json(finished / "evaluation.json")
    assert list(evaluation["arms"]) == ["base", "expert", "lora", "svf", "palora"]
    for arm in evaluation["arms"].values():
        assert set(arm["skills"]["chain"]) == {"accuracy", "n", "ci95"}
        assert {"recall", "paraphrase_recall", "locality"} <= set(arm)
    for arm in ("lora", "svf", "palora"):
        assert {"leak", "drift", "norm", "relative_norm", "parameters"} <= set(evaluation["update"][arm])
    assert evaluation["update"]["svf"]["leak"] <= 1e-5
    assert evaluation["update"]["palora"]["drift"] < evaluation["update"]["lora"]["drift"]
    assert set(evaluation["seconds"]) == {"expert", "lora", "svf", "palora", "evaluate"}
    stages_seen = {json.loads(line)["stage"] for line in (finished / "metrics.jsonl").read_text().splitlines()}
    assert stages_seen == {"expert", "lora", "svf", "palora"}
    left = [p.name for p in finished.rglob(".*")]
    assert not left, f"hidden work folders are gone: {left}"


def test_statistics_are_collected_of_what_an_arm_looks_at(finished):
    of_arm = from_tensors(load_tensors(finished / "arms" / "svf" / "protection" / STATISTICS))
    of_palora = from_tensors(load_tensors(finished / "protection" / STATISTICS))
    assert set(of_palora) == {"skills", "known_facts"}  # all that is to be kept
    assert set(of_arm) == {"skills"}  # no drift in its loss, and its rule weighs the skill alone


def test_run_again_does_nothing(finished, values, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    monkeypatch.setattr(stages, "load_model", lambda *arguments: pytest.fail("nothing is to be done"))
    pipeline.run(parse_recipe(values), finished)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}


@pytest.mark.parametrize(
    "at",
    ["palora.front.stages.protection.protect", "palora.front.stages.injection.inject", "palora.front.stages.evaluate"],
)
def test_interrupted_between_stages_it_ends_with_the_same_numbers(values, tmp_path, at, finished):
    def stop(*arguments, **named):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palora.training.expert.share_correct", always_better())
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(at, stop)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(parse_recipe(values), tmp_path / "run")
        pipeline.run(parse_recipe(values), tmp_path / "run")
    whole, again = (read_json(out / "evaluation.json") for out in (finished, tmp_path / "run"))
    for key in ("arms", "retention", "update", "answers"):
        assert whole[key] == again[key], key


def test_an_interrupted_evaluation_keeps_its_finished_arms(values, tmp_path, finished, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    from palora.results import evaluation

    ask, asked = evaluation._ask, []

    def asking(model, tokenizer, questions, settings, arm):
        asked.append(arm)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(model, tokenizer, questions, settings, arm)

    monkeypatch.setattr(evaluation, "_ask", asking)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(parse_recipe(values), tmp_path / "run")
    pipeline.run(parse_recipe(values), tmp_path / "run")
    assert asked == ["base", "expert", "lora", "lora", "svf", "palora"]
    whole, again = (read_json(out / "evaluation.json") for out in (finished, tmp_path / "run"))
    assert whole["arms"] == again["arms"]


def test_a_changed_recipe_does_again_only_what_it_touches(values, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    changed = {**values, "arms": {"svf": {**values["arms"]["svf"], "inject": {"epochs": 1}}}}
    pipeline.run(parse_recipe(changed), tmp_path / "run")
    touched = {p.relative_to(tmp_path / "run").parts[:2] for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert touched == {("arms", "svf")}


def test_foreign_folders_are_left_alone(values, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        pipeline.run(parse_recipe(values), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def expert_model(finished, values):
    model = AutoModelForCausalLM.from_pretrained(values["model"])
    Expert.load(finished / "expert").apply(model)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_every_arm_is_measured_on_its_own_weights(values, finished, monkeypatch):
    """What `evaluate` hands to the questions: the base, the expert, and each adapter on the expert."""
    from palora.common.settings import EvaluateSettings
    from palora.results import evaluation
    from palora.results.evaluation import Questions, TrainedArm, evaluate

    seen = {}

    def look(model, tokenizer, questions, settings, arm):
        seen[arm] = logits(model)
        return {"facts": [], "paraphrases": [], "known": []}

    monkeypatch.setattr(evaluation, "_ask", look)
    model = AutoModelForCausalLM.from_pretrained(values["model"]).eval()
    base, expert = logits(model), logits(expert_model(finished, values))
    arms = {
        "palora": TrainedArm(finished / "adapter", "expert"),
        "direct": TrainedArm(finished / "adapter", "original"),
    }
    evaluate(model, None, Questions({}), Expert.load(finished / "expert"), arms, EvaluateSettings(answers=0))
    original = AutoModelForCausalLM.from_pretrained(values["model"])
    expected = {
        "base": base,
        "expert": expert,
        "palora": logits(PeftModel.from_pretrained(expert_model(finished, values), finished / "adapter").eval()),
        "direct": logits(PeftModel.from_pretrained(original, finished / "adapter").eval()),
    }
    for arm, value in expected.items():
        assert (seen[arm] - value).abs().max() < 1e-4, arm
    for a, b in [("base", "expert"), ("expert", "palora"), ("palora", "direct")]:
        assert (seen[a] - seen[b]).abs().max() > 1e-2


def test_an_adapter_of_an_expert_does_not_name_the_original_model_as_its_base(values, finished):
    named = read_json(finished / "adapter" / "adapter_config.json")["base_model_name_or_path"]
    assert named != values["model"] and "expert" in named


def test_merged_is_expert_plus_adapter(values, finished, tmp_path):
    result = export(finished / "adapter", "merged", tmp_path / "merged", dtype="float32")
    adapted = PeftModel.from_pretrained(expert_model(finished, values), finished / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-4
    assert result["leak"] < 1e-4


def test_a_merge_that_leaks_is_refused_unless_told_otherwise(finished, tmp_path):
    adapter = finished / "arms" / "svf" / "adapter"
    with pytest.raises(PaloraError, match=r"bfloat16 puts .* into the protected subspace.*Nothing was written"):
        export(adapter, "merged", tmp_path / "merged", dtype="bfloat16", max_leak=1e-4)
    assert not list(tmp_path.iterdir())
    result = export(adapter, "merged", tmp_path / "merged", dtype="bfloat16", max_leak=1.0)
    # measured again on the files: what the rounded update does inside the protected subspace
    low = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(read_json(adapter / "palora.json")["model"])
    Expert.load(finished / "expert").apply(model)
    model.to(torch.bfloat16)
    protection = ProtectedSubspaces.load(finished / "arms" / "svf" / "protection")
    leaks = []
    for (name, before), after in zip(find_targets(model).items(), find_targets(low).values(), strict=True):
        change = weight(after).double() - weight(before).double()
        delta = Adapter.load(adapter).delta(name).norm()
        inside = [
            (change @ protection[name].input.double()).norm(),
            (protection[name].output.double().T @ change).norm(),
        ]
        leaks.append(float(max(inside) / delta))
    assert result["leak"] == pytest.approx(max(leaks), rel=0.02)
    assert result["leak"] > 1e-3


def test_combined_is_one_lora_for_the_original_model(values, finished, tmp_path):
    """With every component kept nothing is lost: original + combined = expert + adapter."""
    whole = export(finished / "adapter", "combined", tmp_path / "whole", k=32)
    assert whole["lost"] < 1e-4 and whole["r"] == 36
    original = AutoModelForCausalLM.from_pretrained(values["model"])
    combined = PeftModel.from_pretrained(original, tmp_path / "whole").eval()
    adapted = PeftModel.from_pretrained(expert_model(finished, values), finished / "adapter").eval()
    assert (logits(combined) - logits(adapted)).abs().max() < 1e-3
    few = export(finished / "adapter", "combined", tmp_path / "few", k=4)
    many = export(finished / "adapter", "combined", tmp_path / "many", k=16)
    assert 1 > few["lost"] > many["lost"] > 0.01
    config = read_json(tmp_path / "few" / "adapter_config.json")
    assert config["r"] == config["lora_alpha"] == 8 and config["base_model_name_or_path"] == values["model"]
    record = read_json(tmp_path / "few" / "palora.json")
    assert record["update"]["leak"] is None, "the expert moves the protected components: no old leak is carried over"
    assert record["update"]["parameters"] == 2 * read_json(finished / "adapter" / "palora.json")["update"]["parameters"]
    assert "cut off" in (tmp_path / "few" / "README.md").read_text()


def test_adapter_export_and_inspect(finished, tmp_path):
    export(finished / "adapter", "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        finished / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    found = inspect_folder(tmp_path / "out")
    assert found["kind"] == "adapter" and found["rule"] == "covariance" and found["base"] == "expert"
    assert inspect_folder(finished)["finished"] is True
    assert inspect_folder(finished / "protection")["budget"] == {"strength": 5.0}
    assert inspect_folder(finished / "expert")["skill"] == "chain"
    with pytest.raises(InputError, match="none of ours"):
        inspect_folder(tmp_path)


def test_another_expert_is_noticed(values, finished, tmp_path):
    expert = Expert.load(finished / "expert")
    Expert({name: z * 1.01 for name, z in expert.scales.items()}, {**expert.record, "inputs": "x"}).save(tmp_path / "e")
    base = stages.Base(values["model"])
    settings = parse_recipe(values).evaluate
    with pytest.raises(InputError, match="another expert"):
        stages.evaluate_arms(
            base, settings, tmp_path / "out", {"palora": finished / "adapter"}, ["chain"], tmp_path / "e"
        )
