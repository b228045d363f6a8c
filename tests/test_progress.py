"""What is told while work is done: at once, without silence, in a terminal and in a log file."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from command import palora

from palora import __version__
from palora.common.progress import progress_bar, waiting
from palora.results.inspection import learned
from palora.training.protection import coverage_told


def test_a_short_wait_is_silent_and_a_long_one_is_told(capsys):
    with waiting("short", after=0.5):
        pass
    with waiting("long", after=0.01):
        time.sleep(0.2)
    with pytest.raises(ValueError), waiting("failed", after=0.5):
        raise ValueError
    with waiting("at once", after=0):
        assert "at once …\n" in capsys.readouterr().err
    time.sleep(0.6)
    assert capsys.readouterr().err == ""


def test_in_a_log_file_a_bar_says_that_it_has_begun(capsys, monkeypatch):
    monkeypatch.setattr("palora.common.progress.waiting.__wrapped__.__defaults__", (0.01,))
    with progress_bar("Reading", 2) as advance:
        time.sleep(0.2)
        assert capsys.readouterr().err == "Reading …\n"
        advance(2)
    assert re.search(r"Reading .* 2/2", capsys.readouterr().err)


def in_a_terminal(program, seconds=30):
    """What a program shows on a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stderr=follower, stdout=follower)
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # the terminal is closed
        pass
    os.close(leader)
    assert process.wait(timeout=seconds) == 0
    return shown.decode()


def test_in_a_terminal_a_wait_is_a_spinner_that_leaves_nothing():
    shown = in_a_terminal(
        "import time\nfrom palora.common.progress import waiting\n"
        "with waiting('thinking', after=0.01):\n    time.sleep(0.6)\nprint('done')"
    )
    assert len(re.findall(r"thinking …", shown)) > 3, "it turns"
    assert re.search(r"\x1b\[2K.*done\s*$", shown, re.DOTALL), "the line is wiped"


def test_a_command_speaks_before_it_loads_anything_heavy(made, tmp_path):
    """The first line is there while torch is not."""
    program = (
        "import sys, builtins\nreal = builtins.__import__\n"
        "def load(name, *rest):\n"
        "    if name == 'torch':\n        raise SystemExit(9)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = load\nfrom palora import cli\n"
        f"sys.argv = ['palora', 'inject', '--model', 'm', '--facts', 'f.csv', '--out', {str(tmp_path / 'o')!r}]\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == f"palora {__version__}: loading torch and transformers …\n" and not done.stdout


def test_ctrl_c_ends_with_one_line_and_130(made, tmp_path):
    command = [sys.executable, "-m", "palora.cli", "inject", "--model", str(made.model), "--facts", str(made.facts)]
    rest = ["--epochs", "100000", "--learning-rate", "1e-9", "--targets-by", "bare", "--out", str(tmp_path / "a")]
    process = subprocess.Popen(
        [*command, *rest],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )
    told = [process.stderr.readline()]
    deadline = time.monotonic() + 100
    curve = tmp_path / ".a.work" / "metrics.jsonl"
    while not (curve.exists() and "loss" in curve.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)  # until it trains
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not out
    lines = [
        line
        for line in (told[0] + err).splitlines()
        if line.strip() and not line.startswith(("CPU: ", "Teaching the facts"))
    ]
    assert lines == [
        f"palora {__version__}: loading torch and transformers …",
        "palora: stopped; run the same command again to continue",
    ]


# --- what numbers mean ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skill", "facts", "told"),
    [
        (0.885, 0.505, "the protection covers 88.5% of the skill's input energy, 50.5% of the facts': good"),
        (0.885, None, "the protection covers 88.5% of the skill's input energy: good"),
        (0.4, 0.2, "the protection covers 40.0% of the skill's input energy, 20.0% of the facts'"),
        (0.6, 0.7, "the protection covers 60.0% of the skill's input energy, 70.0% of the facts'"),
        (None, None, None),
    ],
)
def test_the_coverage_is_judged(skill, facts, told):
    assert coverage_told({"rule": "svf", "sides": "both", "coverage": {"skill": skill, "facts": facts}}) == told


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"recall_while_training": 1.0}, "all 30 facts, in 12 epochs"),
        ({"recall_while_training": 0.0}, "no fact was learned in 12 epochs: raise epochs or learning_rate"),
        ({"recall_while_training": 0.9}, "27 of 30 facts, in 12 epochs: short of the 95% asked for; raise epochs"),
        ({"recall_while_training": 29 / 30}, "29 of 30 facts, in 12 epochs: it stopped there"),
        ({"recall_while_training": None}, "not measured while training"),
        ({"recall_while_training": 0.9, "restored": {"epoch": 4.0, "recall": 0.5}}, "15 of 30 facts, after 4 epochs"),
        ({"recall_while_training": 0.9, "restored": {"epoch": 0, "recall": None}}, "nothing: every state lost more"),
    ],
)
def test_how_many_facts_were_learned_is_said(training, told):
    record = {"epochs": 12.0, "settings": {"stop_at_recall": 0.95}, **training}
    assert learned({"facts": {"n": 30}, "training": record}).startswith(told)


def test_inject_alone_says_how_many_facts_were_learned(made, tmp_path):
    given = ("inject", "--model", made.model, "--facts", made.facts, "--targets-by", "bare", "--r", 2)
    nothing = palora(*given, "--epochs", 1, "--out", tmp_path / "a")
    assert re.search(r"^learned +no fact was learned in 1 epochs?: raise epochs", nothing.out, re.MULTILINE)
    much = ("--epochs", 60, "--learning-rate", 0.05, "--r", 16)
    everything = palora(*given[:-2], *much, "--out", tmp_path / "b")
    assert re.search(r"^learned +(all 6|[1-5] of 6) facts, in ", everything.out, re.MULTILINE), everything.out


def test_a_name_that_is_waited_for_cannot_steer_the_terminal(capsys):
    with waiting("Loading \x1b[31mred\nmodel", after=0):
        assert capsys.readouterr().err == "Loading \\u001b[31mred model …\n"
    shown = in_a_terminal(
        "import time\nfrom palora.common.progress import waiting\n"
        "with waiting('[bold]mine[/bold]', after=0.01):\n    time.sleep(0.6)"
    )
    assert "[bold]mine[/bold] …" in shown, "and is no markup"
