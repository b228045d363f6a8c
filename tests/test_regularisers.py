"""What is added to the loss, against dense algebra and plain loops."""

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model

from palora.algebra.rules import Budget
from palora.algebra.statistics import collect, combine, factorise, from_tensors
from palora.bench.tuners import live_delta
from palora.common.errors import InputError
from palora.common.settings import InjectSettings
from palora.data.skills import get_skill
from palora.language.keep import Keep, Kept
from palora.language.prompts import Example, encode_example
from palora.language.scoring import Answer
from palora.language.targets import find_targets, weight
from palora.testbed.world import known_facts, new_facts
from palora.training.injection import inject
from palora.training.lora import PaloraConfig
from palora.training.protection import protect
from palora.training.terms import Drift, Rehearsal

SETTINGS = InjectSettings(r=4, lora_alpha=8, lora_dropout=0.0, learning_rate=0.02, epochs=4, batch_size=4)


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
    C = collect(model, targets, examples)
    statistics = {name: factorise(C[name], directions) for name in targets}
    W = {name: weight(module).clone() for name, module in targets.items()}
    protection = None
    if constrained:
        keep = Keep([get_skill("chain")], examples=16)
        protection, _ = protect(model, tokenizer, "covariance", Budget(strength=3.0), keep=keep)
    tuned = adapted(model, list(targets), protection)
    term = Drift(statistics, W, weight=7.0)
    found = term.squares(tuned).mean()
    dense = []
    for name, own in statistics.items():
        F, E = own.factor.double(), own.directions.double()
        whole = F @ F.T + own.rest * (torch.eye(len(F)) - E @ E.T)
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
    kept = [Kept("text", str(token), weight, [Example([token], [token + 1])]) for weight, token in things]
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
    rehearsal = Rehearsal(2.0, 0.0, [Kept("text", "all", 1.0, [*examples, text])], 6, seed=0)
    tuned = adapted(model, list(targets))
    total, count = 0.0, 0
    for prompt, answer in rehearsal.rows(3):
        ids = torch.tensor([[*prompt, *answer]])
        log_p = tuned(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(len(prompt) if answer else 1, ids.shape[1]):
            total, count = total - log_p[t - 1, ids[0, t]].item(), count + 1
    assert rehearsal(tuned, 3).item() == pytest.approx(2 * total / count, rel=1e-4)


def test_distillation_is_nothing_until_the_model_moves(model, examples):
    targets = find_targets(model)
    rehearsal = Rehearsal(0.0, 1.0, [Kept("skills", "chain", 1.0, examples)], 6, seed=0)
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
        _, tensors = protect(model, tokenizer, "none", Budget(), keep=keep)
        kept = keep.tokenised(model, tokenizer)
        statistics = from_tensors(tensors)
        before = {n: weight(m).clone() for n, m in find_targets(model).items()}
        tuned, _ = inject(model, tokenizer, new_facts(8), settings, work, kept=kept, statistics=statistics)
        if "drift" in change:
            return Drift(combine(statistics, keep.weights), before).squares(tuned).mean().item()
        if "replay" in change:
            return Rehearsal(1.0, 0.0, kept, 64, seed=1)(tuned, 0).item()
        return Rehearsal(0.0, 1.0, kept, 64, seed=1)(tuned, 0).item()

    plain = moved(SETTINGS, tmp_path / "plain")
    assert moved(SETTINGS.model_copy(update=change), tmp_path / "term") < 0.8 * plain


def test_answers_to_a_skill_are_gold_right_or_all_of_its_own(tokenizer, monkeypatch):
    """The model says "7" to everything, which is right once in a while."""
    model, skill = tiny_llama(), get_skill("chain")
    problems = skill.problems("train", 40, 0)
    answers = [Answer(p.prompt, p.answer, "7", p.answer == "7", p.answer == "7") for p in problems]
    monkeypatch.setattr("palora.language.keep.solve", lambda *_, **__: answers)
    found = {a: Keep([skill], examples=40, answers=a).tokenised(model, tokenizer)[0] for a in ("gold", "right", "own")}
    said = encode_example(tokenizer, "", "7").answer
    assert [e.answer for e in found["own"].examples] == [said] * 40
    assert 0 < len(found["right"].examples) < 40 and {tuple(e.answer) for e in found["right"].examples} == {tuple(said)}
    assert list(found["gold"].examples) == [encode_example(tokenizer, p.prompt, p.solution) for p in problems]
