"""W = U diag(s) Vᵀ, exact and orthonormal, whatever the shape and rank."""

import json

import numpy as np
import pytest
import torch
from command import palora
from reference import svd
from torch import nn

from palora.algebra.decomposition import Decomposition, by_gram, decompose, decompose_each
from palora.common.errors import InputError

SHAPES = [(32, 48), (48, 32), (40, 40), (7, 200), (200, 7), (1, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("how", [decompose, lambda W: Decomposition(*by_gram(W))], ids=["lapack", "gram"])
def test_reconstruction_and_orthogonality(shape, rank, how):
    m, n = shape
    W = torch.randn(m, n) if rank is None else torch.randn(m, min(rank, m)) @ torch.randn(min(rank, m), n)
    d = how(W)
    r = min(m, n)
    assert d.U.shape == (m, r) and d.s.shape == (r,) and d.Vh.shape == (r, n) and d.rank == r
    assert (d.U * d.s @ d.Vh - W).norm() <= 1e-5 * W.norm()
    eye = torch.eye(r)
    assert (d.U.T @ d.U - eye).abs().max() < 1e-5
    assert (d.Vh @ d.Vh.T - eye).abs().max() < 1e-5
    assert (d.s[:-1] >= d.s[1:]).all()


def test_agrees_with_an_independent_svd():
    W = torch.randn(30, 20, dtype=torch.float64)
    d = decompose(W)
    U, s, V = svd(W.numpy())
    assert np.allclose(d.s.numpy(), s, atol=1e-4)
    for i in range(20):  # each component up to a common sign
        ours = np.outer(d.U[:, i], d.Vh[i])
        assert np.allclose(ours, np.outer(U[:, i], V[:, i]), atol=2e-3)


def test_bfloat16_weights_are_decomposed_in_float32():
    W = torch.randn(20, 30).to(torch.bfloat16)
    d = decompose(W)
    assert d.s.dtype == torch.float32
    assert (d.U * d.s @ d.Vh - W.float()).norm() <= 1e-5 * W.float().norm()


def test_nan_is_refused():
    W = torch.randn(4, 4)
    W[1, 2] = float("nan")
    with pytest.raises(InputError, match=r"layer: .*NaN"):
        dict(decompose_each({"layer": W}.items()))


def test_the_cache_is_used_checked_and_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("PALORA_CACHE", str(tmp_path))
    layer = nn.Linear(12, 8, bias=False)
    first = dict(decompose_each({"a": layer.weight.detach()}.items()))["a"]
    [file] = tmp_path.glob("svd-*.safetensors")
    monkeypatch.setattr("palora.algebra.decomposition.decompose", lambda matrix: pytest.fail("not from the cache"))
    second = dict(decompose_each({"a": layer.weight.detach()}.items()))["a"]
    assert torch.equal(first.U, second.U) and torch.equal(first.s, second.s)
    monkeypatch.undo()
    monkeypatch.setenv("PALORA_CACHE", str(tmp_path))
    file.write_bytes(b"cut short")
    repaired = dict(decompose_each({"a": layer.weight.detach()}.items()))["a"]
    assert torch.equal(first.U, repaired.U) and file.stat().st_size > 100


def test_a_weight_that_differs_below_bfloat16_does_not_get_the_other_ones_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PALORA_CACHE", str(tmp_path))
    layer, near = nn.Linear(12, 8, bias=False), nn.Linear(12, 8, bias=False)
    near.weight.data = layer.weight.data * (1 + 1e-4)
    dict(decompose_each({"a": layer.weight.detach()}.items()))
    d = dict(decompose_each({"a": near.weight.detach()}.items()))["a"]
    assert (d.U * d.s @ d.Vh - near.weight).norm() <= 1e-5 * near.weight.norm()


def test_the_cache_can_be_seen_and_cleared(tmp_path, monkeypatch):
    monkeypatch.setenv("PALORA_CACHE", str(tmp_path / "cache"))
    dict(decompose_each({"W": torch.randn(6, 4)}.items()))
    other = tmp_path / "cache" / "mine.txt"
    other.write_text("kept")
    (file,) = (tmp_path / "cache").glob("svd-*")
    told = json.loads(palora("cache", "--json").out)
    assert told == {"folder": str(tmp_path / "cache"), "files": 1, "bytes": file.stat().st_size, "cleared": False}
    assert json.loads(palora("cache", "--clear", "--json").out) == {**told, "cleared": True}
    assert not file.exists() and other.exists(), "only what is ours"
    assert json.loads(palora("cache", "--json").out)["files"] == 0
    monkeypatch.setenv("PALORA_CACHE", "")
    assert json.loads(palora("cache", "--json").out)["folder"] == "none"
