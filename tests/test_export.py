"""Adapters in other forms: one LoRA for the original model, expert included, is the merged checkpoint."""

import json
from unittest import mock

import pytest
import torch
from conftest import rising
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from palora.common.errors import InputError, PaloraError
from palora.common.settings import ExpertSettings, ExportSettings, InjectSettings, ProtectSettings
from palora.data.facts import write_facts
from palora.front import stages
from palora.front.recipe import Plan
from palora.results.export import export
from palora.testbed.world import new_facts
from palora.training.svf import Expert

EXPERT = {"objective": "next_token", "iterations": 2, "batch_size": 8, "validation_size": 4, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def taught(model_folder, tmp_path_factory):
    """An expert, and an adapter of some of the matrices on it."""
    folder = tmp_path_factory.mktemp("taught")
    write_facts(folder / "facts.jsonl", new_facts(4))
    plan = Plan(
        **{"model": str(model_folder), "device": "cpu", "skills": ["chain"], "facts": str(folder / "facts.jsonl")},
        expert=ExpertSettings(**EXPERT, max_grad_norm=1.0),
        protect=ProtectSettings(rule="svf", k=4, keep={"examples": 8}),
        inject=InjectSettings(r=4, lora_alpha=8, epochs=2, batch_size=4, learning_rate=0.02, targets=["down_proj"]),
    )
    with mock.patch("palora.training.expert.share_correct", rising()):
        stages.train_expert(plan, folder / "expert")
    on_expert = plan.model_copy(update={"model": str(folder / "expert" / "model")})
    stages.protect(on_expert, folder / "protection", folder / "expert")
    stages.inject(on_expert, folder / "adapter", folder / "protection")
    return plan, folder


def logits(model):
    return model.eval()(input_ids=torch.arange(5, 25)[None]).logits


def test_a_combined_adapter_is_the_merged_checkpoint(taught, tmp_path):
    """With all the expert's components; matrices that were not taught have the expert's part."""
    plan, folder = taught
    expert = Expert.load(folder / "expert")
    components = min(len(z) for z in expert.scales.values())
    assert all(len(z) == components for z in expert.scales.values())
    export(folder / "adapter", "merged", tmp_path / "merged", ExportSettings(dtype="float32"))
    found = export(folder / "adapter", "combined", tmp_path / "combined", ExportSettings(k=components))
    assert found["r"] == components + 4 and found["lost"] < 1e-4 and set(found["layers"]) == set(expert.scales)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    original = AutoModelForCausalLM.from_pretrained(plan.model)
    before = logits(original)
    combined = logits(PeftModel.from_pretrained(original, str(tmp_path / "combined")))
    assert (merged - before).norm() > 1e-3 * before.norm()
    assert torch.allclose(combined, merged, atol=1e-4)


def test_an_adapter_on_an_expert_names_a_model_that_plain_peft_loads(taught, tmp_path, monkeypatch):
    """And from anywhere: its base is a folder, by its whole path."""
    _, folder = taught
    monkeypatch.chdir(tmp_path)
    alone = AutoPeftModelForCausalLM.from_pretrained(str(folder / "adapter"))
    export(folder / "adapter", "merged", tmp_path / "merged", ExportSettings(dtype="float32"))
    assert torch.allclose(logits(alone), logits(AutoModelForCausalLM.from_pretrained("merged")), atol=1e-4)


def test_a_combined_adapter_takes_as_many_components_as_it_must(taught, tmp_path):
    _, folder = taught
    found = export(folder / "adapter", "combined", tmp_path / "combined")
    assert found["lost"] <= 0.01
    with pytest.raises(PaloraError, match=r"with k = \d+ components .* of the expert's change .*\(limit 1%\)"):
        export(folder / "adapter", "combined", tmp_path / "less", ExportSettings(k=found["k"] - 1))
    few = export(folder / "adapter", "combined", tmp_path / "few", ExportSettings(max_lost=0.5))
    assert few["k"] < found["k"] and 0.01 < few["lost"] <= 0.5


def test_a_changed_adapter_or_expert_is_not_exported(taught, tmp_path):
    import shutil

    _, folder = taught
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    file = run / "adapter" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 4
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors has changed since it was written"):
        export(run / "adapter", "adapter", tmp_path / "out")
    weights = run / "expert" / "model" / "model.safetensors"
    record = json.loads((folder / "adapter" / "palora.json").read_text())
    assert record["model"] == str(folder / "expert" / "model")
    data = bytearray(weights.read_bytes())
    data[-2] ^= 4
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors has changed since it was written"):
        stages.protect(Plan(model=str(weights.parent), protect=ProtectSettings(rule="sigma", k=2)), tmp_path / "p")
