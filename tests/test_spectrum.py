"""Where a skill lives: every formula of docs/spectrum.md against dense float64 algebra, and the command."""

import json
import math

import numpy as np
import pytest
import torch
from command import palora, tree
from conftest import tiny_llama
from pydantic import ValidationError
from reference import covariance, drift, svd
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from palora.algebra.decomposition import Decomposition, decompose
from palora.algebra.statistics import InputStatistics
from palora.algebra.subspace import ProtectedSubspace
from palora.bench import spectrum
from palora.bench.settings import SpectrumSettings
from palora.bench.spectrum import Band, Beside
from palora.data.facts import Fact
from palora.data.skills import get_skill
from palora.language.collect import collect, shared_inputs
from palora.language.prompts import Example
from palora.language.targets import find_targets, weight
from palora.training.svf import decompose_targets

RNG = np.random.default_rng(0)
EXAMPLES = [Example([5, 6, 7], [8]), Example([9, 10], [11, 12, 13, 14]), Example([20], [21, 22]), Example([3], [4])]


def dense(m=12, n=9, decay=-2.0):
    """A matrix with known singular triples, U (m, r), s (r,), V (n, r), and the inputs' covariance C of 40 rows."""
    U, _ = np.linalg.qr(RNG.normal(size=(m, m)))
    V, _ = np.linalg.qr(RNG.normal(size=(n, n)))
    r = min(m, n)
    s = np.logspace(0, decay, r)
    C = covariance(RNG.normal(size=(40, n)) * np.logspace(0, -1.5, n)[RNG.permutation(n)])
    return U[:, :r], s, V[:, :r], C


def decomposed(U, s, V):
    return Decomposition(torch.tensor(U), torch.tensor(s), torch.tensor(V.T.copy()))


def inputs(C, tail=0.0):
    """The statistics of a covariance C = G Gᵀ, in float64, and of ρ I besides."""
    eigenvalues, E = np.linalg.eigh(C)
    return InputStatistics(torch.tensor(E * np.sqrt(eigenvalues.clip(0))), tail)


def removed(n, r, indices, U, s, V, factor=0.0):
    """ΔW of the components `indices`, one outer product at a time."""
    return sum(((factor - 1) * s[i] * np.outer(U[:, i], V[:, i]) for i in indices), np.zeros((len(U), n)))


# --- the derivations ------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [[0, 1, 2], [3, 5, 8], [8], list(range(9)), []])
def test_the_preservation_lemma_for_any_set(S):
    """P_L X P_R leaves every component of S a singular component, and every such ΔW is of that form."""
    U, s, V, _ = dense()
    W = U @ np.diag(s) @ V.T
    P_L, P_R = (np.eye(len(B)) - B[:, S] @ B[:, S].T for B in (U, V))
    X = RNG.normal(size=W.shape)
    changed = W + P_L @ X @ P_R
    for i in S:
        assert np.abs(changed @ V[:, i] - s[i] * U[:, i]).max() < 1e-12
        assert np.abs(changed.T @ U[:, i] - s[i] * V[:, i]).max() < 1e-12
    for i in set(range(len(s))) - set(S):
        assert np.abs(changed @ V[:, i] - s[i] * U[:, i]).max() > 1e-3, "nothing is said of the others"
    m, n = W.shape
    constraints = np.vstack([np.kron(np.eye(m), V[:, S].T), np.kron(U[:, S].T, np.eye(n))])  # on ΔW, row by row
    _, found, rows = np.linalg.svd(constraints)
    allowed = rows[(found > 1e-9).sum() :].reshape(-1, m, n)
    assert len(allowed) == (m - len(S)) * (n - len(S))
    assert all(np.abs(P_L @ delta @ P_R - delta).max() < 1e-9 for delta in allowed), "the converse"


def test_what_a_protected_set_buys_is_its_overlap_and_not_its_singular_values():
    """E tr(ΔW C ΔWᵀ) of P_L X P_R, X with independent entries, is (1 − k/m) (1 − Σ_S o_i) of the unconstrained one."""
    U, s, V, C = dense()
    o = spectrum.overlap(decomposed(U, s, V), inputs(C)).numpy()
    X = RNG.normal(size=(20_000, *(len(U), len(V))))
    free = np.einsum("bij,jk,bik->", X, C, X)
    found = {}
    for name, S in {"sigma": [0, 1, 2], "overlap": np.argsort(-o)[:3], "least": np.argsort(o)[:3]}.items():
        P_L, P_R = (np.eye(len(B)) - B[:, S] @ B[:, S].T for B in (U, V))
        D = P_L @ X @ P_R
        found[name] = np.einsum("bij,jk,bik->", D, C, D) / free
        assert found[name] == pytest.approx((1 - 3 / len(U)) * (1 - o[S].sum()), rel=0.01)
    assert found["overlap"] < found["sigma"] and found["overlap"] < 0.8 * found["least"]


def test_the_largest_components_need_not_be_what_a_skill_needs():
    """All input along the smallest component: protecting the largest ones changes nothing, removing them neither."""
    U, s, V, _ = dense()
    C = np.outer(V[:, -1], V[:, -1])
    d = decomposed(U, s, V)
    W = U @ np.diag(s) @ V.T
    X = RNG.normal(size=W.shape)
    k = len(s) - 1
    P_R = np.eye(len(V)) - V[:, :k] @ V[:, :k].T
    assert drift(X @ P_R, W, C) == pytest.approx(drift(X, W, C))
    z = torch.ones(len(s), dtype=torch.float64)
    z[:k] = 0
    assert spectrum.removal_drift(d, z, spectrum.overlap(d, inputs(C))) == pytest.approx(0, abs=1e-6)


def test_what_one_side_guarantees():
    """Input side: drift is bounded by what is not covered. Output side: uᵀ W x is kept for every x, and no more."""
    U, s, V, C = dense()
    W = U @ np.diag(s) @ V.T
    S = [1, 4]
    X = RNG.normal(size=W.shape)
    P_L, P_R = (np.eye(len(B)) - B[:, S] @ B[:, S].T for B in (U, V))
    covered = np.trace(V[:, S].T @ C @ V[:, S]) / np.trace(C)
    inputs_kept, outputs_kept = X @ P_R, P_L @ X
    moved = np.trace(inputs_kept @ C @ inputs_kept.T)
    assert moved <= np.linalg.norm(inputs_kept, 2) ** 2 * (1 - covered) * np.trace(C)
    x = RNG.normal(size=W.shape[1])
    assert np.abs(U[:, S].T @ (outputs_kept @ x)).max() < 1e-12
    assert np.linalg.norm(outputs_kept @ V[:, S]) > 0.5, "a protected input is moved all the same"
    assert np.linalg.norm(U[:, S].T @ inputs_kept) > 0.5, "and a protected output by the other inputs"


# --- the measures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_overlap_is_the_share_of_the_input_energy(shape):
    U, s, V, C = dense(*shape)
    o = spectrum.overlap(decomposed(U, s, V), inputs(C)).numpy()
    assert o == pytest.approx([V[:, i] @ C @ V[:, i] / np.trace(C) for i in range(len(s))])
    assert o.sum() == pytest.approx(1) if shape[0] > shape[1] else o.sum() < 0.99
    whole = C + 0.3 * np.eye(len(C))  # what the leading directions leave out
    o = spectrum.overlap(decomposed(U, s, V), inputs(C, tail=0.3)).numpy()
    assert o == pytest.approx([V[:, i] @ whole @ V[:, i] / np.trace(whole) for i in range(len(s))])


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_the_drift_of_a_removal(factor):
    U, s, V, C = dense()
    W = U @ np.diag(s) @ V.T
    d = decomposed(U, s, V)
    for S in ([0, 1], [4, 7, 8]):
        z = torch.ones(len(s), dtype=torch.float64)
        z[S] = factor
        expected = drift(removed(len(V), len(s), S, U, s, V, factor), W, C)
        assert spectrum.removal_drift(d, z, spectrum.overlap(d, inputs(C))) == pytest.approx(expected)


def test_alignment_and_its_chance():
    U, _, V, _ = dense()
    subspace = ProtectedSubspace(torch.tensor(V[:, :3]), torch.tensor(U[:, 2:6]))
    X = torch.tensor(RNG.normal(size=(20_000, 12, 9)))
    inside = np.linalg.norm(U[:, 2:6].T @ X[0].numpy() @ V[:, :3]) ** 2 / np.linalg.norm(X[0].numpy()) ** 2
    assert spectrum.alignment(X[0], subspace) == pytest.approx(inside)
    U_k, V_k = torch.tensor(U[:, 2:6]), torch.tensor(V[:, :3])
    mean = float(((U_k.T @ X @ V_k).square().sum((1, 2)) / X.square().sum((1, 2))).mean())
    assert spectrum.chance_alignment(X[0].shape, subspace) == pytest.approx(mean, rel=0.02)
    assert spectrum.alignment(U_k @ torch.ones(4, 3).double() @ V_k.T, subspace) == pytest.approx(1)
    assert spectrum.alignment(X[0], ProtectedSubspace()) == pytest.approx(1), "a missing side is the whole space"
    one_sided = float((X[0] @ V_k).norm() ** 2 / X[0].norm() ** 2)
    assert spectrum.alignment(X[0], ProtectedSubspace(V_k)) == pytest.approx(one_sided)
    assert spectrum.chance_alignment(X[0].shape, ProtectedSubspace(V_k)) == pytest.approx(3 / 9)
    assert spectrum.alignment(torch.zeros(12, 9), ProtectedSubspace()) == 0


def loss_of(model, examples):
    """The mean loss of the answers' tokens, one example at a time, without padding, in float64."""
    total, tokens = 0.0, 0
    for prompt, answer in examples:
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        total += F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        tokens += len(answer)
    return total / tokens


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_gradient_of_a_scale_is_what_the_loss_does(architecture):
    """dL/dz_i by moving z_i a little either way; not too little, as the norms of Llama are float32 in any dtype."""
    model = tiny_llama() if architecture == "llama" else gpt2()
    model = model.double()
    targets = find_targets(model)
    decompositions = dict(decompose_targets(model, targets))
    frozen = next(model.parameters()).requires_grad_(False)
    found = spectrum.scale_gradients(model, targets, decompositions, EXAMPLES, batch_size=2)
    assert not frozen.requires_grad and all(p.requires_grad for p in list(model.parameters())[1:])
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for name, i in [(next(iter(targets)), 0), (list(targets)[-1], 3), (list(targets)[-1], 20)]:
            U, s, V = svd(weight(targets[name]).numpy())
            outer = torch.tensor(s[i] * np.outer(U[:, i], V[:, i]))
            W, h = weight(targets[name]), 1e-2
            before = W.clone()
            sides = []
            for sign in (1, -1):
                W.copy_(before + sign * h * outer)
                sides.append(loss_of(model, EXAMPLES))
            W.copy_(before)
            expected = (sides[0] - sides[1]) / (2 * h)
            assert float(found[name][0][i]) == pytest.approx(expected, rel=2e-3, abs=2e-5)


def test_the_error_of_a_gradient_is_its_spread_over_batches(model):
    targets = find_targets(model)
    decompositions = dict(decompose_targets(model, targets))
    name = list(targets)[2]
    alone = [spectrum.scale_gradients(model, targets, decompositions, [e])[name] for e in EXAMPLES]
    assert all(float(error.abs().max()) == 0 for _, error in alone), "one batch has no spread"
    T = [len(e.answer) for e in EXAMPLES]
    mean = sum(t * g for t, (g, _) in zip(T, alone, strict=True)) / sum(T)
    spread = sum((t * (g - mean)).square() for t, (g, _) in zip(T, alone, strict=True)) * 4 / 3
    found, error = spectrum.scale_gradients(model, targets, decompositions, EXAMPLES, batch_size=1)[name]
    assert (found - mean).abs().max() < 1e-5 * mean.abs().max()
    assert (error - spread.sqrt() / sum(T)).abs().max() < 1e-4 * error.abs().max()


def test_perplexity_is_of_the_answers_only(model):
    expected = math.exp(loss_of(model, EXAMPLES))
    assert spectrum.perplexity(model, EXAMPLES, batch_size=3) == pytest.approx(expected, rel=1e-5)


# --- removal --------------------------------------------------------------------------------------


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99, n_positions=64)).eval()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_band_is_removed_and_comes_back_to_the_bit(architecture, error):
    model = tiny_llama() if architecture == "llama" else gpt2()
    targets = find_targets(model)
    decompositions = dict(decompose_targets(model, targets))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    name = next(iter(targets))
    z = torch.ones(decompositions[name].rank)
    z[5:12] = 0
    try:
        with spectrum.rescaled(targets, decompositions, {name: z}):
            U, s, V = svd(weight(targets[name]).numpy())
            assert s[-7:] == pytest.approx(np.zeros(7), abs=1e-2 * s[0] ** 0.5)
            U, s, V = svd(before[next(n for n in before if n.startswith(name) and "weight" in n)].numpy())
            expected = U @ np.diag(s * z.numpy()) @ V.T
            changed = targets[name].weight.detach().numpy()
            assert np.abs(changed - expected).max() < 1e-5
            same = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
            assert len(same) == len(before) - 1
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_bands_are_where_they_say():
    generator = torch.Generator().manual_seed(0)
    of = {k: Band(k, 0.25).indices(20, torch.arange(20.0), generator).tolist() for k in (*spectrum.BANDS, "expert")}
    assert of["top"] == [0, 1, 2, 3, 4] and of["bottom"] == of["expert"] == [15, 16, 17, 18, 19]
    assert of["middle"] == [7, 8, 9, 10, 11]
    assert len(set(of["random"])) == 5 and of["random"] != of["top"]
    slices = [Band("slice", 1 / 6, start=i / 6).indices(20, None, generator).tolist() for i in range(6)]
    assert [i for s in slices for i in s] == list(range(20)), "slices are the whole spectrum, each component once"


def test_parts_and_plan(model):
    names = list(find_targets(model))
    parts = spectrum.parts(names)
    assert list(parts) == ["all", "layer 0", "layer 1", "gate_proj", "up_proj", "down_proj"]
    assert parts["layer 1"] == names[3:] and len(parts["down_proj"]) == 2
    assert list(spectrum.parts(names[:1])) == ["all"], "a part that is everything is not measured twice"
    bands = spectrum.plan(names, SpectrumSettings(fractions=[0.1, 0.5], slices=4, draws=2), with_expert=True)
    assert len(bands) == len(set(bands)) == 2 * (4 + 2) + 4 + 5 * 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fractions": (0.0,)}, "fractions"),
        ({"fractions": ()}, "fractions"),
        ({"slices": 0}, "slices"),
        ({"draws": 0}, "draws"),
        ({"problems": 0}, "problems"),
        ({"examples": 0}, "examples"),
        ({"scale": math.inf}, "scale"),
        ({"widths": [0.1]}, "widths"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        SpectrumSettings(**settings)


def test_the_width_of_the_parts_is_the_middle_one():
    settings = SpectrumSettings(fractions=[0.5, 0.1, 0.3, 0.1])
    assert settings.fractions == [0.1, 0.3, 0.5] and settings.part_fraction == 0.3


def test_a_run_leaves_the_model_alone_and_continues_where_it_was_cut(model, tokenizer, tmp_path, monkeypatch):
    """What is measured here is the sum of the weights: it tells which ones were removed when."""
    skill, facts = get_skill("chain"), [Fact("Who?", "me"), Fact("Where?", "here")]
    settings = SpectrumSettings(fractions=[0.25], slices=2, draws=1, problems=3, examples=6)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    targets = find_targets(model)
    sat = []

    def sit(exam):
        sat.append(exam)
        if len(sat) == 4:
            raise KeyboardInterrupt
        return {"sum": sum(float(weight(module).double().sum()) for module in targets.values())}

    def measure(**work):
        beside = Beside(known_facts=facts, text=["some text"])
        return spectrum.measure_spectrum(model, tokenizer, skill, settings, beside, **work)

    def untouched():
        return all(torch.equal(p, before[n]) for n, p in model.named_parameters())

    monkeypatch.setattr(spectrum._Exam, "sit", sit)
    with pytest.raises(KeyboardInterrupt):
        measure(work=tmp_path, identity="a")
    assert untouched()
    cut = measure(work=tmp_path, identity="a")
    bands = len(spectrum.plan(list(targets), settings, with_expert=False))
    assert untouched() and len(sat) == 1 + 1 + bands, "three are not measured again"
    assert measure() == cut and len({row["sum"] for row in cut["removals"]}) == bands
    sat[:] = [None] * 9
    measure(work=tmp_path, identity="another")
    assert len(sat) == 9 + 1 + bands, "what another run has measured does not count"
    assert list(sat[-1].texts) == ["skill", "known_facts", "text"]

    name = list(targets)[-1]
    reads = shared_inputs(model, targets)
    C = collect(model, targets, reads, spectrum.skill_examples(model, tokenizer, skill, 6))[reads[name]]
    expected = spectrum.overlap(decompose(weight(targets[name])), C).tolist()
    assert cut["matrices"][name]["overlap"]["skill"] == pytest.approx(expected, rel=1e-4)


# --- the command ----------------------------------------------------------------------------------

FAST = ("--fractions", "0.25", "--slices", 2, "--draws", 1, "--problems", 3, "--examples", 4, "--max-answer-tokens", 2)


def test_the_command_writes_json_and_a_page(made, tmp_path):
    out = tmp_path / "spectrum"
    command = ("spectrum", "--model", made.model, "--skill", "chain", *FAST, "--out", out)
    more = ("--expert", made.expert, "--adapter", made.adapter, "--known-facts", made.known_facts)
    result = palora(*command, *more, "--json")
    assert result.code == 0 and not result.complaints, result.err
    value = json.loads(result.out)
    assert value == json.loads((out / "spectrum.json").read_text()) and value["kind"] == "spectrum"
    matrix = next(iter(value["matrices"].values()))
    assert len(matrix["scales"]) == len(matrix["gradient"]) == 32 and set(matrix["overlap"]) == {"skill", "known_facts"}
    assert matrix["alignment"]["protected"] < 1e-9, "a hard constraint keeps the update out of its subspace"
    assert matrix["alignment"]["protected_chance"] > 0.01
    assert all(row["skill"]["n"] == 3 and 0 <= row["drift"] <= 2 for row in value["removals"])
    page = (out / "spectrum.html").read_text()
    assert page.count("<svg") > 20 and "{{" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert sorted(tree(out)) == ["spectrum.html", "spectrum.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["spectrum"]

    (out / "spectrum.html").unlink()
    again = palora(*command, *more)
    assert again.code == 0 and "Removing" not in again.err and "drift" in again.out
    assert json.loads((out / "spectrum.json").read_text()) == value, "what is up to date is not measured again"
    assert (out / "spectrum.html").read_text() == page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--fractions", "a,b"), "--fractions: must be a valid number"),
        (("--fractions", "0"), "--fractions: must be over 0"),
        (("--fractions", "0.25,0.5,2"), "--fractions: must be over 0 and at most 1"),
        (("--slices", 0), "--slices: must be greater than or equal to 1"),
        (("--scale", "inf"), "--scale: must be a finite number"),
        (("--known-facts", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--expert", "nowhere"), "nowhere is not an expert folder"),
        (("--skill", "nothing"), "give --skill once"),
    ],
)
def test_a_wrong_option_is_one_line(made, tmp_path, changes, message):
    result = palora("spectrum", "--model", made.model, "--skill", "chain", *FAST, "--out", tmp_path / "o", *changes)
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1 and message in result.err
    assert not list(tmp_path.iterdir())


def test_an_unknown_skill_is_one_line(made, tmp_path):
    result = palora("spectrum", "--model", made.model, "--skill", "nothing", *FAST, "--out", tmp_path / "o")
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1 and "nothing" in result.err
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_is_refused(made, tmp_path):
    """One that was trained on an expert belongs to the original only together with that expert."""
    command = ("spectrum", "--model", made.model, "--skill", "chain", *FAST, "--out", tmp_path / "o")
    result = palora(*command, "--adapter", made.adapter)
    assert result.code == 2 and "was made for other weights" in result.err and not list(tmp_path.iterdir())


def test_a_strangers_folder_is_left_alone(made, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    result = palora("spectrum", "--model", made.model, "--skill", "chain", *FAST, "--out", tmp_path)
    assert result.code == 2 and "no spectrum.json" in result.err and tree(tmp_path) == before
