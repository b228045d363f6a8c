"""A base whose weights are quantised as they are loaded (`load: 4bit`), from the protection to the report."""

import shutil

import pytest
import torch
from command import palora
from conftest import tiny_llama
from peft import PeftModel
from test_architectures import tiny
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from palora.common.errors import InputError
from palora.common.files import read_json
from palora.data.facts import write_facts
from palora.front import pipeline
from palora.front.recipe import parse_recipe
from palora.language import models
from palora.language.models import fingerprints, load_model
from palora.language.targets import find_targets, weight
from palora.results.updates import Adapter
from palora.testbed.world import known_facts, new_facts

NEEDED = pytest.mark.skipif(models.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
NAME = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A tiny model of whole blocks of 64 weights, and facts."""
    made = tmp_path_factory.mktemp("model")
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(made)
    tokenizer.save_pretrained(made)
    write_facts(made / "new.jsonl", new_facts(6))
    write_facts(made / "known.jsonl", known_facts()[:6])
    return made


def recipe(folder, **changes):
    training = {"r": 4, "lora_alpha": 8, "learning_rate": 0.01, "epochs": 3, "batch_size": 3, "targets_by": "bare"}
    return parse_recipe(
        {
            "model": str(folder),
            "dtype": "float32",
            "device": "cpu",
            "skills": ["chain"],
            "facts": str(folder / "new.jsonl"),
            "known_facts": str(folder / "known.jsonl"),
            "protect": {"rule": "covariance", "keep": {"examples": 16}},
            "inject": {**training, "distil": 1.0, "keep": {"examples": 8}, "stop_at_recall": None},
            "evaluate": {"problems": 4, "max_answer_tokens": 4},
            "arms": {"lora": None},
            **changes,
        }
    )


def config(bits):
    """As a user writes it, without palora."""
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    return BitsAndBytesConfig(load_in_4bit=True, **nf4)


@NEEDED
@pytest.mark.parametrize(("bits", "noise"), [("4bit", (0.05, 0.15)), ("8bit", (0.001, 0.02))])
def test_the_whole_way_on_a_quantised_base(folder, tmp_path, bits, noise):
    from bitsandbytes import functional as bnb

    pipeline.run(recipe(folder, load=bits), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config(bits), device_map={"": "cpu"}, dtype=torch.float32
    ).eval()
    stored = plain.get_submodule(NAME).weight
    if bits == "4bit":
        W = bnb.dequantize_4bit(stored.data, stored.quant_state)
    else:
        W = stored.CB.float() * stored.SCB[:, None] / 127
    found = weight(load_model(folder, "float32", "cpu", load=bits)[0].get_submodule(NAME))
    torch.testing.assert_close(found.float(), W.float(), rtol=1e-3, atol=1e-5)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_submodule(NAME).weight
    assert noise[0] < (W - whole).norm() / whole.norm() < noise[1], "it is quantised"

    record = read_json(tmp_path / "adapter" / "palora.json")
    assert record["load"] == bits
    delta = Adapter.load(tmp_path / "adapter").delta(NAME)
    told = record["update"]["layers"][NAME]["relative_norm"]
    assert told == pytest.approx(float(delta.norm() / W.norm()), rel=1e-3), "against the dequantised weights"
    ids = torch.arange(4, 40)[None]
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        now = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            assert (now - adapted(input_ids=ids).logits).abs().max() > 0.01, "something was learned"
    asked = ("--facts", folder / "new.jsonl", "--dtype", "float32", "--device", "cpu", "--out", tmp_path / "again")
    again = palora("evaluate", "--model", folder, "--load", bits, "--adapter", tmp_path / "adapter", *asked)
    assert again.code == 0, again.err
    arms = [read_json(place / "evaluation.json")["arms"]["palora"] for place in (tmp_path, tmp_path / "again")]
    assert arms[0]["recall_f1"] == arms[1]["recall_f1"]
    for wrong in (["evaluate", "--model", folder, "--adapter", tmp_path / "adapter", *asked],):
        refused = palora(*wrong)
        assert refused.code == 2 and "other weights" in refused.err
    merged = palora("export", "--adapter", tmp_path / "adapter", "--as", "merged", "--out", tmp_path / "merged")
    assert merged.code == 2 and f"in {bits}, which cannot be merged" in merged.err and "\n" not in merged.err.strip()


@NEEDED
def test_the_same_weights_are_known_again_after_an_answer(folder):
    """Some CPUs have 4-bit weights laid out anew at the first answer."""
    first, _ = load_model(folder, "float32", "cpu", load="4bit")
    second, _ = load_model(folder, "float32", "cpu", load="4bit")
    with torch.no_grad():
        second(input_ids=torch.arange(4, 40)[None])
    assert fingerprints(find_targets(first), first) == fingerprints(find_targets(second), second)
    whole, _ = load_model(folder, "float32", "cpu")
    assert fingerprints(find_targets(first))[NAME] != fingerprints(find_targets(whole))[NAME]


@NEEDED
def test_what_is_not_targeted_is_known_as_well_whatever_is(folder, tmp_path):
    """A model whose MLPs are not found loads too, and its attention has one print, first seen as a target or not."""
    tiny("mixtral", 99, num_local_experts=4, hidden_size=64).save_pretrained(tmp_path)
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    model, _ = load_model(tmp_path, "float32", "cpu", load="4bit")
    attention = find_targets(model, ["attention"])
    assert attention and fingerprints(attention, model).items() >= fingerprints(attention).items()


def test_what_cannot_be_quantised_is_refused_at_once(folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="load: 4bit goes without an expert"):
        pipeline.run(recipe(folder, load="4bit", expert={"iterations": 1}), tmp_path)
    refused = palora("protect", "--model", folder, "--skill", "chain", "--load", "3bit", "--out", tmp_path)
    assert refused.code == 2 and "4bit" in refused.err
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'palora\[bitsandbytes\]'"):
        load_model(folder, load="4bit")
