"""Adapters in other forms: one LoRA for the original model, expert included, is the merged checkpoint."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from palora.common.errors import InputError
from palora.common.settings import ExpertSettings, InjectSettings, ProtectSettings
from palora.data.facts import write_facts
from palora.front import stages
from palora.front.stages import Base, Sources
from palora.results.export import export
from palora.results.inspection import inspect_folder
from palora.testbed.world import new_facts
from palora.training.svf import BASIS, Expert

EXPERT = {"objective": "next_token", "iterations": 2, "batch_size": 8, "validation_size": 4, "learning_rate": 0.05}


@pytest.fixture(scope="module", params=["weights", "skill"])
def taught(request, model_folder, tmp_path_factory):
    """An expert of each basis, and an adapter of some of the matrices on it."""
    folder = tmp_path_factory.mktemp(request.param)
    write_facts(folder / "facts.jsonl", new_facts(4))
    base = Base(str(model_folder), device="cpu")
    settings = ExpertSettings(**EXPERT, basis=request.param, basis_examples=40, max_grad_norm=1.0)
    stages.train_expert(base, settings, folder / "expert", "chain")
    rule = ProtectSettings(rule="svf", k=4, keep={"examples": 8})
    stages.protect(base, rule, folder / "protection", folder / "expert", Sources(("chain",)))
    teach = InjectSettings(r=4, lora_alpha=8, epochs=2, batch_size=4, learning_rate=0.02, targets=["down_proj"])
    facts = str(folder / "facts.jsonl")
    stages.inject(base, teach, folder / "adapter", facts, folder / "expert", folder / "protection")
    return base, folder


def logits(model):
    return model.eval()(input_ids=torch.arange(5, 25)[None]).logits


def test_a_combined_adapter_is_the_merged_checkpoint(taught, tmp_path):
    """With all the expert's components; matrices that were not taught have the expert's part."""
    base, folder = taught
    expert = Expert.load(folder / "expert")
    components = min(len(z) for z in expert.scales.values())
    assert all(len(z) == components for z in expert.scales.values())
    export(folder / "adapter", "merged", tmp_path / "merged", dtype="float32")
    found = export(folder / "adapter", "combined", tmp_path / "combined", k=components)
    assert found["r"] == components + 4 and found["lost"] < 1e-4 and set(found["layers"]) == set(expert.scales)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    original = AutoModelForCausalLM.from_pretrained(base.model)
    before = logits(original)
    combined = logits(PeftModel.from_pretrained(original, str(tmp_path / "combined")))
    assert (merged - before).norm() > 1e-3 * before.norm()
    assert torch.allclose(combined, merged, atol=1e-4)


def test_a_basis_that_is_gone_is_not_done_without(taught, tmp_path):
    """The scales would go onto components of W that they do not belong to."""
    _, folder = taught
    expert = tmp_path / "expert"
    Expert.load(folder / "expert").save(expert)
    assert (expert / BASIS).exists() == (inspect_folder(expert)["basis"] == "skill")
    if (expert / BASIS).exists():
        (expert / BASIS).unlink()
        for read in (Expert.load, inspect_folder):
            with pytest.raises(InputError, match=BASIS):
                read(expert)
