"""Two processes that share a model teach what one does: `torchrun -m palora.cli inject`, by gloo on CPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import palora
from conftest import tiny_llama
from safetensors.torch import load_file

from palora.common.errors import InputError
from palora.common.metrics import read_metrics
from palora.common.settings import InjectSettings
from palora.data.facts import write_facts
from palora.testbed.world import known_facts, new_facts
from palora.training import sharding

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    made = tmp_path_factory.mktemp("shared")
    tiny_llama(num_hidden_layers=2).save_pretrained(made / "model")
    tokenizer.save_pretrained(made / "model")
    write_facts(made / "new.jsonl", new_facts(8))
    write_facts(made / "known.jsonl", known_facts()[:6])
    for rule, budget in (("covariance", ["--strength", "1"]), ("activation", ["--k", "8"])):
        kept = ["--skill", "chain", "--examples", "8"]
        made_by = palora("protect", "--model", made / "model", *kept, "--rule", rule, *budget, "--out", made / rule)
        assert made_by.code == 0, made_by.err
    return made


def start(out, *command):
    """palora in two processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = {**os.environ, "TOLD": str(out), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    out.mkdir()
    run = [sys.executable, *launcher, HERE / "two_processes.py", *command]
    return subprocess.run([*map(str, run)], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("rule", [None, "covariance", "activation"])
def test_two_processes_teach_what_one_does(folder, tmp_path, rule):
    """The same losses, recall and adapter, with distillation and drift; and the base really is sharded."""
    command = ["--model", folder / "model", "--facts", folder / "new.jsonl", "inject.r=4"]  # torchrun has an --r itself
    command += ["--epochs", "6", "--batch-size", "4", "--learning-rate", "0.005", "--recall-every", "3"]
    command += ["--targets-by", "bare", "--stop-at-recall", "1", "--lora-dropout", "0"]
    if rule:
        command += ["--protection", folder / rule, "--skill", "chain", "--known-facts", folder / "known.jsonl"]
        command += ["--drift", "100", "--distil", "1", "--kept-batch-size", "4", "inject.keep.examples=8"]
    done = palora("inject", *command, "--out", tmp_path / "one" / "adapter")
    assert done.code == 0, done.err
    done = start(tmp_path / "two", "inject", *command, "--json", "--out", tmp_path / "two" / "adapter")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout), "the first process alone speaks"
    found = {name: read_metrics(tmp_path / name / "adapter" / "metrics.jsonl") for name in ("one", "two")}
    one, two = found["one"], found["two"]
    assert len(one) == len(two) and any("recall" in row for row in one)
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "recall", "recall_f1", "drift"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-5)
    if rule:
        assert any(row.get("drift") for row in two)
    ours, theirs = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in found)
    assert set(ours) == set(theirs)
    assert all((ours[key] - theirs[key]).abs().max() < 1e-4 for key in ours)
    for rank in "01":
        parts = json.loads((tmp_path / "two" / f"{rank}.json").read_text())
        matrices = [size for key, size in parts.items() if ".layers." in key and len(size[0]) == 2]
        assert len(matrices) > 14, "of the base, and of the adapter"
        assert all(here == [whole[0] // 2, whole[1]] for whole, here in matrices)
    if rule is None:
        before = (tmp_path / "two" / "adapter" / "metrics.jsonl").stat().st_mtime_ns
        done = start(tmp_path / "again", "inject", *command, "--out", tmp_path / "two" / "adapter")
        assert done.returncode == 0 and "is up to date" in done.stderr, "neither trains, nor waits for the other"
        assert (tmp_path / "two" / "adapter" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("command", [("protect", "--skill", "chain"), ("expert", "--skill", "chain"), ("demo",)])
def test_what_does_not_work_together_is_refused_at_once(folder, tmp_path, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = () if command == ("demo",) else ("--model", folder / "model")
    done = palora(*command, *model, "--out", tmp_path / "made")
    assert done.code == 2 and done.err == (
        "palora: only `palora inject` works in several processes; start this without torchrun\n"
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"batch_size": 3}, "choose a multiple of 2"), ({"targets_by": "sdft"}, "sdft"), ({"lose_at_most": 0.1}, "lose")],
)
def test_a_training_that_cannot_be_spread_is_refused(monkeypatch, settings, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=said):
        sharding.prepare(InjectSettings(**settings))
