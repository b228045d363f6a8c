"""Covariance, coverage and drift, against sums done row by row in float64."""

import pytest
import torch
from reference import covariance, drift
from torch import nn

from palora.algebra.rules import RULES, Budget, Evidence
from palora.algebra.statistics import (
    MAX_EXACT,
    Covariance,
    InputStatistics,
    KeptInputs,
    Statistics,
    factorise,
    mixed,
    shortened,
)
from palora.common.errors import InputError
from palora.common.settings import ProtectSettings
from palora.data.skills import get_skill
from palora.language.collect import collect, shared_inputs
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


def dense(statistics):
    """C (n, n) as the statistics hold it."""
    G = statistics.factor.double()
    return G @ G.T + statistics.tail * torch.eye(len(G), dtype=torch.float64)


def gathered(model, examples=EXAMPLES, **changes):
    targets = find_targets(model)
    inputs = shared_inputs(model, targets)
    found = collect(model, targets, inputs, examples, **changes)
    return {name: found[key] for name, key in inputs.items()}


def test_collect_is_the_sum_over_real_tokens_but_the_first(model):
    """The first token of a text is left out: attention rests there, and its inputs are of another size."""
    found = gathered(model, batch_size=2)
    for name, module in find_targets(model).items():
        recorder = Recorder()
        handle = module.register_forward_pre_hook(recorder)
        for example in EXAMPLES:  # one at a time: no padding at all
            model(input_ids=torch.tensor([[*example.prompt, *example.answer]]))
        handle.remove()
        C = covariance(torch.cat([rows[1:] for rows in recorder.rows]).detach().numpy())
        C /= C.trace()
        assert abs(dense(found[name]).numpy() - C).max() < 1e-6
        assert found[name].trace == pytest.approx(1)


def test_gate_and_up_share_their_statistics(model):
    targets = find_targets(model)
    inputs = shared_inputs(model, targets)
    for layer in (0, 1):
        mlp = f"model.layers.{layer}.mlp."
        assert inputs[mlp + "up_proj"] == mlp + "gate_proj" == inputs[mlp + "gate_proj"]
        assert inputs[mlp + "down_proj"] == mlp + "down_proj"
    assert len(collect(model, targets, inputs, EXAMPLES)) == 4, "one sum an input, not one a matrix"


def test_collect_leaves_no_hooks_and_needs_text(model):
    targets = find_targets(model)
    inputs = shared_inputs(model, targets)
    collect(model, targets, inputs, EXAMPLES)
    assert all(not module._forward_pre_hooks for module in targets.values())
    for nothing in ([], [Example([5], [])]):
        with pytest.raises(InputError, match="no text"):
            collect(model, targets, inputs, nothing)


def test_collect_computes_no_logits(model, monkeypatch):
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: pytest.fail("logits of every token, for nothing"))
    gathered(model)


def test_inputs_that_are_no_numbers_are_refused(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(InputError, match=r"inputs of model\.layers\.0\.mlp\.down_proj are not finite"):
        gathered(model)


def test_factor_coverage_and_drift():
    X = torch.randn(50, 12) * torch.logspace(0, -2, 12)
    C = covariance(X.numpy())
    statistics = factorise(torch.tensor(C, dtype=torch.float32))
    assert (dense(statistics) - torch.tensor(C)).abs().max() < 1e-4 * C.trace()
    E, eigenvalues = statistics.spectrum
    assert (eigenvalues[:-1] >= eigenvalues[1:]).all()
    V = E[:, :3]
    assert statistics.coverage(V) == pytest.approx((V.double().numpy().T @ C @ V.double().numpy()).trace() / C.trace())
    assert statistics.coverage(torch.eye(12)) == pytest.approx(1)
    assert statistics.coverage(None) == 0
    W, change = torch.randn(7, 12), 0.1 * torch.randn(7, 12)
    assert statistics.drift(change, W) == pytest.approx(drift(change, W, C), rel=1e-4)


def test_a_truncated_factor_still_knows_the_whole_energy():
    """What is cut off counts as spread evenly: exact where it is (here), and never as nothing."""
    Q = torch.linalg.qr(torch.randn(6, 6)).Q
    C = Q @ torch.diag(torch.tensor([4.0, 3.0, 1.5, 1.5, 1.5, 1.5])) @ Q.T
    statistics = factorise(C, directions=2)
    assert statistics.factor.shape == (6, 2) and statistics.trace == pytest.approx(13)
    assert statistics.tail == pytest.approx(1.5, rel=1e-5)
    assert statistics.coverage(torch.eye(6)) == pytest.approx(1)
    assert statistics.coverage(Q[:, 3:4]) == pytest.approx(1.5 / 13, rel=1e-4)
    W, change = torch.randn(5, 6), torch.randn(5, 6)
    assert statistics.drift(change, W) == pytest.approx(drift(change, W, C.double().numpy()), rel=1e-4)
    outside = change @ (torch.eye(6) - Q[:, :2] @ Q[:, :2].T)
    assert statistics.drift(outside, W) > 0.1, "an update that avoids the leading directions drifts all the same"


def wide_rows(n=MAX_EXACT + 176, tokens=3000, decay=-1.0):
    """Rows whose covariance has eigenvalues i^(2 · decay) in some orthonormal basis."""
    generator = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    return torch.randn(tokens, n, generator=generator) * torch.arange(1, n + 1).float() ** decay @ Q.T


def stream(rows, **settings):
    sums = Covariance(rows.shape[1], **settings)
    for part in rows.split(700):
        sums.add(part)
    return sums


def test_a_wide_covariance_is_sketched_and_never_formed():
    rows = wide_rows()
    n = rows.shape[1]
    sums = stream(rows, sketch=200)
    assert sums.sum.shape == (n, 200)
    found = sums.statistics(directions=100)
    C = rows.double().T @ rows.double()
    exact = factorise(C / C.trace(), directions=100)
    assert found.factor.shape == (n, 100) and found.trace == pytest.approx(1, abs=1e-5)
    assert (found.spectrum[1][:10] / exact.spectrum[1][:10] - 1).abs().max() < 1e-2
    P, Q = (s.spectrum[0][:, :10] @ s.spectrum[0][:, :10].T for s in (found, exact))
    assert (P - Q).norm() < 0.05
    assert exact.tail < found.tail < 1.6 * exact.tail, "a sketch is a little short of the small eigenvalues"


def test_a_sketch_of_few_directions_is_exact():
    """Inputs that fill no more directions than the sketch has columns: nothing is lost."""
    rows = wide_rows()[:, :40] @ torch.randn(40, MAX_EXACT + 76, generator=torch.Generator().manual_seed(1))
    found = stream(rows, sketch=64).statistics(directions=64)
    C = rows.double().T @ rows.double()
    assert (dense(found) - C / C.trace()).abs().max() < 1e-6


@pytest.mark.parametrize("n", [256, MAX_EXACT])
def test_the_stream_in_float32_keeps_the_soft_rule_within_a_thousandth(n):
    """Against the same rule of a covariance in float64, at a strength of 1 and of 10."""
    rows = wide_rows(n, 2000, -0.7)
    C = rows.double().T @ rows.double()
    A = torch.randn(8, n, generator=torch.Generator().manual_seed(2))
    for strength in (1.0, 10.0):
        evidence = Evidence(None, None, stream(rows).statistics(), torch.Generator())
        found = RULES["covariance"](evidence, Budget(strength=strength), "input").subspace.project_input(A)
        dense_rule = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + strength * n * C / C.trace())
        exact = A.double() @ dense_rule
        assert (found.double() - exact).norm() < 1e-3 * exact.norm()


def test_one_token_in_200_does_not_hollow_the_statistics_out():
    """With inputs a hundred times as long as the others' it would be 98% of all energy, and all that is protected."""
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(199, 32, generator=generator)
    sink = 100 * ordinary.norm(dim=1).mean() * torch.nn.functional.normalize(torch.ones(1, 32))
    sums = Covariance(32)
    sums.add(torch.cat([ordinary, sink]))
    found = sums.statistics()
    V = RULES["activation"](Evidence(None, None, found, generator), Budget(share=0.95), "input").subspace.input
    passed = ordinary - ordinary @ V @ V.T
    assert found.coverage(V) > 0.95
    assert (passed.norm() / ordinary.norm()) ** 2 < 0.15
    assert torch.equal(shortened(ordinary), ordinary), "rows of a like length are not touched"


def test_a_direction_that_holds_most_of_the_energy_is_warned_of(model, tokenizer, caplog):
    keep = Keep([get_skill("chain")], examples=8)
    protect(model, tokenizer, ProtectSettings(rule="none"), keep)
    before = caplog.text.count("one direction holds over half")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = 300.0
    protect(model, tokenizer, ProtectSettings(rule="none"), keep)
    assert caplog.text.count("one direction holds over half") == before + 1
    assert "layer 1" in caplog.text


def test_a_mixture_is_the_weighted_sum_and_is_not_factorised():
    X, Y = torch.randn(30, 8), torch.randn(5, 8)
    C = [(Z.T @ Z).double() / Z.square().sum() for Z in (X, Y)]
    parts = [factorise(c, directions=q) for c, q in zip(C, (8, 3), strict=True)]
    found = mixed([(1.0, parts[0]), (3.0, parts[1])])
    expected = (dense(parts[0]) + 3 * dense(parts[1])) / 4
    assert torch.allclose(dense(found), expected, atol=1e-6) and found.factor.shape == (8, 11)
    assert mixed([(2.0, parts[0])]) is parts[0]
    E, eigenvalues = found.spectrum
    eye = torch.eye(E.shape[1])
    assert (E.T @ E - eye).abs().max() < 1e-5
    whole = E.double() * (eigenvalues.double() - found.tail) @ E.double().T
    assert torch.allclose(whole + found.tail * torch.eye(8), expected, atol=1e-6)


def test_what_is_kept_is_one_list_weighed_by_kind_and_survives_saving():
    a, b, c = (factorise(torch.diag(torch.tensor(d))) for d in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]))
    things = tuple(
        KeptInputs(kind, name, {"gate": own})
        for kind, name, own in [("skills", "one", a), ("skills", "two", c), ("text", "text", b)]
    )
    kept = Statistics(things, {"gate": "gate", "up": "gate"})
    found = kept.weighed({"skills": 3.0, "text": 1.0, "prompts": 9.0})
    assert found["up"] is found["gate"] and set(found) == {"gate", "up"}
    assert torch.allclose(dense(found["gate"]), torch.diag(torch.tensor([1.5 + 0.75, 0.75 + 1.0])).double() / 4)
    assert torch.allclose(dense(kept.skills()["up"]), torch.diag(torch.tensor([0.75, 0.25])).double())
    again = Statistics.from_tensors(kept.tensors(), kept.inputs)
    assert again.kinds == ["skills", "text"] and [t.name for t in again.things] == ["one", "two", "text"]
    for old, new in zip(kept.things, again.things, strict=True):
        assert torch.equal(old.of["gate"].factor, new.of["gate"].factor) and old.of["gate"].tail == new.of["gate"].tail
    with pytest.raises(InputError, match="nothing that is to be kept"):
        kept.weighed({"prompts": 1.0})
    assert Statistics().skills() == {} and not Statistics()


def test_energy_and_moment_agree_with_the_dense_sum():
    own = InputStatistics(torch.randn(9, 4), tail=0.3, orthogonal=False)
    A = torch.randn(3, 9)
    expected = A.double() @ dense(own) @ A.double().T
    assert torch.allclose(own.moment(A).double(), expected, rtol=1e-4)
    assert own.energy(A) == pytest.approx(float(expected.trace()), rel=1e-5)
