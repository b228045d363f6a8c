"""The curve of stage 2 in other loggers: the loss with its parts, recall and drift; one that is missing is named."""

import sys
from unittest import mock

import pytest
from conftest import tiny_llama
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from palora.algebra.statistics import weighed
from palora.common.errors import InputError
from palora.common.metrics import read_metrics
from palora.common.settings import InjectSettings, ProtectSettings
from palora.data.facts import Fact
from palora.data.skills import get_skill
from palora.language.keep import Keep
from palora.training.injection import Beside, inject
from palora.training.protection import protect
from palora.training.reporting import close, loggers

FACTS = [Fact(question=f"Code {i}?", answer=str(i)) for i in range(8)]
KEEP = Keep([get_skill("chain")], examples=8)


class Noting(TrainerCallback):
    """A logger that keeps the rows it is given."""

    rows: list[tuple[int, dict[str, float]]] = []  # noqa: RUF012

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append((state.global_step, dict(logs)))


@pytest.fixture
def noting(monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "swanlab", Noting)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["swanlab"])
    monkeypatch.setattr(Noting, "rows", [])
    return Noting.rows


def teach(tokenizer, folder, report_to):
    chosen = {"r": 4, "lora_alpha": 8, "learning_rate": 0.01, "epochs": 2, "batch_size": 4, "distil": 1.0}
    settings = InjectSettings(**chosen, lora_dropout=0.0, recall_every=1, stop_at_recall=1.0, report_to=report_to)
    protection = protect(tiny_llama(), tokenizer, ProtectSettings(strength=1.0), KEEP, FACTS)
    model = tiny_llama()
    beside = Beside(rows=weighed(KEEP.tokenised(model, tokenizer), settings.keep.weights))
    work = folder / "adapter.work"
    work.mkdir(parents=True)
    _, record = inject(model, tokenizer, FACTS, settings, work, protection, beside)
    return record, read_metrics(work / "metrics.jsonl")


def test_the_loss_its_parts_recall_and_drift_are_logged(tokenizer, tmp_path, noting):
    record, curve = teach(tokenizer, tmp_path, "swanlab")
    losses = [row for _, row in noting if "loss" in row]
    assert [row["loss"] for row in losses] == [row["loss"] for row in curve if "loss" in row] != []
    for row in losses:
        parts = [row[f"loss_{part}"] for part in ("facts", "drift", "rehearsal")]
        assert sum(parts) == pytest.approx(row["loss"]) and parts[0] > 0
    assert losses[-1]["loss_drift"] > 0 and losses[-1]["loss_rehearsal"] > 0, "they have moved"
    for key in ("recall", "drift"):
        assert [(s, row[key]) for s, row in noting if key in row] == [(r["step"], r[key]) for r in curve if key in r]
    assert record["settings"]["report_to"] == "swanlab"


def test_logging_elsewhere_changes_nothing_of_the_training(tokenizer, tmp_path, noting):
    with_it, curve = teach(tokenizer, tmp_path / "a", "swanlab")
    without, other = teach(tokenizer, tmp_path / "b", "none")
    assert curve == other and with_it["loss"] == without["loss"]
    assert InjectSettings(report_to="wandb").identity() == InjectSettings().identity(), "nor is it done again for it"


def test_tensorboard_has_it_beside_the_adapter(tokenizer, tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX (of palora[dev]) is not there")
    _, curve = teach(tokenizer, tmp_path, "tensorboard")
    (file,) = (tmp_path / "tensorboard" / "palora").glob("events.out.tfevents.*")
    told, tags, data = [], set(), file.read_bytes()
    while data:  # a record: its length, a checksum of 4 bytes, an event, another checksum
        end = 12 + int.from_bytes(data[:8], "little")
        event, data = event_pb2.Event.FromString(data[12:end]), data[end + 4 :]
        for value in event.summary.value:
            tags.add(value.tag.removeprefix("train/"))
            told += [(event.step, value.simple_value)] if value.tag == "train/recall" else []
    assert {"loss", "loss_drift", "loss_rehearsal", "recall", "drift"} <= tags
    assert told == [(row["step"], pytest.approx(row["recall"])) for row in curve if "recall" in row]


def test_a_run_of_weights_and_biases_ends_with_its_arm(monkeypatch):
    """Or the next arm of the same process would go on writing into it."""
    monkeypatch.setitem(sys.modules, "wandb", mock.MagicMock())
    close(["tensorboard"])
    sys.modules["wandb"].finish.assert_not_called()
    close(["tensorboard", "wandb"])
    sys.modules["wandb"].finish.assert_called_once_with()


def test_a_logger_that_is_missing_or_unknown_is_named(monkeypatch):
    assert loggers("none") == []
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    assert loggers("tensorboard, none") == ["tensorboard"]
    with pytest.raises(InputError, match="wandb is not installed: pip install wandb"):
        loggers("tensorboard,wandb")
    with pytest.raises(InputError, match="there is no 'excel'; there are none, "):
        loggers("excel")
