"""Stage 2 through TRL's SFTTrainer: it learns, under the constraint, on the answer only, and resumes exactly."""

import pytest
import torch
from conftest import constrained_layers, tiny_llama

from palora.common.errors import InputError, PaloraError
from palora.common.metrics import read_metrics
from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.facts import Fact, Lesson
from palora.data.skills import get_skill
from palora.language.keep import Keep
from palora.language.models import fingerprints
from palora.language.prompts import encode_example
from palora.language.scoring import ask_facts, share_correct
from palora.language.targets import find_targets, weight
from palora.testbed.world import new_facts
from palora.training import injection, watching
from palora.training.injection import inject
from palora.training.protection import protect
from palora.training.svf import Expert

FACTS = [Fact(question=f"Code {i}?", answer=str(i), paraphrases=(f"Which code is {i}?",)) for i in range(8)]


def settings(**changes):
    values = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "learning_rate": 0.01, "epochs": 3, "batch_size": 4}
    values |= {"drift": 0.0, "stop_at_recall": None}
    return InjectSettings(**values | changes)


def protection(tokenizer, rule="sigma", **budget):
    keep = Keep([get_skill("chain")], examples=32)
    return protect(tiny_llama(), tokenizer, ProtectSettings(rule=rule, **budget or {"k": 8}), keep, FACTS)


def test_it_learns_the_facts_under_the_constraint(tokenizer, tmp_path):
    subspaces = protection(tokenizer)
    model, record = inject(
        *(tiny_llama(), tokenizer, FACTS),
        settings(learning_rate=0.03, epochs=80, stop_at_recall=1.0, recall_every=5),
        *(tmp_path, subspaces),
    )
    assert share_correct(ask_facts(model, tokenizer, FACTS)) == 1.0 == record["recall_while_training"]
    assert record["epochs"] < 80, "it stopped when the facts were learned"
    for name, layer in constrained_layers(model).items():
        assert subspaces[name].leak(layer.get_delta_weight("default")) < 1e-5


def test_only_the_answer_is_trained_on(tokenizer, model):
    [row, *_] = injection._rows(model, tokenizer, FACTS, settings())
    prompt, answer = encode_example(tokenizer, FACTS[0].question, FACTS[0].answer)
    assert row == {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
    assert answer[-1] == tokenizer.eos_token_id
    assert len(injection._rows(model, tokenizer, FACTS, settings(paraphrases=True))) == 16


@pytest.mark.parametrize("rule", [{"rule": "sigma", "k": 8}, {"rule": "covariance", "strength": 3.0}])
def test_an_interrupted_training_continues_bit_for_bit(tokenizer, tmp_path, monkeypatch, rule):
    subspaces = protection(tokenizer, **rule)

    def run(work):
        return inject(tiny_llama(), tokenizer, FACTS, settings(lora_dropout=0.1), work, subspaces)

    whole, record = run(tmp_path / "a")
    original = watching.Watch.on_step_end

    def interrupted(self, args, state, *rest, **kwargs):
        if state.global_step == 5:  # after the checkpoint of step 4
            raise KeyboardInterrupt
        return original(self, args, state, *rest, **kwargs)

    monkeypatch.setattr(watching.Watch, "on_step_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b")
    monkeypatch.undo()
    resumed, again = run(tmp_path / "b")
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert again["steps"] == record["steps"] == 6
    assert read_metrics(tmp_path / "a" / "metrics.jsonl") == read_metrics(tmp_path / "b" / "metrics.jsonl")


def test_killed_in_a_recall_check_or_after_the_last_one_it_ends_the_same(tokenizer, tmp_path, monkeypatch):
    subspaces = protection(tokenizer)
    wanted = settings(learning_rate=0.03, epochs=60, stop_at_recall=1.0, recall_every=5)

    def run(work):
        return inject(tiny_llama(), tokenizer, FACTS, wanted, work, subspaces)

    whole, record = run(tmp_path / "a")
    assert record["epochs"] < 60
    last = record["steps"]
    for moment in ("before the first check", "after the last checkpoint"):
        work = tmp_path / moment
        due, save = watching.Watch._due, watching.ExactResume.on_save

        def killed_in_check(self, step, due=due):
            if found := due(self, step):
                raise KeyboardInterrupt
            return found

        def killed_after_save(self, args, state, control, save=save, **kwargs):
            save(self, args, state, control, **kwargs)
            if state.global_step == last:
                raise KeyboardInterrupt

        if moment == "before the first check":
            monkeypatch.setattr(watching.Watch, "_due", killed_in_check)
        else:
            monkeypatch.setattr(watching.ExactResume, "on_save", killed_after_save)
        with pytest.raises(KeyboardInterrupt):
            run(work)
        monkeypatch.undo()
        resumed, again = run(work)
        assert again == record, moment
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b), moment


def test_the_control_and_palora_see_the_same_rows_in_the_same_order(tokenizer, tmp_path, monkeypatch):
    seen = []
    original = torch.nn.Module.__call__
    from transformers import LlamaForCausalLM

    def watch(self, *args, **kwargs):
        if isinstance(self, LlamaForCausalLM) and "labels" in kwargs:
            seen[-1].append(kwargs["input_ids"].tolist())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", watch)
    for subspaces in (None, protection(tokenizer)):
        seen.append([])
        inject(tiny_llama(), tokenizer, FACTS, settings(epochs=1), tmp_path / str(len(seen)), subspaces, seed=5)
    assert seen[0] and seen[0] == seen[1]


def test_another_training_does_not_continue_from_its_checkpoint(tokenizer, tmp_path):
    inject(tiny_llama(), tokenizer, FACTS, settings(epochs=1), tmp_path)
    other, _ = inject(tiny_llama(), tokenizer, FACTS, settings(epochs=1, learning_rate=0.001), tmp_path)
    fresh, _ = inject(tiny_llama(), tokenizer, FACTS, settings(epochs=1, learning_rate=0.001), tmp_path / "fresh")
    for a, b in zip(other.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_failures_are_clear(tokenizer, tmp_path, model):
    long = [Fact(question="x" * 300, answer="y")]
    with pytest.raises(InputError, match="longer than the model's 256 tokens"):
        inject(model, tokenizer, long, settings(), tmp_path)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(PaloraError, match="the loss is no longer a number at step 1; lower the learning rate"):
        inject(model, tokenizer, FACTS, settings(), tmp_path / "nan")


def test_coverage_is_measured_before_training(tokenizer):
    keep = Keep([get_skill("chain")], examples=32)
    found = protect(tiny_llama(), tokenizer, ProtectSettings(rule="activation", share=0.9), keep, new_facts(20))
    assert 0.9 <= found.record["coverage"]["skill"] < 1
    assert 0 < found.record["coverage"]["facts"] < found.record["coverage"]["skill"]
    assert found.statistics.kinds == ["skills"] and set(found.statistics.skills()) == set(found)
    everything = protect(tiny_llama(), tokenizer, ProtectSettings(rule="sigma", fraction=1.0), keep)
    down = everything.record["modules"]["model.layers.0.mlp.gate_proj"]
    assert down["coverage"]["skill"] == pytest.approx(1, abs=1e-4), "the whole input space covers everything"


def test_what_to_keep_is_a_list_with_weights(tokenizer):
    """Known facts in the mix raise their own coverage; with weight 0 they are as if absent."""

    def coverage(**weights):
        settings = ProtectSettings(rule="activation", k=4, keep=weights)
        keep = Keep([get_skill("chain")], FACTS, ["some plain text"])
        return protect(tiny_llama(), tokenizer, settings, keep, FACTS).record["coverage"]

    alone, mixed, texted = coverage(), coverage(known_facts=3.0), coverage(text=3.0)
    assert mixed["facts"] > alone["facts"] and mixed["skill"] < alone["skill"]
    assert texted["skill"] < alone["skill"]


def test_the_drift_term_is_there_by_default_where_something_is_known_of_what_is_kept(tokenizer, tmp_path):
    """And left out where nothing is, unless somebody asked for it."""
    taught = {"r": 4, "learning_rate": 0.01, "epochs": 1, "batch_size": 4}
    kept = protection(tokenizer)
    _, record = inject(tiny_llama(), tokenizer, FACTS, InjectSettings(**taught), tmp_path / "a", kept)
    assert record["settings"]["drift"] == 20_000
    _, record = inject(tiny_llama(), tokenizer, FACTS, InjectSettings(**taught), tmp_path / "b")
    assert record["settings"]["drift"] == 0
    with pytest.raises(InputError, match="needs the statistics of what is kept"):
        inject(tiny_llama(), tokenizer, FACTS, InjectSettings(**taught, drift=5.0), tmp_path / "c")


def test_an_expert_that_moved_nothing_marks_nothing(tokenizer):
    """z = 1 is a normal outcome: the untouched base can be the best. Its first components would be protected."""
    model = tiny_llama()
    targets = find_targets(model)
    scales = {name: torch.ones(min(weight(module).shape)) for name, module in targets.items()}
    expert = Expert(scales, {"fingerprints": fingerprints(targets)})
    with pytest.raises(InputError, match="the expert moved no component"):
        protect(model, tokenizer, ProtectSettings(rule="svf", k=4), expert=expert)
    protect(model, tokenizer, ProtectSettings(rule="sigma", k=4), expert=expert)


def test_a_fact_is_taught_by_its_lessons_unless_bare_answers_are_asked_for(tokenizer, model):
    taught = Fact("Code 1?", "1", teach=(Lesson("Code 1?", "It is 1."), Lesson("Which is code 1?", "Code 1 is 1.")))
    rows = injection._rows(model, tokenizer, [taught], settings())
    expected = [
        encode_example(tokenizer, q, a) for q, a in (("Code 1?", "It is 1."), ("Which is code 1?", "Code 1 is 1."))
    ]
    assert [row["input_ids"] for row in rows] == [[*e.prompt, *e.answer] for e in expected]
    [bare] = injection._rows(model, tokenizer, [taught], settings(targets_by="bare"))
    prompt, answer = encode_example(tokenizer, "Code 1?", "1")
    assert bare["input_ids"] == [*prompt, *answer]


@pytest.mark.parametrize(("every", "expected"), [(0.5, [0.5, 1, 1.5, 2, 2.5, 3]), (2, [2, 3]), (1.25, [1.5, 2.5, 3])])
def test_recall_is_looked_at_each_part_of_an_epoch(tokenizer, tmp_path, every, expected):
    """Two steps an epoch; at a step where another part is full, and at the end."""
    inject(tiny_llama(), tokenizer, FACTS, settings(stop_at_recall=1.0, recall_every=every), tmp_path)
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.jsonl") if "recall" in row] == expected


def test_sdft_is_trls_own_trainer(tokenizer, tmp_path):
    """On-policy: the loss is on what the model in training says itself, and its teacher is told the fact."""
    wanted = settings(targets_by="sdft", epochs=2)
    model, record = inject(tiny_llama(), tokenizer, FACTS, wanted, tmp_path, protection(tokenizer))
    assert record["steps"] == 4 and record["loss"] is not None
    moved = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert any(p.any() for p in moved), "something was learned"


@pytest.mark.parametrize("how", ["a byte changed", "cut short", "a file gone"])
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "trainer_state.json", "trained.safetensors"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_used(
    name, how, tokenizer, tmp_path, monkeypatch, caplog
):
    whole, record = inject(tiny_llama(), tokenizer, FACTS, settings(), tmp_path / "a")
    original = watching.Watch.on_step_end

    def interrupted(self, args, state, *rest, **kwargs):
        if state.global_step == 5:  # after the checkpoint of step 4
            raise KeyboardInterrupt
        return original(self, args, state, *rest, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(watching.Watch, "on_step_end", interrupted)
        inject(tiny_llama(), tokenizer, FACTS, settings(), tmp_path / "b")
    newest = tmp_path / "b" / "checkpoints" / "checkpoint-4"
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    if how == "a file gone":
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(content if how == "a byte changed" else content[: len(content) // 2])
    resumed, again = inject(tiny_llama(), tokenizer, FACTS, settings(), tmp_path / "b")
    assert "a checkpoint is damaged" in caplog.text and f"checkpoint-4/{name}" in caplog.text
    assert again == record and (tmp_path / "b" / "checkpoints" / "checkpoint-4" / name).exists()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("how", ["gone", "a row gone"])
def test_the_curve_of_an_unfinished_training_is_missed(how, tokenizer, tmp_path, monkeypatch, caplog):
    """Without it the report would show a part, and nobody knows whether the wished recall was reached."""
    whole, record = inject(tiny_llama(), tokenizer, FACTS, settings(), tmp_path / "a")
    original = watching.Watch.on_step_end

    def interrupted(self, args, state, *rest, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt
        return original(self, args, state, *rest, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(watching.Watch, "on_step_end", interrupted)
        inject(tiny_llama(), tokenizer, FACTS, settings(), tmp_path / "b")
    curve = tmp_path / "b" / "metrics.jsonl"
    _, *others = curve.read_text().splitlines(keepends=True)
    curve.unlink() if how == "gone" else curve.write_text("".join(others))
    resumed, again = inject(tiny_llama(), tokenizer, FACTS, settings(), tmp_path / "b")
    assert "metrics.jsonl has" in caplog.text and "rows that were there at step 4" in caplog.text
    assert again == record and curve.read_text() == (tmp_path / "a" / "metrics.jsonl").read_text()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
