"""What is added to the loss, against dense algebra and plain loops."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model

from palora.algebra.statistics import factorise, weighed
from palora.bench.tuners import live_delta
from palora.common.errors import InputError
from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.skills import get_skill
from palora.language import logits
from palora.language.collect import collect, shared_inputs
from palora.language.keep import Keep, Kept
from palora.language.logits import answer_logits
from palora.language.prompts import Example, encode_example, pad
from palora.language.scoring import Answer
from palora.language.targets import find_targets, weight
from palora.testbed.world import known_facts, new_facts
from palora.training.injection import Beside, inject
from palora.training.lora import PaloraConfig
from palora.training.protection import protect
from palora.training.terms import Drift, Rehearsal, kl_from_base

SETTINGS = InjectSettings(
    r=4, lora_alpha=8, lora_dropout=0.0, learning_rate=0.02, epochs=4, batch_size=4, drift=0.0, stop_at_recall=None
)


@pytest.fixture
def examples(tokenizer):
    return [encode_example(tokenizer, p.prompt, p.solution) for p in get_skill("chain").problems("train", 24, 0)]


def adapted(model, names, protection=None):
    """A LoRA model with factors that are not 0."""
    common = {"r": 4, "lora_alpha": 8, "target_modules": names, "task_type": "CAUSAL_LM"}
    config = PaloraConfig(**common, protection=protection) if protection else LoraConfig(**common)
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return tuned


@pytest.mark.parametrize("directions", [48, 10])
@pytest.mark.parametrize("constrained", [False, True])
def test_drift_is_that_of_dense_algebra(model, tokenizer, examples, directions, constrained):
    """Whole statistics and truncated ones, whose tail counts as isotropic; plain LoRA and under the soft rule."""
    targets = find_targets(model)
    inputs = shared_inputs(model, targets)
    found = collect(model, targets, inputs, examples)
    C = {name: found[key].factor.double() @ found[key].factor.double().T for name, key in inputs.items()}
    statistics = {name: factorise(C[name], directions) for name in targets}
    W = {name: weight(module).clone() for name, module in targets.items()}
    protection = None
    if constrained:
        keep = Keep([get_skill("chain")], examples=16)
        protection = protect(model, tokenizer, ProtectSettings(rule="covariance", strength=3.0), keep)
    tuned = adapted(model, list(targets), protection)
    term = Drift(statistics, targets, weight=7.0)
    found = term.squares(tuned).mean()
    dense = []
    for name, own in statistics.items():
        G = own.factor.double()
        whole = G @ G.T + own.tail * torch.eye(len(G))
        delta = live_delta(tuned, name, W[name]).double()
        dense.append((delta @ whole @ delta.T).trace() / (W[name].double() @ whole @ W[name].double().T).trace())
    assert found.item() == pytest.approx(torch.stack(dense).mean().item(), rel=1e-4)
    assert term(tuned, 0).item() == pytest.approx(7 * found.item(), rel=1e-5)
    assert sum(d**2 for d in term.by_matrix(tuned).values()) / 6 == pytest.approx(found.item(), rel=1e-3)
    found.backward()
    name, factor = next((n, p) for n, p in tuned.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        step = 1e-3 * factor.grad / factor.grad.norm()
        factor += step
        up = term.squares(tuned).mean()
        factor -= 2 * step
        down = term.squares(tuned).mean()
    assert (up - down).item() / 2e-3 == pytest.approx(factor.grad.norm().item(), rel=2e-2), name


def test_the_rows_of_a_step_are_its_own_and_follow_the_weights():
    things = zip((3.0, 1.0, 0.0), (1, 3, 5), strict=True)
    kept = [(weight, Kept("text", str(token), [Example([token], [token + 1])])) for weight, token in things]
    rehearsal = Rehearsal(1.0, 0.0, kept, 400, seed=5)
    assert rehearsal.rows(7) == rehearsal.rows(7) != rehearsal.rows(8)
    assert rehearsal.rows(7) != Rehearsal(1.0, 0.0, kept, 400, seed=6).rows(7)
    first = [row.prompt for row in rehearsal.rows(7)]
    assert 0.65 < first.count([1]) / 400 < 0.85 and [5] not in first
    with pytest.raises(InputError, match="something to keep"):
        Rehearsal(1.0, 0.0, kept[2:], 4, seed=0)


def test_replay_is_the_loss_of_its_rows(model, examples):
    targets = find_targets(model)
    text = Example([9, 8, 7, 6], [])  # plain text counts from its second token
    rehearsal = Rehearsal(2.0, 0.0, [(1.0, Kept("text", "all", [*examples, text]))], 6, seed=0)
    tuned = adapted(model, list(targets))
    total, count = 0.0, 0
    for prompt, answer in rehearsal.rows(3):
        ids = torch.tensor([[*prompt, *answer]])
        log_p = tuned(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(len(prompt) if answer else 1, ids.shape[1]):
            total, count = total - log_p[t - 1, ids[0, t]].item(), count + 1
    assert rehearsal(tuned, 3).item() == pytest.approx(2 * total / count, rel=1e-4)


def test_distillation_is_the_divergence_of_its_rows(model, examples, monkeypatch):
    """Its value and its gradient, in slices of 4 tokens, against every row by itself."""
    monkeypatch.setattr(logits, "SLICE", 4)
    text = Example([9, 8, 7, 6], [])
    rehearsal = Rehearsal(0.0, 3.0, [(1.0, Kept("text", "all", [*examples, text]))], 6, seed=0)
    tuned = adapted(model, list(find_targets(model)))
    total, count = 0.0, 0
    for prompt, answer in rehearsal.rows(3):
        ids, first = torch.tensor([[*prompt, *answer]]), len(prompt) if answer else 1
        q = tuned(input_ids=ids).logits[0, first - 1 : -1].softmax(-1)
        with tuned.disable_adapter():
            p = tuned(input_ids=ids).logits[0, first - 1 : -1].softmax(-1).detach()
        total, count = total + (p * (p.log() - q.log())).sum(), count + len(p)
    expected = 3 * total / count
    of = [p for n, p in tuned.named_parameters() if "lora_A" in n]
    loss = rehearsal(tuned, 3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for found, right in zip(torch.autograd.grad(loss, of), torch.autograd.grad(expected, of), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-5)


def test_only_the_logits_of_answers_are_computed(model):
    rows = [Example([5, 6, 7, 9, 9], [8, 9]), Example([10], [11, 12, 13]), Example([4, 5, 6], [])]
    ids, attended, answers = pad(rows, "cpu")
    whole = model(input_ids=ids, attention_mask=attended).logits[:, :-1][answers]
    widths = []
    model.lm_head.register_forward_hook(lambda module, given, result: widths.append(given[0].shape[1]))
    torch.testing.assert_close(answer_logits(model, *pad(rows[:2], "cpu")), whole[: -len(rows[2].prompt) + 1])
    assert widths == [5], "of the seven, those where an answer goes on"

    class Other(torch.nn.Module):
        """One that cannot be told which."""

        def forward(self, input_ids, attention_mask, use_cache):
            return model(input_ids=input_ids, attention_mask=attention_mask)

    torch.testing.assert_close(answer_logits(Other(), ids, attended, answers), whole)


def test_distillation_is_nothing_until_the_model_moves(model, examples):
    targets = find_targets(model)
    rehearsal = Rehearsal(0.0, 1.0, [(1.0, Kept("skills", "chain", examples))], 6, seed=0)
    tuned = adapted(model, list(targets))
    before = {n: p.requires_grad for n, p in tuned.named_parameters()}
    loss = rehearsal(tuned, 0)
    loss.backward()
    assert loss > 1e-6 and {n: p.requires_grad for n, p in tuned.named_parameters()} == before
    assert all(p.grad is not None and p.grad.norm() > 0 for n, p in tuned.named_parameters() if "lora_A" in n)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert rehearsal(tuned, 0).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("change", [{"drift": 240.0}, {"replay": 1.0}, {"distil": 3.0}])
def test_each_term_keeps_the_outputs_nearer(change, tokenizer, tmp_path):
    """The same facts, seed and steps: with the term the trained model answers what is kept more as it did before."""
    keep = Keep([get_skill("chain")], known_facts()[:8], examples=16)

    def moved(settings, work):
        model = tiny_llama()
        statistics = protect(model, tokenizer, ProtectSettings(rule="none"), keep).statistics
        kept = weighed(keep.tokenised(model, tokenizer), settings.keep.weights)
        before = find_targets(model)
        beside = Beside(statistics=statistics, rows=kept)
        tuned, _ = inject(model, tokenizer, new_facts(8), settings, work, beside=beside)
        if "drift" in change:
            return Drift(statistics.weighed(settings.keep.weights), before).squares(tuned).mean().item()
        if "replay" in change:
            return Rehearsal(1.0, 0.0, kept, 64, seed=1)(tuned, 0).item()
        return Rehearsal(0.0, 1.0, kept, 64, seed=1)(tuned, 0).item()

    plain = moved(SETTINGS, tmp_path / "plain")
    assert moved(SETTINGS.model_copy(update=change), tmp_path / "term") < 0.8 * plain


def test_answers_to_a_skill_are_the_published_ones_or_the_models_own_right_ones(tokenizer, monkeypatch):
    """The model says "7" to everything, which is right once in a while."""
    model, skill = tiny_llama(), get_skill("chain")
    problems = skill.problems("train", 40, 0)
    answers = [Answer(p.prompt, p.answer, "7", *[p.answer == "7"] * 3) for p in problems]
    monkeypatch.setattr("palora.language.keep.solve", lambda *_, **__: answers)
    unsolved = replace(skill, problems=lambda *request: [replace(p, solution=None) for p in skill.problems(*request)])
    found = {of: Keep([of], examples=40).tokenised(model, tokenizer)[0] for of in (skill, unsolved)}
    said = encode_example(tokenizer, "", "7").answer
    assert 0 < len(found[unsolved].examples) < 40
    assert {tuple(e.answer) for e in found[unsolved].examples} == {tuple(said)}
    assert list(found[skill].examples) == [encode_example(tokenizer, p.prompt, p.solution) for p in problems]


def test_kl_from_base_is_nothing_at_first_and_that_of_whole_distributions_later(tokenizer, examples):
    model = tiny_llama()
    names = list(find_targets(model))
    some = examples[:3]
    fresh = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
    assert kl_from_base(fresh, some) == pytest.approx(0, abs=1e-6)
    tuned = adapted(tiny_llama(), names).eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for prompt, answer in some:
            ids = torch.tensor([[*prompt, *answer]])
            now, before = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in (tuned, model))
            at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
            total += float((before[at].exp() * (before[at] - now[at])).sum())
            tokens += len(answer)
    assert kl_from_base(tuned, some) == pytest.approx(total / tokens, rel=1e-4) and total > 0
