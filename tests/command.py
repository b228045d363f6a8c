"""Run the command line inside this process, and see what it says and what it leaves behind."""

import contextlib
import hashlib
import io
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from palora import cli

# Settings that make a stage a matter of a fraction of a second.
QUICK = {
    "expert": ("--objective", "next_token", "--iterations", 2, "--batch-size", 8),
    "protect": ("--examples", 8),
    "inject": ("--epochs", 2, "--r", 2, "--targets-by", "bare"),
    "evaluate": ("--problems", 4, "--max-answer-tokens", 4),
}
_BAR = re.compile(r"\d+/\d+ \d+:\d\d:\d\d")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines on standard error that tell no progress: no bar, and nothing that has begun (`Reading …`)."""
        told = [line for line in self.err.splitlines() if line.strip() and not _BAR.search(line)]
        return [line for line in told if not line.endswith(" …")]


def palora(*arguments: object) -> Result:
    """`palora arguments…`, in this process. What is not caught by the command line is raised here."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        mock.patch.object(sys, "argv", ["palora", *map(str, arguments)]),
        contextlib.suppress(SystemExit),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
            raise
    assert isinstance(code, int), f"the command must end by its exit code, not by {code!r}"
    return Result(code, out.getvalue(), err.getvalue())


def tree(folder: Path) -> dict[str, str]:
    """What lies under a folder: the hash of every file, and every folder, by path."""
    return {
        str(path.relative_to(folder)): "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }
