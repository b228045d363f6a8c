"""How the small model was trained: the batches, the record, and that a model of another size is one option away."""

import torch
from transformers import AutoModelForCausalLM

from palora.common.files import read_json
from palora.testbed import train as training
from palora.testbed.world import known_facts


def trained(out, monkeypatch, group):
    monkeypatch.setattr(training, "GROUP", group)
    monkeypatch.setattr(training, "measure", lambda *_, **__: {})
    training.train(out, steps=3, layers=1, width=32, learning_rate=0.1, bf16=False, seed=0, log_every=3)
    return AutoModelForCausalLM.from_pretrained(out)


def test_groups_of_like_length_are_the_same_step(tmp_path, monkeypatch):
    """The loss is the mean over the answer tokens of the whole batch, however it is cut."""
    whole, parts = (trained(tmp_path / str(group), monkeypatch, group) for group in (96, 16))
    torch.manual_seed(0)
    start = training.build_model(1, 32)
    for (name, a), b, c in zip(whole.named_parameters(), parts.parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b, atol=3e-4), name
        assert (a - c).abs().max() > 1e-3, "it was trained"
    losses = [read_json(tmp_path / str(group) / "training.json")["curve"][-1]["loss"] for group in (96, 16)]
    assert abs(losses[0] - losses[1]) < 1e-4


def test_the_record_says_how(tmp_path, monkeypatch):
    trained(tmp_path, monkeypatch, 32)
    record = read_json(tmp_path / "training.json")
    assert record["command"].endswith("--steps 3 --layers 1 --width 32 --learning-rate 0.1 --seed 0")
    assert record["parameters"] == sum(p.numel() for p in training.build_model(1, 32).parameters())
    assert len((tmp_path / "known_facts.jsonl").read_text().splitlines()) == len(known_facts())
