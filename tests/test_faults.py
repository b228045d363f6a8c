"""A small run is stopped at every one of its writes in turn; the same command again ends with the same adapter.

killed: the process ends before the file takes its place, and nothing is cleaned up. full: the disk has no room for it.
cut: the file takes its place with half of its bytes, and then the process ends (a disk that lied).
Three of them in every run; all with PALORA_FUZZ set (`make fuzz`).
"""

import os
import sys
from pathlib import Path

import pytest
import yaml
from command import palora, tree
from safetensors.torch import load_file

EVERY = bool(os.environ.get("PALORA_FUZZ"))
KILLED = 77
real_replace = os.replace


@pytest.fixture(scope="module")
def recipe(made, tmp_path_factory):
    values = {
        "model": str(made.model),
        "skills": ["chain"],
        "facts": str(made.facts),
        "protect": {"rule": "covariance", "keep": {"examples": 4}},
        "inject": {"r": 2, "epochs": 2, "targets_by": "bare", "stop_at_recall": None, "distil": 0.0, "drift": 0.0},
        "evaluate": {"problems": 2, "max_answer_tokens": 2, "answers": 0},
        "arms": {"lora": None},
    }
    file = tmp_path_factory.mktemp("faults") / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def run_in_a_child(recipe: Path, out: Path, at: int, fault: str) -> int:
    """The run, in a process of its own, stopped at its write number `at`. Returns its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def replace(source, target, **named):
        nonlocal count
        count += 1
        if count != at:
            return real_replace(source, target, **named)
        if fault == "full":
            raise OSError(28, "No space left on device")
        if fault == "cut" and os.path.isfile(source):
            os.truncate(source, os.path.getsize(source) // 2)
            real_replace(source, target, **named)
        os._exit(KILLED)

    code = 1
    try:
        os.replace = replace
        code = palora("run", recipe, "--out", out).code
    finally:
        os._exit(code)


def writes_of(recipe: Path, out: Path) -> int:
    """How many files and folders a run puts into their places."""
    calls = []

    def counted(*arguments, **named):
        calls.append(1)
        return real_replace(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counted)
        result = palora("run", recipe, "--out", out)
    assert result.code == 0, result.err
    return len(calls)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_run_that_is_stopped_at_any_write_ends_as_if_it_had_not_been(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PALORA_CACHE", "")  # what is kept between runs would hide a write
    n = writes_of(recipe, tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    tried = [(at, fault) for at in range(1, n + 1) for fault in ("killed", "full", "cut")]
    for at, fault in tried if EVERY else [(1, "killed"), (n // 2, "cut"), (n - 3, "full")]:
        out = tmp_path / f"{at}-{fault}"
        code = run_in_a_child(recipe, out, at, fault)
        assert code in ((1,) if fault == "full" else (KILLED,)), (at, fault, code)
        again = palora("run", recipe, "--out", out)
        if again.code:  # a file that was cut is seen, and named: nothing is made of it
            assert fault == "cut" and len(again.complaints) == 1 and str(out) in again.err, (at, fault, again.err)
            continue
        resumed = load_file(out / "adapter" / "adapter_model.safetensors")
        assert resumed.keys() == whole.keys(), (at, fault)
        assert all((resumed[name] == whole[name]).all() for name in whole), (at, fault)
        assert not [path for path in tree(out) if ".partial" in path or path.endswith(".old")], (at, fault)
