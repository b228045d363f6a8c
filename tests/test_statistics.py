"""Covariance, coverage and drift, against sums done row by row in float64."""

import pytest
import torch
from reference import covariance, drift
from torch import nn

from palora.algebra.rules import Budget
from palora.algebra.statistics import collect, combine, factorise, from_tensors, groups, mix, to_tensors
from palora.common.errors import InputError
from palora.data.skills import get_skill
from palora.language.keep import Keep
from palora.language.prompts import Example
from palora.language.targets import find_targets
from palora.training.protection import protect


class Recorder(nn.Module):
    """Keeps every input of a linear layer, row by row."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __call__(self, module, arguments):
        self.rows.append(arguments[0].reshape(-1, arguments[0].shape[-1]).clone())


EXAMPLES = [Example([5, 6, 7], [8]), Example([9, 10], [11, 12, 13, 14]), Example([20], [21])]


def test_collect_is_the_sum_over_real_tokens_only(model):
    targets = find_targets(model)
    found = collect(model, targets, EXAMPLES, batch_size=2)
    for name, module in targets.items():
        recorder = Recorder()
        handle = module.register_forward_pre_hook(recorder)
        for example in EXAMPLES:  # one at a time: no padding at all
            model(input_ids=torch.tensor([[*example.prompt, *example.answer]]))
        handle.remove()
        C = covariance(torch.cat(recorder.rows).detach().numpy())
        C /= C.trace()
        assert abs(found[name].double().numpy() - C).max() < 1e-6


def test_collect_leaves_no_hooks_and_needs_text(model):
    targets = find_targets(model)
    collect(model, targets, EXAMPLES)
    assert all(not module._forward_pre_hooks for module in targets.values())
    with pytest.raises(InputError, match="no text"):
        collect(model, targets, [])


def test_factor_coverage_and_drift():
    X = torch.randn(50, 12) * torch.logspace(0, -2, 12)
    C = covariance(X.numpy())
    statistics = factorise(torch.tensor(C, dtype=torch.float32))
    assert (statistics.factor @ statistics.factor.T - torch.tensor(C)).abs().max() < 1e-4 * C.trace()
    assert (statistics.eigenvalues[:-1] >= statistics.eigenvalues[1:]).all()
    V = statistics.directions[:, :3]
    assert statistics.coverage(V) == pytest.approx((V.double().numpy().T @ C @ V.double().numpy()).trace() / C.trace())
    assert statistics.coverage(torch.eye(12)) == pytest.approx(1)
    assert statistics.coverage(None) == 0
    W, change = torch.randn(7, 12), 0.1 * torch.randn(7, 12)
    assert statistics.drift(change, W) == pytest.approx(drift(change, W, C), rel=1e-4)


def test_a_truncated_factor_still_knows_the_whole_energy():
    """What is cut off counts as spread evenly: exact where it is (here), and never as nothing."""
    Q = torch.linalg.qr(torch.randn(6, 6)).Q
    C = Q @ torch.diag(torch.tensor([4.0, 3.0, 1.5, 1.5, 1.5, 1.5])) @ Q.T
    statistics = factorise(C, max_directions=2)
    assert statistics.factor.shape == (6, 2) and statistics.trace == pytest.approx(13)
    assert statistics.coverage(torch.eye(6)) == pytest.approx(1)
    assert statistics.coverage(Q[:, 3:4]) == pytest.approx(1.5 / 13, rel=1e-4)
    W, change = torch.randn(5, 6), torch.randn(5, 6)
    assert statistics.drift(change, W) == pytest.approx(drift(change, W, C.double().numpy()), rel=1e-4)
    outside = change @ (torch.eye(6) - Q[:, :2] @ Q[:, :2].T)
    assert statistics.drift(outside, W) > 0.1, "an update that avoids the leading directions drifts all the same"


def test_a_wide_covariance_is_factorised_by_subspace_iteration(monkeypatch):
    X = torch.randn(300, 60) * torch.logspace(0, -2, 60)
    C = (X.T @ X).double()
    exact = factorise(C, max_directions=10)
    monkeypatch.setattr("palora.algebra.statistics.MAX_EXACT", 50)
    found = factorise(C, max_directions=10)
    assert found.trace == exact.trace
    assert (found.eigenvalues[:8] / exact.eigenvalues[:8] - 1).abs().max() < 1e-4
    P, Q = (s.directions[:, :8] @ s.directions[:, :8].T for s in (found, exact))
    assert (P - Q).norm() < 1e-2


def test_a_model_too_large_for_one_pass_is_collected_in_groups(model, tokenizer, monkeypatch):
    targets = find_targets(model)
    assert len(groups(targets)) == 1
    assert [len(group) for group in groups(targets, max_bytes=2 * 8 * 32**2)] == [2, 1, 2, 1], "down_proj has 48 inputs"
    assert [len(group) for group in groups(targets, max_bytes=1)] == [1] * 6
    keep = Keep([get_skill("chain")], examples=16)
    whole, _ = protect(model, tokenizer, "activation", Budget(k=4), keep=keep)
    monkeypatch.setattr("palora.algebra.statistics.groups.__defaults__", (1,))
    parts, _ = protect(model, tokenizer, "activation", Budget(k=4), keep=keep)
    for name in whole:
        assert torch.equal(whole[name].input, parts[name].input)


def test_mix_weighs_and_survives_saving():
    a, b = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    mixed = mix([(3.0, {"x": a}), (1.0, {"x": b})])
    assert mixed["x"].eigenvalues.tolist() == pytest.approx([0.75, 0.25])
    again = from_tensors(to_tensors({"skills": mixed, "text": mixed}))
    assert set(again) == {"skills", "text"}
    own = again["skills"]["x"]
    assert torch.equal(own.factor, mixed["x"].factor) and own.trace == mixed["x"].trace


def test_kinds_are_combined_as_their_covariances_would_be():
    X, Y = torch.randn(30, 8), torch.randn(5, 8)
    C = {kind: (Z.T @ Z).double() / Z.square().sum() for kind, Z in (("skills", X), ("known_facts", Y))}
    kinds = {kind: {"x": factorise(c)} for kind, c in C.items()}
    found = combine(kinds, {"skills": 1.0, "known_facts": 3.0, "text": 9.0})["x"]
    assert torch.allclose((found.factor @ found.factor.T).double(), (C["skills"] + 3 * C["known_facts"]) / 4, atol=1e-6)
    assert found.trace == pytest.approx(1.0)
    assert combine(kinds, {"skills": 0.0, "known_facts": 3.0})["x"] is kinds["known_facts"]["x"]
    with pytest.raises(InputError, match="nothing that is to be kept"):
        combine(kinds, {"text": 1.0})
