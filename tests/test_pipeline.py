"""A whole run on the tiny model: every file of the contract, resume, and exports."""

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from conftest import rising
from peft import PeftModel
from transformers import AutoModelForCausalLM

from palora.algebra import decomposition
from palora.algebra.subspace import ProtectedSubspaces
from palora.common import hashes
from palora.common.errors import InputError, PaloraError
from palora.common.files import read_json
from palora.common.settings import ExportSettings
from palora.data.facts import write_facts
from palora.front import pipeline, stages
from palora.front.recipe import parse_recipe
from palora.language import models
from palora.language.models import fingerprints
from palora.language.targets import find_targets, weight
from palora.results import export as export_module
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
    write_facts(folder / "kept.jsonl", known_facts()[8:12])
    training = {"r": 4, "lora_alpha": 8, "learning_rate": 0.01, "epochs": 4, "batch_size": 4}
    training |= {"drift": 0.0, "stop_at_recall": None, "targets_by": "bare"}
    return {
        "model": str(model_folder),
        "skills": ["chain"],
        "facts": str(folder / "new.jsonl"),
        "known_facts": str(folder / "known.jsonl"),
        "kept_facts": str(folder / "kept.jsonl"),
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


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palora.training.expert.share_correct", rising())
        pipeline.run(parse_recipe(values), out)
    return out


def test_keeping_nothing_but_the_skill_is_warned_of(values, tmp_path, caplog):
    """The loss holds known facts by what it is given of their kind."""

    def warned(**changes):
        recipe = parse_recipe(values | {"kept_facts": None} | changes)
        caplog.clear()
        pipeline.check(recipe, tmp_path / "out")
        return "only the skill is kept" in caplog.text

    drift = {**values["inject"], "drift": 100.0}
    assert not warned(inject=drift)
    assert not warned(inject=drift, known_facts=None), "the model writes prompts"
    assert warned(inject=drift | {"keep": {"prompts": 0}}, known_facts=None)
    assert warned(inject=drift | {"keep": {"known_facts": 0, "prompts": 0}})
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
        assert set(arm["skills"]["chain"]) == {"accuracy", "n", "ci95", "words"}
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
    of_arm = ProtectedSubspaces.load(finished / "arms" / "svf" / "protection").statistics
    of_palora = ProtectedSubspaces.load(finished / "protection").statistics
    assert of_palora.kinds == ["skills", "known_facts"]  # all that is to be kept
    assert of_arm.kinds == ["skills"]  # no drift in its loss, and its rule weighs the skill alone


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
        patch.setattr("palora.training.expert.share_correct", rising())
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
    """By the scales, not by the folder of its weights."""
    model = AutoModelForCausalLM.from_pretrained(values["model"])
    Expert.load(finished / "expert").apply(model)
    return model.eval()


def of_palora(finished):
    """The adapter that was trained on the expert; `adapter/` is expert and facts for the original model."""
    return finished / "arms" / "palora" / "adapter"


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_every_arm_is_measured_on_its_own_weights(values, finished, monkeypatch):
    """What `evaluate` hands to the questions: the base, the expert, and each adapter on the expert."""
    from palora.common.settings import EvaluateSettings
    from palora.results import evaluation
    from palora.results.evaluation import Base, Questions, evaluate

    seen = {}

    def look(model, tokenizer, questions, settings, arm):
        seen[arm] = logits(model)
        return {"facts": [], "paraphrases": [], "known": []}

    monkeypatch.setattr(evaluation, "_ask", look)
    model = AutoModelForCausalLM.from_pretrained(values["model"]).eval()
    base, expert = logits(model), logits(expert_model(finished, values))
    its = AutoModelForCausalLM.from_pretrained(finished / "expert" / "model").eval()
    bases = [
        Base("base", lambda: (model, None), {"direct": of_palora(finished)}),
        Base("expert", lambda: (its, None), {"palora": of_palora(finished)}),
    ]
    evaluate(bases, Questions({}), EvaluateSettings(answers=0))
    original = AutoModelForCausalLM.from_pretrained(values["model"])
    expected = {
        "base": base,
        "expert": expert,
        "palora": logits(PeftModel.from_pretrained(expert_model(finished, values), of_palora(finished)).eval()),
        "direct": logits(PeftModel.from_pretrained(original, of_palora(finished)).eval()),
    }
    for arm, value in expected.items():
        assert (seen[arm] - value).abs().max() < 1e-4, arm
    for a, b in [("base", "expert"), ("expert", "palora"), ("palora", "direct")]:
        assert (seen[a] - seen[b]).abs().max() > 1e-2


def test_an_adapter_of_an_expert_does_not_name_the_original_model_as_its_base(values, finished):
    named = read_json(of_palora(finished) / "adapter_config.json")["base_model_name_or_path"]
    assert named == str((finished / "expert" / "model").resolve())


def test_what_a_run_leaves_in_adapter_works_on_the_model_that_the_recipe_named(values, finished):
    """Expert and facts in one: loaded with plain PEFT on the original model it is what was trained and measured."""
    assert read_json(finished / "adapter" / "adapter_config.json")["base_model_name_or_path"] == values["model"]
    original = AutoModelForCausalLM.from_pretrained(values["model"]).eval()
    before = logits(original)
    delivered = logits(PeftModel.from_pretrained(original, finished / "adapter").eval())
    measured = logits(PeftModel.from_pretrained(expert_model(finished, values), of_palora(finished)).eval())
    assert (delivered - measured).norm() < 0.02 * (measured - before).norm()
    assert pipeline.how_to_use(finished).endswith(f"with model {values['model']}; no palora needed")


def test_the_experts_folder_is_an_ordinary_model(values, finished):
    its = AutoModelForCausalLM.from_pretrained(finished / "expert" / "model").eval()
    assert (logits(its) - logits(expert_model(finished, values))).abs().max() < 1e-4
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        source = Path(values["model"]) / file
        assert (finished / "expert" / "model" / file).read_bytes() == source.read_bytes()


def test_an_expert_whose_change_does_not_fit_leaves_a_pair_of_folders(values, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "MAX_RANK", 8)
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    combine = export_module.combine_if_it_fits
    combine(tmp_path / "run" / "arms" / "palora" / "adapter", tmp_path / "run" / "adapter", tmp_path / "run" / "expert")
    assert not (tmp_path / "run" / "adapter").exists()
    said = pipeline.how_to_use(tmp_path / "run")
    assert "arms/palora/adapter" in said and "expert/model as the model, and no other" in said


def without_an_expert(values):
    return {**values, "expert": None, "arms": {"lora": None}}


def test_a_run_without_an_expert_and_without_a_control(values, tmp_path):
    """As the default recipe has none: the facts go on the model itself, and every weight file is hashed once a load."""
    hashed = []
    content = hashes._content.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "_content", lru_cache(None)(lambda *key: hashed.append(key[0]) or content(*key)))
        pipeline.run(parse_recipe(without_an_expert(values)), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("recipe.yaml", "protection", "adapter", "metrics.jsonl", "evaluation.json", "answers.jsonl", "report.html")
    }
    evaluation = read_json(tmp_path / "run" / "evaluation.json")
    assert list(evaluation["arms"]) == ["base", "palora"]
    assert evaluation["retention"]["palora"]["chain"]["vs_expert"] is None
    weights = str((Path(values["model"]) / "model.safetensors").resolve())
    assert hashed.count(weights) == 1


def test_in_a_run_each_matrix_is_decomposed_and_hashed_once(values, tmp_path, monkeypatch):
    """With an expert, a rule that reads its scales, and one that looks at the components of the taught model."""
    monkeypatch.setenv("PALORA_CACHE", str(tmp_path / "cache"))
    decomposed, hashed = [], []
    svd, content, fingerprint = decomposition.decompose, hashes._content.__wrapped__, hashes.fingerprint
    prints = []
    monkeypatch.setattr(decomposition, "decompose", lambda W: decomposed.append(fingerprint(W)) or svd(W))
    monkeypatch.setattr(models, "fingerprint", lambda W: prints.append(id(W)) or fingerprint(W))
    monkeypatch.setattr(hashes, "_content", lru_cache(None)(lambda *key: hashed.append(key[0]) or content(*key)))
    monkeypatch.setattr("palora.training.expert.share_correct", rising())
    loads = []
    load = stages.load_model
    monkeypatch.setattr(stages, "load_model", lambda *given, **how: loads.append(given[0]) or load(*given, **how))
    pipeline.run(parse_recipe(values), tmp_path / "run")
    assert len(decomposed) == len(set(decomposed)) == 6, "the original's six matrices, for the expert and for svf"
    weights = [path for path in hashed if path.endswith("/model.safetensors") and ".partial" not in path]
    assert len(weights) == len(set(weights)) == 2, "the original's and the expert's"
    assert loads == [values["model"], *([str(tmp_path / "run" / "expert" / "model")]), *([values["model"]]), loads[-1]]
    parameters = len(list(AutoModelForCausalLM.from_pretrained(values["model"]).parameters()))
    changed = 6  # by the expert
    assert len(prints) <= parameters * (len(loads) + 1) + changed, "the one more is where expert and facts are combined"


@pytest.mark.parametrize(
    "name", ["expert/scales.safetensors", "expert/model/model.safetensors", "adapter/adapter_model.safetensors"]
)
def test_a_changed_byte_in_a_run_is_an_error_and_not_another_result(values, finished, tmp_path, name):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="has changed since it was written; put it back, or remove"):
        pipeline.run(parse_recipe(values), tmp_path / "run")


def test_a_copied_model_a_new_setting_and_another_default_make_nothing_undone(values, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(values["model"], tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        os.utime(file, (1, 1))
    for marker in (tmp_path / "run").rglob("*.json"):
        if "inputs" in (record := read_json(marker)) and "settings" in record["inputs"]:
            record["inputs"]["settings"]["all"].pop("batch_size", None)  # as a version without that setting wrote it
            record["inputs"]["settings"]["all"]["seed_of_old"] = 3  # and with one that has another default today
            marker.write_text(json.dumps(record))
    monkeypatch.setattr(stages, "load_model", lambda *arguments: pytest.fail("nothing is to be done"))
    moved = {**values, "model": str(tmp_path / "copy")}
    pipeline.run(parse_recipe(moved), tmp_path / "run")


def test_merged_is_expert_plus_adapter(values, finished, tmp_path):
    result = export(of_palora(finished), "merged", tmp_path / "merged", ExportSettings(dtype="float32"))
    adapted = PeftModel.from_pretrained(expert_model(finished, values), of_palora(finished)).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert (logits(merged) - logits(adapted)).abs().max() < 1e-4
    assert result["leak"] < 1e-4


def test_a_merge_that_rounding_moves_is_refused_unless_told_otherwise(finished, tmp_path):
    adapter = finished / "arms" / "svf" / "adapter"
    with pytest.raises(
        PaloraError, match=r"bfloat16 moves the outputs of a matrix by 0\.\d+% by rounding alone.*Nothing"
    ):
        export(adapter, "merged", tmp_path / "merged", ExportSettings(dtype="bfloat16", max_drift=1e-4))
    assert not list(tmp_path.iterdir())
    result = export(adapter, "merged", tmp_path / "merged", ExportSettings(dtype="bfloat16"))
    assert 1e-4 < result["drift"] < 0.005
    # measured again on the files: what the rounded update does inside the protected subspace
    low = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(read_json(adapter / "palora.json")["model"])
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
    whole = export(of_palora(finished), "combined", tmp_path / "whole", ExportSettings(k=32))
    assert whole["lost"] < 1e-4 and whole["r"] == 36
    original = AutoModelForCausalLM.from_pretrained(values["model"])
    combined = PeftModel.from_pretrained(original, tmp_path / "whole").eval()
    adapted = PeftModel.from_pretrained(expert_model(finished, values), of_palora(finished)).eval()
    assert (logits(combined) - logits(adapted)).abs().max() < 1e-3
    few = export(of_palora(finished), "combined", tmp_path / "few", ExportSettings(k=4, max_lost=1))
    many = export(of_palora(finished), "combined", tmp_path / "many", ExportSettings(k=16, max_lost=1))
    assert 1 > few["lost"] > many["lost"] > 0.01
    config = read_json(tmp_path / "few" / "adapter_config.json")
    assert config["r"] == config["lora_alpha"] == 8 and config["base_model_name_or_path"] == values["model"]
    record = read_json(tmp_path / "few" / "palora.json")
    assert record["update"]["leak"] is None, "the expert moves the protected components: no old leak is carried over"
    assert record["update"]["parameters"] == 2 * read_json(of_palora(finished) / "palora.json")["update"]["parameters"]
    assert "cut off" in (tmp_path / "few" / "README.md").read_text()


def test_adapter_export_and_inspect(finished, tmp_path):
    export(of_palora(finished), "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        of_palora(finished) / "adapter_model.safetensors"
    ).read_bytes()
    found = inspect_folder(tmp_path / "out")
    assert found["kind"] == "adapter" and found["rule"] == "covariance"
    assert found["model"] == str(finished / "expert" / "model")
    assert inspect_folder(finished)["finished"] is True
    assert inspect_folder(finished / "protection")["budget"] == {"strength": 5.0}
    assert inspect_folder(finished / "expert")["skill"] == "chain"
    with pytest.raises(InputError, match="none of ours"):
        inspect_folder(tmp_path)


def test_another_expert_is_noticed(values, finished, tmp_path):
    expert = Expert.load(finished / "expert")
    scales = {name: z * 1.01 for name, z in expert.scales.items()}
    model = AutoModelForCausalLM.from_pretrained(values["model"])
    Expert(scales, expert.record).apply(model)
    prints = fingerprints(find_targets(model), model)
    record = {**expert.record, "expert_fingerprints": prints}
    Expert(scales, record).save(tmp_path / "e", model=model, source=values["model"])
    recipe = parse_recipe(values)
    with pytest.raises(InputError, match=r"the adapter .* was made for other weights"):
        stages.evaluate_arms(recipe, tmp_path / "out", {"palora": of_palora(finished)}, tmp_path / "e")
