"""The number of torch's threads: the free cores, what the user set, and back as it was."""

import logging
import os

import pytest
import torch
from command import palora

from palora.common import threads as own
from palora.common.threads import allowed_cores, free_cores, say_threads, threads


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("allowed", "cores", "load", "n"),
    [(2, 2, 0.0, 2), (2, 2, 0.9, 1), (2, 2, 7.0, 1), (4, 64, 20.0, 4), (4, 64, 61.2, 3), (128, 128, 3.0, 16)],
)
def test_no_more_threads_than_free_cores(allowed, cores, load, n):
    assert free_cores(allowed, cores, load) == n


def test_a_container_may_use_less_than_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert allowed_cores(tmp_path) == 8, "no limit"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert allowed_cores(tmp_path) == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert allowed_cores(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert allowed_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert allowed_cores(tmp_path) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert allowed_cores(tmp_path) == 8


def test_torch_works_with_them_and_is_as_before_afterwards(monkeypatch, caplog):
    monkeypatch.setattr(own, "allowed_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(own, "_load", lambda: 5.2)
    before = torch.get_num_threads()
    with caplog.at_level(logging.INFO, "palora"), threads():
        assert torch.get_num_threads() == 3 and os.environ["OMP_NUM_THREADS"] == "3", "8 − 5.2, also for a child"
        say_threads("cuda")
        assert not caplog.messages
        say_threads("cpu")
        say_threads("cpu")
    assert caplog.messages == ["CPU: 3 threads (of 4 cores, load 5.2; --threads sets it)"]
    assert torch.get_num_threads() == before and "OMP_NUM_THREADS" not in os.environ


def test_what_the_user_set_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    with threads():
        assert torch.get_num_threads() == before and os.environ["OMP_NUM_THREADS"] == "7"
    with threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before and os.environ["OMP_NUM_THREADS"] == "7"


def test_a_command_takes_threads_and_says_so_first(made, tmp_path, caplog):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palora.training.protection.collect", lambda *a: seen.append(torch.get_num_threads()) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            palora("protect", "--model", made.model, "--skill", "chain", "--out", tmp_path / "p", "--threads", 3)
    assert seen == [3]
    caplog.clear()
    evaluated = palora(
        *("evaluate", "--model", made.model, "--skill", "chain", "--problems", 2, "--out", tmp_path / "e"),
        *("--threads", 2, "--device", "cpu"),
    )
    assert evaluated.code == 0 and caplog.messages[0] == "CPU: 2 threads (--threads)"
    assert palora("protect", "--threads", 0, "--out", tmp_path / "p").code == 2


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "run",
        "expert",
        "protect",
        "inject",
        "evaluate",
        "spectrum",
        "export",
        "facts classify",
        "facts rephrase",
    ],
)
def test_every_command_that_computes_takes_threads(command):
    assert "--threads" in palora(*command.split(), "--help").out
