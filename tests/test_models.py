"""Finding the targeted matrices in every supported architecture, and knowing weights again."""

import json
import os
import shutil

import pytest
import torch
import transformers
from conftest import tiny_llama
from torch import nn

from palora.common.errors import InputError
from palora.common.hashes import fingerprint
from palora.language.models import fingerprints, load_model, model_hash, save_model
from palora.language.targets import find_targets, target_endings, weight

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "head_dim": 16,
    "pad_token_id": 0,
}
ARCHITECTURES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Phi3", "GPT2"]


def build(architecture):
    config = getattr(transformers, f"{architecture}Config")
    name = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}.get(
        architecture, f"{architecture}ForCausalLM"
    )
    if architecture == "GPT2":
        return getattr(transformers, name)(config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, n_positions=64))
    return getattr(transformers, name)(config(**SMALL))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mlp_matrices_are_found(architecture):
    targets = find_targets(build(architecture))
    per_layer = {"Phi3": 2, "GPT2": 2}.get(architecture, 3)
    assert len(targets) == 2 * per_layer
    assert all("mlp" in name for name in targets)
    shapes = {name.rsplit(".", 1)[-1]: tuple(weight(module).shape) for name, module in targets.items()}
    expected = {
        "Phi3": {"gate_up_proj": (96, 32), "down_proj": (32, 48)},
        "GPT2": {"c_fc": (128, 32), "c_proj": (32, 128)},
    }.get(architecture, {"gate_proj": (48, 32), "up_proj": (48, 32), "down_proj": (32, 48)})
    assert shapes == expected, "always (out, in)"


def test_named_targets_and_candidates(model):
    assert set(find_targets(model, ["q_proj"])) == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    with pytest.raises(InputError, match=r"fc1.*candidates.*mlp\.down_proj.*self_attn\.q_proj"):
        find_targets(model, ["fc1"])
    with pytest.raises(InputError, match=r"no MLP was found in the architecture None.*--targets: first"):
        find_targets(nn.ModuleDict({"first": nn.Linear(2, 2)}))


def test_short_endings_only_where_they_are_exact(model):
    assert target_endings(model, list(find_targets(model))) == ["down_proj", "gate_proj", "up_proj"]
    gpt2 = build("GPT2")
    names = list(find_targets(gpt2))
    assert target_endings(gpt2, names) == sorted(names), "c_proj is in the attention too"


def test_fingerprints_know_weights_not_dtypes(model):
    targets = find_targets(model)
    prints = fingerprints(targets)
    assert fingerprints(find_targets(tiny_llama())) == prints
    assert len(set(prints.values())) == len(prints)
    low = tiny_llama().to(torch.bfloat16)
    assert fingerprints(find_targets(low)) == prints
    W = weight(next(iter(targets.values())))
    assert fingerprint(W) != fingerprint(W.T)
    changed = W.clone()
    changed[0, 0] *= 1.01
    assert fingerprint(changed) != fingerprint(W)


def test_load_model(model_folder):
    model, tokenizer = load_model(model_folder, dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16 and not model.training
    assert tokenizer.pad_token and tokenizer.padding_side == "left"


def test_a_matrix_is_hashed_once_a_load_and_again_when_it_changes(model, monkeypatch):
    from palora.language import models

    hashed = []
    monkeypatch.setattr(models, "fingerprint", lambda matrix: hashed.append(matrix) or fingerprint(matrix))
    targets = find_targets(model)
    first = fingerprints(targets, model)
    assert len(hashed) == len(list(model.parameters()))
    assert fingerprints(targets, model) == first and len(hashed) == len(list(model.parameters()))
    weight(targets["model.layers.0.mlp.up_proj"]).mul_(2)
    changed = fingerprints(targets, model)
    assert [name for name in first if first[name] != changed[name]] == ["model.layers.0.mlp.up_proj"]


def test_a_copy_or_a_touch_is_the_same_model_and_a_changed_byte_is_not(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert model_hash(copy) == model_hash(model_folder)
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    os.utime(file, (1, 1))
    assert model_hash(copy) != model_hash(model_folder)


def test_a_saved_model_keeps_the_tokenizer_as_it_came(model_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(model_folder, source)
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"padding_side": "right", "pad_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "preprocessor_config.json").write_text("{}")
    model, tokenizer = load_model(source, device="cpu")
    assert tokenizer.padding_side == "left"
    save_model(model.to(torch.bfloat16), source, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text()) == settings
    assert (tmp_path / "saved" / "preprocessor_config.json").exists()
    assert load_model(tmp_path / "saved", device="cpu")[0].dtype == torch.bfloat16
