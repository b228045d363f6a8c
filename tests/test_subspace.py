"""The projection, the leak, and what the constraint guarantees."""

import numpy as np
import pytest
import torch
from reference import leak as reference_leak

from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.common.errors import InputError


def orthonormal(n, k):
    return torch.linalg.qr(torch.randn(n, k)).Q


@pytest.mark.parametrize("sides", ["both", "input", "output"])
def test_the_guarantee(sides):
    """(W + ΔW) v = W v and uᵀ (W + ΔW) = uᵀ W for protected v and u, in float64 algebra."""
    m, n, r, k = 24, 36, 5, 7
    W, A, B = torch.randn(m, n), torch.randn(r, n), torch.randn(m, r)
    V = orthonormal(n, k) if sides != "output" else None
    U = orthonormal(m, k) if sides != "input" else None
    subspace = ProtectedSubspace(V, U)
    change = (subspace.project_output(B) @ subspace.project_input(A)).double()
    if V is not None:
        assert ((W.double() + change) @ V.double() - W.double() @ V.double()).norm() < 1e-5 * change.norm()
    if U is not None:
        assert (U.double().T @ (W.double() + change) - U.double().T @ W.double()).norm() < 1e-5 * change.norm()
    expected = reference_leak(change, U, V)
    assert expected < 1e-6
    assert subspace.leak(change.float()) < 1e-6
    assert change.norm() > 0.1 * (B @ A).norm(), "the rest of the update is still there"


def test_leak_agrees_with_dense_algebra_where_it_is_not_zero():
    V, U, change = orthonormal(30, 6), orthonormal(20, 4), torch.randn(20, 30)
    assert ProtectedSubspace(V, U).leak(change) == pytest.approx(reference_leak(change, U, V), rel=1e-5)
    assert ProtectedSubspace(V).leak(change) == pytest.approx(reference_leak(change, None, V), rel=1e-5)
    assert ProtectedSubspace(V).leak(torch.zeros(20, 30)) == 0


def test_soft_projection_is_the_closed_form_and_unprojects():
    """A' = A (I + G)⁻¹ for G = E diag(g·l) Eᵀ, and back."""
    n, E = 20, orthonormal(20, 20).double()
    gl = torch.logspace(3, -3, n).double()
    V = (E * (gl / (1 + gl)).sqrt()).float()
    A = torch.randn(4, n)
    expected = A.double() @ torch.linalg.inv(torch.eye(n).double() + (E * gl) @ E.T)
    folded = ProtectedSubspace(V).project_input(A)
    assert (folded - expected).norm() < 1e-5 * A.norm()
    again = ProtectedSubspace(V).project_input(ProtectedSubspace(V).unproject_input(folded))
    assert (again - folded).norm() < 1e-4 * folded.norm()
    twice = ProtectedSubspace(V).project_input(folded)
    assert (twice - folded).norm() > 0.01 * folded.norm(), "soft folding is not idempotent: unprojecting matters"


def test_hard_unprojection_changes_nothing():
    V = orthonormal(20, 5)
    folded = ProtectedSubspace(V).project_input(torch.randn(3, 20))
    assert torch.equal(ProtectedSubspace(V).unproject_input(folded), folded)


def test_nothing_protected_changes_nothing():
    A, B = torch.randn(3, 8), torch.randn(6, 3)
    assert ProtectedSubspace().project_input(A) is A and ProtectedSubspace().project_output(B) is B
    assert ProtectedSubspace().leak(B @ A) == 0


def test_save_and_load(tmp_path):
    made = ProtectedSubspaces(
        {"a.b": ProtectedSubspace(orthonormal(9, 2), orthonormal(5, 2)), "c": ProtectedSubspace(orthonormal(4, 1))},
        {"rule": "svf", "hard": True, "modules": {"a.b": {}, "c": {}}},
    )
    made.save(tmp_path / "protection")
    loaded = ProtectedSubspaces.load(tmp_path / "protection")
    assert list(loaded) == ["a.b", "c"] and len(loaded) == 2 and loaded.hard
    assert torch.equal(loaded["a.b"].input, made["a.b"].input) and torch.equal(loaded["a.b"].output, made["a.b"].output)
    assert loaded["c"].output is None
    with pytest.raises(InputError, match="not a protection folder"):
        ProtectedSubspaces.load(tmp_path)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        ProtectedSubspaces({}, {"modules": {}}).save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert np.all([p.name == "thesis.tex" for p in tmp_path.iterdir()])
