"""W(z), the effective scale, and the expert."""

import pytest
import torch
from conftest import tiny_llama
from torch.nn.utils import parametrize
from transformers import GPT2Config, GPT2LMHeadModel

from palora.algebra.decomposition import decompose
from palora.algebra.scales import effective_scale
from palora.common.errors import InputError
from palora.language.models import fingerprints
from palora.language.targets import find_targets, weight
from palora.training.svf import Expert, components, decompose_targets, svf_layers

IDS = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parametrisation", ["linear", "sigmoid"])
def test_an_untrained_expert_is_the_base_exactly(model, parametrisation):
    targets = find_targets(model)
    before = model(input_ids=IDS).logits
    with svf_layers(targets, decompose_targets(model, targets), parametrisation) as layers:
        for layer in layers.values():
            assert layer.scale().tolist() == pytest.approx([1.0] * layer.s.numel(), abs=1e-6)
        assert (model(input_ids=IDS).logits - before).abs().max() < 1e-5
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_the_sigmoid_scale_is_renormalised():
    """Σ s·z_eff = Σ s: a common factor of z means nothing, and z_eff is what really multiplies s."""
    s = torch.tensor([4.0, 2.0, 1.0])
    p = torch.tensor([2.0, -1.0, 0.5])
    z = torch.sigmoid(p)
    found = effective_scale(p, s, "sigmoid")
    assert float((s * found).sum()) == pytest.approx(7.0)
    assert found.tolist() == pytest.approx((z * 7.0 / float((s * z).sum())).tolist())
    constant = effective_scale(torch.full((3,), 1.7), s, "sigmoid")
    assert constant.tolist() == pytest.approx([1, 1, 1]), "a raw sigmoid of 0.85 moves nothing"


def test_w_of_z_is_u_diag_sz_vt(model):
    targets = find_targets(model)
    name, module = next(iter(targets.items()))
    W = weight(module).clone().double()
    with svf_layers(targets, decompose_targets(model, targets), "linear") as layers:
        with torch.no_grad():
            layers[name].p.copy_(1 + 0.3 * torch.randn_like(layers[name].p))
        z = layers[name].scale().detach().double()
        changed = module.weight.detach().double()
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    expected = U @ torch.diag(s * z) @ Vh
    assert (changed - expected).norm() < 1e-5 * W.norm()


def test_the_gradient_of_a_scale(model):
    """dL/dz_i = s_i u_iᵀ (dL/dW) v_i."""
    targets = find_targets(model)
    name, module = list(targets.items())[-1]
    with svf_layers(targets, decompose_targets(model, targets), "linear") as layers:
        model(input_ids=IDS, labels=IDS).loss.backward()
        found = layers[name].p.grad.clone()
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    d = decompose(weight(module))
    expected = torch.stack([d.s[i] * d.U[:, i] @ module.weight.grad @ d.Vh[i] for i in range(d.rank)])
    assert (found - expected).norm() < 1e-4 * expected.norm()


def expert_for(model):
    targets = find_targets(model)
    scales = {name: 1 + 0.2 * torch.randn(min(weight(m).shape)) for name, m in targets.items()}
    return Expert(scales, {"fingerprints": fingerprints(targets), "skill": "chain"})


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_apply_is_w_of_z_in_place(architecture):
    if architecture == "gpt2":  # stores the transpose
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99, n_positions=64)).eval()
    else:
        model = tiny_llama()
    targets = find_targets(model)
    expert = expert_for(model)
    before = {name: decompose(weight(m)) for name, m in targets.items()}
    expert.apply(model)
    for name, module in targets.items():
        d, z = before[name], expert.scales[name]
        assert (weight(module) - d.U * (d.s * z) @ d.Vh).norm() < 1e-5 * d.s.norm()


def test_expert_survives_saving_and_refuses_another_model(model, tmp_path):
    made = expert_for(model)
    made.save(tmp_path / "expert")
    loaded = Expert.load(tmp_path / "expert")
    assert {key: loaded.record[key] for key in made.record} == made.record
    assert all(torch.equal(loaded.scales[name], z) for name, z in made.scales.items())
    other = tiny_llama()
    name, module = next(iter(find_targets(other).items()))
    module.weight.data[0, 0] += 1
    before = weight(module).clone()
    with pytest.raises(InputError, match=f"other weights: {name}"):
        loaded.apply(other, "other")
    assert torch.equal(weight(module), before)
    with pytest.raises(InputError, match="not an expert folder"):
        Expert.load(tmp_path)


def test_the_components_of_the_scales_are_the_original_models_whichever_model_is_at_hand(
    tmp_path, tokenizer, monkeypatch
):
    """From the cache, and where it is gone from the original model."""
    folder = tmp_path / "original"
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    original, expert_model = tiny_llama(), tiny_llama()
    targets = find_targets(original)
    made = expert_for(original)
    expert = Expert(made.scales, {**made.record, "model": str(folder)})
    expected = decompose_targets(original, targets)
    expert.apply(expert_model)
    for cache in ("kept", "gone"):
        if cache == "gone":
            monkeypatch.setenv("PALORA_CACHE", "")
        found = components(expert, expert_model, find_targets(expert_model))
        for name, d in expected.items():
            assert torch.allclose(found[name].s, d.s, rtol=1e-5)
            assert (found[name].Vh @ d.Vh.T).abs().diagonal().min() > 0.999, cache


def test_changed_scales_are_seen(model, tmp_path):
    expert_for(model).save(tmp_path / "expert")
    file = tmp_path / "expert" / "scales.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"scales\.safetensors has changed since it was written; put it back"):
        Expert.load(tmp_path / "expert")
