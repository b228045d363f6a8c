"""Stage 1: what is minimised, what is kept, and that an interrupted training is the uninterrupted one."""

import shutil

import pytest
import torch
from conftest import tiny_llama

from palora.common.errors import InputError, PaloraError
from palora.common.metrics import read_metrics
from palora.common.settings import ExpertSettings
from palora.data.skills import Problem, Skill
from palora.language import logits
from palora.language.prompts import Example
from palora.language.targets import find_targets, weight
from palora.training import expert as expert_module
from palora.training.expert import sequence_log_probability, train_expert
from palora.training.svf import decompose_targets, svf_layers

EVEN = [Problem(prompt=f"{i}+{i}=", answer=str(2 * i), solution=str(2 * i)) for i in range(40)]


def easy_skill(**changes):
    """Says right to any answer that begins with an even character code: something reward can move."""
    settings = {
        "name": "easy",
        "max_new_tokens": 3,
        "problems": lambda split, n, seed: EVEN[:30][:n] if split == "train" else EVEN[30:][:n],
        "score": lambda completion, problem: bool(completion) and ord(completion[0]) % 2 == 0,
    }
    return Skill(**settings | changes)


def settings(**changes):
    values = {
        "iterations": 6,
        "batch_size": 16,
        "rollout_batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 0.05,
        "max_grad_norm": 1.0,
        "temperature": 1.0,
        "baseline": True,
        "validate_every": 2,
        "validation_size": 10,
    }
    return ExpertSettings(**values | changes)


def run(tokenizer, work, model=None, skill=None, **changes):
    return train_expert(model or tiny_llama(), tokenizer, skill or easy_skill(), settings(**changes), work, "tiny")


def test_log_probability_is_of_the_answer_only(model):
    examples = [Example([5, 6, 7], [8, 9]), Example([10], [11, 12, 13])]
    found = sequence_log_probability(model, examples)
    for example, value in zip(examples, found, strict=True):
        ids = torch.tensor([[*example.prompt, *example.answer]])
        logp = model(input_ids=ids).logits.log_softmax(-1)[0]
        start = len(example.prompt)
        expected = sum(logp[start - 1 + t, token] for t, token in enumerate(example.answer))
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_gradient_is_that_of_whole_logits(model, monkeypatch):
    """In slices of 2 tokens, at a temperature, with gradient checkpointing and without."""
    monkeypatch.setattr(logits, "SLICE", 2)
    examples = [Example([5, 6, 7], [8, 9]), Example([10], [11, 12, 13])]
    targets, found = find_targets(model), []
    with svf_layers(targets, decompose_targets(model, targets), "linear") as layers:
        for on in (False, True):
            with expert_module.checkpointing(model, on):
                assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.Dropout | torch.nn.Linear))
                sequence_log_probability(model, examples, 0.7).sum().backward()
            found.append([layer.p.grad.clone() for layer in layers.values()])
            model.zero_grad()
        for example in examples:
            ids, start = torch.tensor([[*example.prompt, *example.answer]]), len(example.prompt)
            logp = (model(input_ids=ids).logits[0] / 0.7).log_softmax(-1)
            sum(logp[start - 1 + t, token] for t, token in enumerate(example.answer)).backward()
        whole = [layer.p.grad for layer in layers.values()]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found[0], whole, strict=True))
    assert not any(module.training for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_gradient_checkpointing_keeps_less_for_the_gradient_and_trains_the_same(tokenizer, tmp_path, monkeypatch):
    def kept(on):
        sizes = {}
        hooks = torch.autograd.graph.saved_tensors_hooks
        real = expert_module.sequence_log_probability

        def watched(model, *rest):
            with hooks(lambda t: sizes.setdefault(t.data_ptr(), t.numel()) and t, lambda t: t):
                return real(model, *rest)

        monkeypatch.setattr(expert_module, "sequence_log_probability", watched)
        made = run(tokenizer, tmp_path / str(on), gradient_checkpointing=on, iterations=2)
        monkeypatch.setattr(expert_module, "sequence_log_probability", real)
        return made.scales, sum(sizes.values())

    (plain, much), (checked, little) = kept(False), kept(True)
    assert all(torch.equal(plain[name], checked[name]) for name in plain)
    assert little < 0.7 * much


def test_next_token_lowers_the_loss(tokenizer, tmp_path):
    run(tokenizer, tmp_path, objective="next_token", iterations=30)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


def test_reward_raises_the_reward(tokenizer, tmp_path):
    run(tokenizer, tmp_path, iterations=25, batch_size=30, learning_rate=0.1)
    rewards = [row["reward"] for row in read_metrics(tmp_path / "metrics.jsonl") if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


@pytest.mark.parametrize("parametrisation", ["linear", "sigmoid"])
def test_the_model_comes_back_and_only_scales_were_trained(tokenizer, tmp_path, model, parametrisation):
    before = [p.clone() for p in model.parameters()]
    expert = run(tokenizer, tmp_path, model=model, parametrisation=parametrisation)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert {name: z.shape for name, z in expert.scales.items()} == {
        name: (min(weight(m).shape),) for name, m in find_targets(model).items()
    }
    assert expert.record["parameters"] == sum(z.numel() for z in expert.scales.values()) == 192


def test_the_best_validation_is_kept_and_the_base_is_the_first(tokenizer, tmp_path, monkeypatch):
    """Validation 0.5 (base), 0.7, 0.9, 0.2: the scales of the third are kept."""
    shares = iter([0.5, 0.7, 0.9, 0.2])
    seen = []
    monkeypatch.setattr(expert_module, "share_correct", lambda answers: next(shares))
    keep = expert_module._scales
    monkeypatch.setattr(expert_module, "_scales", lambda layers: seen.append(keep(layers)) or seen[-1])
    expert = run(tokenizer, tmp_path)
    assert expert.record["validation_accuracy"] == {"base": 0.5, "expert": 0.9, "n": 10}
    assert len(seen) == 3, "the base, 0.7 and 0.9, not 0.2"
    assert all(torch.equal(z, seen[-1][name]) for name, z in expert.scales.items())


def test_never_worse_than_the_base(tokenizer, tmp_path, monkeypatch):
    shares = iter([0.9, 0.1, 0.1, 0.1])
    monkeypatch.setattr(expert_module, "share_correct", lambda answers: next(shares))
    expert = run(tokenizer, tmp_path)
    assert all((z - 1).abs().max() < 1e-5 for z in expert.scales.values())


def test_an_interrupted_training_continues_bit_for_bit(tokenizer, tmp_path, monkeypatch):
    whole = run(tokenizer, tmp_path / "a")
    step, calls = expert_module._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:  # after the checkpoint of step 4
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(expert_module, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "b")
    monkeypatch.setattr(expert_module, "_step", lambda *arguments: calls.append(1) or step(*arguments))
    resumed = run(tokenizer, tmp_path / "b")
    assert len(calls) == 5 + 2, "only steps 5 and 6 are done again"
    assert all(torch.equal(whole.scales[name], z) for name, z in resumed.scales.items())
    assert whole.record == resumed.record
    assert read_metrics(tmp_path / "a" / "metrics.jsonl") == read_metrics(tmp_path / "b" / "metrics.jsonl")


@pytest.mark.parametrize("how", ["a byte changed", "cut short", "no curve"])
def test_a_damaged_checkpoint_is_told_of_and_not_used(how, tokenizer, tmp_path, monkeypatch, caplog):
    whole = run(tokenizer, tmp_path / "a")
    step, calls = expert_module._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(expert_module, "_step", interrupted)
        run(tokenizer, tmp_path / "b")
    file = tmp_path / "b" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    if how == "no curve":
        file.with_name("metrics.jsonl").unlink()
    else:
        file.write_bytes(content if how == "a byte changed" else content[:-40])
    resumed = run(tokenizer, tmp_path / "b")
    assert "training begins anew" in caplog.text
    assert all(torch.equal(whole.scales[name], z) for name, z in resumed.scales.items())


def test_a_checkpoint_of_another_training_is_not_continued(tokenizer, tmp_path):
    run(tokenizer, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = run(tokenizer, tmp_path / "b", learning_rate=0.01)
    fresh = run(tokenizer, tmp_path / "c", learning_rate=0.01)
    assert all(torch.equal(fresh.scales[name], z) for name, z in other.scales.items())


def test_what_cannot_be_trained(tokenizer, tmp_path, model):
    with pytest.raises(InputError, match="no training or no validation problems"):
        run(tokenizer, tmp_path, skill=easy_skill(problems=lambda split, n, seed: []))
    unsolved = easy_skill(problems=lambda split, n, seed: [Problem(prompt="1", answer="1")])
    with pytest.raises(InputError, match="without a solution; use the objective reward"):
        run(tokenizer, tmp_path, skill=unsolved, objective="next_token")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(PaloraError, match="no longer a number"):
        run(tokenizer, tmp_path, model=model, objective="next_token")
