"""W(z), the effective scale, and the expert."""

import pytest
import torch
from conftest import tiny_llama
from torch.nn.utils import parametrize
from transformers import GPT2Config, GPT2LMHeadModel

from palora.algebra.decomposition import decompose
from palora.algebra.scales import effective_scale, expert_delta
from palora.common.errors import InputError
from palora.language.models import fingerprints
from palora.language.targets import find_targets, weight
from palora.training import svf
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


def made(architecture):
    if architecture == "gpt2":  # stores the transpose, and has biases
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99, n_positions=64)).eval()
    return tiny_llama()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_gradient_of_a_scale(architecture):
    """dL/dz_i = s_i u_iᵀ (dL/dW) v_i, at W(z)."""
    model = made(architecture)
    targets = find_targets(model)
    moved = {}
    with svf_layers(targets, decompose_targets(model, targets), "linear") as layers, torch.no_grad():
        for name, layer in layers.items():
            layer.p.add_(0.3 * torch.randn_like(layer.p))
            moved[name] = targets[name].weight.clone()
        with torch.enable_grad():
            model(input_ids=IDS, labels=IDS).loss.backward()
        found = {name: layer.p.grad.clone() for name, layer in layers.items()}
    ds = {name: decompose(weight(module)) for name, module in targets.items()}
    for name, module in targets.items():
        module.weight.data.copy_(moved[name])
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, module in targets.items():
        G = module.weight.grad.T if architecture == "gpt2" else module.weight.grad
        d = ds[name]
        expected = torch.stack([d.s[i] * d.U[:, i] @ G @ d.Vh[i] for i in range(d.rank)])
        assert (found[name] - expected).norm() < 1e-4 * expected.norm(), name


def test_w_of_z_is_built_once_for_every_z(model, monkeypatch):
    """Not for every batch, and not for every token of an answer."""
    built = []
    monkeypatch.setattr(svf, "expert_delta", lambda d, z: built.append(0) or expert_delta(d, z))
    targets = find_targets(model)
    with svf_layers(targets, decompose_targets(model, targets), "sigmoid") as layers:
        optimizer = torch.optim.Adam([layer.p for layer in layers.values()])
        for step in (1, 2):
            for _ in range(3):
                model(input_ids=IDS, labels=IDS).loss.backward()
                model.generate(IDS[:1], max_new_tokens=3, do_sample=False)
            assert len(built) == step * len(targets)
            optimizer.step()
            optimizer.zero_grad()


def test_a_half_precision_expert_keeps_u_and_v_in_that_precision():
    model = tiny_llama().bfloat16()
    targets = find_targets(model)
    with svf_layers(targets, decompose_targets(model, targets), "linear") as layers, torch.no_grad():
        exact = {name: decompose(weight(module)) for name, module in targets.items()}
        for layer in layers.values():
            layer.p.add_(0.3 * torch.randn_like(layer.p))
        for name, layer in layers.items():
            d, c = exact[name], layer.s * (layer.scale() - 1)
            expected = d.U * (d.s + c) @ d.Vh
            assert layer.U.dtype == layer.Vh.dtype == targets[name].weight.dtype == torch.bfloat16
            assert (targets[name].weight.float() - expected).norm() < 2**-7 * expected.norm()
        with torch.enable_grad():
            model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(layer.p.grad.dtype == torch.float32 and layer.p.grad.isfinite().all() for layer in layers.values())


def expert_for(model):
    targets = find_targets(model)
    scales = {name: 1 + 0.2 * torch.randn(min(weight(m).shape)) for name, m in targets.items()}
    return Expert(scales, {"fingerprints": fingerprints(targets), "skill": "chain"})


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_apply_is_w_of_z_in_place(architecture):
    model = made(architecture)
    targets = find_targets(model)
    expert = expert_for(model)
    before = {name: decompose(weight(m)) for name, m in targets.items()}
    expert.apply(model)
    for name, module in targets.items():
        d, z = before[name], expert.scales[name]
        assert (weight(module) - d.U * (d.s * z) @ d.Vh).norm() < 1e-5 * d.s.norm()


def test_expert_survives_saving_and_refuses_another_model(model, tmp_path):
    own = expert_for(model)
    own.save(tmp_path / "expert")
    loaded = Expert.load(tmp_path / "expert")
    assert {key: loaded.record[key] for key in own.record} == own.record
    assert all(torch.equal(loaded.scales[name], z) for name, z in own.scales.items())
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
    own = expert_for(original)
    expert = Expert(own.scales, {**own.record, "model": str(folder)})
    expected = dict(decompose_targets(original, targets))
    expert.apply(expert_model)
    for cache in ("kept", "gone"):
        if cache == "gone":
            monkeypatch.setenv("PALORA_CACHE", "")
        found = dict(components(expert, expert_model, find_targets(expert_model)))
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
