"""What is allowed to be lost, and the curve beside the training."""

import pytest
import torch
from conftest import tiny_llama

from palora.bench.tuners import live_delta
from palora.common.errors import InputError
from palora.common.metrics import read_metrics
from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.skills import get_skill
from palora.language.keep import Keep
from palora.language.targets import find_targets, weight
from palora.testbed.world import new_facts
from palora.training.injection import Beside, inject
from palora.training.lora import trained_parameters
from palora.training.protection import protect

SETTINGS = InjectSettings(
    **{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "learning_rate": 0.02, "epochs": 6, "batch_size": 4},
    **{"recall_every": 1, "drift": 4.0, "stop_at_recall": None},
)


@pytest.fixture(scope="module")
def statistics(tokenizer):
    keep = Keep([get_skill("chain")], examples=16)
    return protect(tiny_llama(), tokenizer, ProtectSettings(rule="none"), keep).statistics


def train(tokenizer, statistics, work, shares, **changes):
    """Six epochs, of which the checks find these shares of the skill; the trained model, its record and its curve."""
    left = list(shares)
    seen = []

    def kept_share(model):
        seen.append({name: p.clone() for name, p in trained_parameters(model).items()})
        return left.pop(0)

    settings = SETTINGS.model_copy(update={"lose_at_most": 0.1, **changes})
    beside = Beside(statistics=statistics, kept_share=kept_share)
    tuned, record = inject(tiny_llama(), tokenizer, new_facts(8), settings, work, beside=beside)
    return tuned, record, [row for row in read_metrics(work / "metrics.jsonl") if "kept" in row], seen


def test_it_ends_with_the_last_state_that_loses_little_enough(tokenizer, statistics, tmp_path):
    tuned, record, rows, seen = train(tokenizer, statistics, tmp_path, [1.0, 0.95, 0.8, 0.92, 0.5, 0.89])
    assert [row["within"] for row in rows] == [True, True, False, True, False, False]
    assert [row["drift_weight"] for row in rows] == [0.5, 0.5, 1.0, 1.0, 2.0, 4.0], "doubled where too much was lost"
    assert record["restored"]["epoch"] == 4 and record["lose_at_most"] == 0.1
    for name, value in trained_parameters(tuned).items():
        assert torch.equal(value, seen[3][name]), "the fourth check was the last one within"


@pytest.mark.parametrize(("epochs", "checks"), [(1, 1), (3, 2)])
def test_the_last_epoch_is_checked_whatever_recall_every_is(tokenizer, statistics, tmp_path, epochs, checks):
    tuned, record, rows, seen = train(tokenizer, statistics, tmp_path, [1.0] * checks, epochs=epochs, recall_every=2)
    assert len(rows) == checks and rows[-1]["epoch"] == epochs and record["restored"] is None
    assert any(value.any() for name, value in trained_parameters(tuned).items() if "lora_B" in name)
    assert all(torch.equal(value, seen[-1][name]) for name, value in trained_parameters(tuned).items())


def test_within_the_allowance_it_is_left_alone(tokenizer, statistics, tmp_path):
    tuned, record, rows, seen = train(tokenizer, statistics, tmp_path, [0.8, 0.99, 0.91, 0.95, 1.0, 0.9])
    assert record["restored"] is None and record["kept_while_training"] == 0.9
    assert all(torch.equal(value, seen[5][name]) for name, value in trained_parameters(tuned).items())
    assert rows[-1]["drift_weight"] == 1.0


def test_where_nothing_is_within_the_model_stays_as_it_was(tokenizer, statistics, tmp_path):
    tuned, record, _, _ = train(tokenizer, statistics, tmp_path, [0.5] * 6)
    assert record["restored"] == {"epoch": 0, "recall": None}
    before = {name: weight(module) for name, module in find_targets(tiny_llama()).items()}
    assert all(live_delta(tuned, name, W).norm() == 0 for name, W in before.items())


def test_recall_alone_does_not_stop_it(tokenizer, statistics, tmp_path, monkeypatch):
    """Training goes on where the facts are learned and too much is lost, and stops once both are well."""
    monkeypatch.setattr("palora.training.watching.share_correct", lambda answers: 1.0)
    _, _, rows, _ = train(tokenizer, statistics, tmp_path, [0.5, 0.5, 1.0], stop_at_recall=0.95)
    assert [row["within"] for row in rows] == [False, False, True]


def test_interrupted_it_takes_up_the_weight(tokenizer, statistics, tmp_path):
    shares = [0.8, 0.8, 0.95, 0.8, 0.95, 0.8]
    whole = train(tokenizer, statistics, tmp_path / "whole", shares)
    with pytest.raises(IndexError):  # the third check fails
        train(tokenizer, statistics, tmp_path / "again", shares[:2])
    again = train(tokenizer, statistics, tmp_path / "again", shares[2:])
    assert [row["drift_weight"] for row in again[2]] == [row["drift_weight"] for row in whole[2]]
    for name, value in trained_parameters(whole[0]).items():
        assert torch.allclose(value, trained_parameters(again[0])[name], atol=1e-6)


def test_the_curve_has_the_drift_of_every_matrix(tokenizer, statistics, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 2})
    start = tiny_llama()
    before = {name: weight(module).clone() for name, module in find_targets(start).items()}
    tuned, _ = inject(start, tokenizer, new_facts(8), settings, tmp_path, beside=Beside(statistics=statistics))
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "drift" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    for name, own in statistics.skills().items():
        expected = own.drift(live_delta(tuned, name, before[name]), before[name])
        assert rows[-1]["drift_by_matrix"][name] == pytest.approx(expected, rel=1e-3)


def test_a_loss_is_measured_on_a_skill(tokenizer, tmp_path):
    with pytest.raises(InputError, match="lose_at_most needs a skill"):
        inject(tiny_llama(), tokenizer, new_facts(4), InjectSettings(lose_at_most=0.1), tmp_path)


@pytest.mark.parametrize("allowance", [None, 0.1])
def test_a_check_that_only_stops_the_training_asks_no_more_than_that_takes(tokenizer, tmp_path, monkeypatch, allowance):
    """The model learns nothing: two facts tell that. The last check and one that measures more ask all."""
    monkeypatch.setattr("palora.language.scoring.AT_ONCE", 2)
    settings = SETTINGS.model_copy(
        update={"epochs": 3, "drift": 0.0, "learning_rate": 1e-9, "stop_at_recall": 0.95, "lose_at_most": allowance}
    )
    beside = Beside(kept_share=lambda model: 1.0)
    _, record = inject(tiny_llama(), tokenizer, new_facts(8), settings, tmp_path, beside=beside)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "recall" in row]
    assert [row.get("asked") for row in rows] == ([None] * 3 if allowance else [2, 2, None])
    assert record["recall_while_training"] == 0.0
