"""Each rule against its formula, and what a budget buys."""

import pytest
import torch

from palora.algebra.decomposition import decompose
from palora.algebra.rules import RULES, Budget, Evidence, check_rule
from palora.algebra.statistics import factorise, mixed
from palora.common.errors import InputError


@pytest.fixture
def evidence():
    W = torch.randn(10, 16)
    X = torch.randn(40, 16) * torch.logspace(0, -2, 16)
    C = X.T @ X
    scales = 1 + torch.linspace(0.01, 0.10, 10) * torch.tensor([1, -1] * 5)  # grows with the index, both signs
    return Evidence(decompose(W), scales, factorise(C / C.trace()), torch.Generator().manual_seed(0))


def test_svf_takes_what_the_expert_moved_most_in_either_direction(evidence):
    chosen = RULES["svf"](evidence, Budget(k=3), "both")
    assert chosen.indices.tolist() == [7, 8, 9]
    d = evidence.decomposition
    assert torch.equal(chosen.subspace.input, d.Vh[[7, 8, 9]].T) and torch.equal(
        chosen.subspace.output, d.U[:, [7, 8, 9]]
    )
    assert chosen.scores.tolist() == pytest.approx((evidence.scales - 1).abs().tolist())


def test_sigma_takes_the_top_of_the_spectrum(evidence):
    assert RULES["sigma"](evidence, Budget(k=4), "both").indices.tolist() == [0, 1, 2, 3]


def test_random_is_seeded_and_differs_by_seed(evidence):
    def draw(seed):
        fresh = Evidence(evidence.decomposition, None, None, torch.Generator().manual_seed(seed))
        return RULES["random"](fresh, Budget(k=5), "both").indices.tolist()

    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_activation_is_the_best_basis_of_its_size_for_the_energy(evidence):
    V = RULES["activation"](evidence, Budget(k=4), "input").subspace.input
    covered = evidence.statistics.coverage(V)
    assert covered == pytest.approx(float(evidence.statistics.spectrum[1][:4].sum()), rel=1e-5)
    for _ in range(20):
        other = torch.linalg.qr(torch.randn(16, 4)).Q
        assert evidence.statistics.coverage(other) < covered


def test_activation_share_is_a_share_of_the_input_energy(evidence):
    V = RULES["activation"](evidence, Budget(share=0.9), "input").subspace.input
    assert evidence.statistics.coverage(V) >= 0.9 - 1e-6
    assert evidence.statistics.coverage(V[:, :-1]) < 0.9


def test_activation_counts_what_a_truncated_factor_leaves_out(evidence):
    """fraction is of all n inputs, share of all their energy; what the factor does not hold cannot be protected."""
    C = evidence.statistics.factor @ evidence.statistics.factor.T
    few = Evidence(None, None, factorise(C, directions=6), torch.Generator())
    V = RULES["activation"](few, Budget(fraction=0.25), "input").subspace.input
    assert V.shape == (16, 4)
    covered = few.statistics.coverage(few.statistics.spectrum[0])
    V = RULES["activation"](few, Budget(share=0.9 * covered), "input").subspace.input
    assert few.statistics.coverage(V) >= 0.9 * covered - 1e-6
    with pytest.raises(InputError, match="more than the 6 directions at hand"):
        RULES["activation"](few, Budget(share=(1 + covered) / 2), "input")
    with pytest.raises(InputError, match="k = 7 is larger"):
        RULES["activation"](few, Budget(k=7), "input")


def test_covariance_weights_and_strength(evidence):
    weak = RULES["covariance"](evidence, Budget(strength=0.1), "input")
    strong = RULES["covariance"](evidence, Budget(strength=10.0), "input")
    relative = 16 * evidence.statistics.spectrum[1] / evidence.statistics.trace
    assert weak.scores.tolist() == pytest.approx((0.1 * relative / (1 + 0.1 * relative)).tolist(), rel=1e-5)
    assert (strong.scores > weak.scores).all() and strong.scores.max() < 1
    assert weak.subspace.output is None


@pytest.mark.parametrize("directions", [16, 5])
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_covariance_is_the_inverse_it_claims_to_be(evidence, directions, strength):
    """A (I + g·n·C / tr C)⁻¹ by dense algebra, also where C is known by some directions and the rest evenly spread."""
    G = evidence.statistics.factor
    own = factorise(G @ G.T, directions)
    C = own.factor.double() @ own.factor.double().T + own.tail * torch.eye(16, dtype=torch.float64)
    dense = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + strength * 16 * C / C.trace())
    chosen = RULES["covariance"](Evidence(None, None, own, torch.Generator()), Budget(strength=strength), "input")
    A = torch.randn(4, 16)
    folded = chosen.subspace.project_input(A)
    assert torch.allclose(folded.double(), A.double() @ dense, atol=1e-5)
    assert (chosen.subspace.scale < 1) == (directions < 16), "outside the kept directions it is one number"
    assert torch.allclose(chosen.subspace.unproject_input(folded), A, atol=1e-3)


def test_a_mixture_is_protected_as_its_sum_is(evidence):
    other = factorise(torch.diag(torch.logspace(0, -2, 16)))
    both = mixed([(1.0, evidence.statistics), (2.0, other)])
    C = both.factor.double() @ both.factor.double().T
    whole = factorise(C)
    A = torch.randn(4, 16)
    found, expected = (
        RULES["covariance"](Evidence(None, None, s, torch.Generator()), Budget(strength=3.0), "input").subspace
        for s in (both, whole)
    )
    assert torch.allclose(found.project_input(A), expected.project_input(A), atol=1e-5)


@pytest.mark.parametrize("sides", ["both", "input", "output"])
def test_sides(evidence, sides):
    subspace = RULES["sigma"](evidence, Budget(k=2), sides).subspace
    assert (subspace.input is not None) == (sides != "output")
    assert (subspace.output is not None) == (sides != "input")


def test_none_protects_nothing(evidence):
    subspace = RULES["none"](evidence, Budget(), "both").subspace
    assert subspace.input is None and subspace.output is None


def test_budgets():
    importance = torch.tensor([5.0, 1.0, 3.0, 1.0])
    assert Budget(k=4).count(importance) == 4
    assert Budget(fraction=0.5).count(importance) == 2
    assert Budget(fraction=0.01).count(importance) == 1
    assert Budget(share=0.5).count(importance) == 1
    assert Budget(share=0.8).count(importance) == 2
    assert Budget(share=0.81).count(importance) == 3
    assert Budget(share=1.0).count(importance) == 4
    with pytest.raises(InputError, match="k = 5 is larger than the rank 4"):
        Budget(k=5).count(importance)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": 3, "share": 0.5}, "one of k, fraction"),
        ({"k": 0}, "at least 1"),
        ({"fraction": 0}, "over 0"),
        ({"share": 1.5}, "at most 1"),
        ({"strength": -1}, "over 0"),
    ],
)
def test_wrong_budgets(values, message):
    with pytest.raises(InputError, match=message):
        Budget(**values)


@pytest.mark.parametrize(
    ("rule", "budget", "sides", "message"),
    [
        ("oplora", {"k": 1}, None, "unknown rule"),
        ("svf", {}, None, "needs k, fraction or share"),
        ("svf", {"strength": 1}, None, "strength belongs to the soft rules"),
        ("covariance", {"k": 3}, None, "takes a strength, not k"),
        ("activation", {"k": 3}, "both", "input side only"),
        ("random", {"share": 0.5}, None, "no share"),
        ("none", {"k": 3}, None, "takes no k"),
        ("sigma", {"k": 3}, "left", "unknown sides"),
    ],
)
def test_what_does_not_go_together(rule, budget, sides, message):
    with pytest.raises(InputError, match=message):
        check_rule(rule, Budget(**budget), sides)


def test_the_defaults_of_a_rule():
    assert check_rule("svf", Budget(k=1), None) == (Budget(k=1), "both")
    assert check_rule("activation", Budget(k=1), None) == (Budget(k=1), "input")
    assert check_rule("covariance", Budget(strength=1), None) == (Budget(strength=1), "input")
    assert check_rule("covariance", Budget(), None) == (Budget(strength=1), "input")


def test_rules_say_what_they_miss(evidence):
    bare = Evidence(evidence.decomposition, None, None, torch.Generator())
    with pytest.raises(InputError, match="needs an expert"):
        RULES["svf"](bare, Budget(k=1), "both")
    with pytest.raises(InputError, match="something to keep"):
        RULES["activation"](bare, Budget(k=1), "input")
