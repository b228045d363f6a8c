"""Processes that `torchrun` or `accelerate launch` starts to train one model together."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palora.common.errors import InputError


def processes() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is. The first, 0, alone writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def alone() -> None:
    """Raise InputError where there are several."""
    if processes() > 1:
        raise InputError("only `palora inject` works in several processes; start this without torchrun")


@contextmanager
def first_speaks(out: Path) -> Iterator[Path]:
    """The folder to write for the first process; for any other one silence, and a copy that is thrown away, by which it
    knows too what is done already."""
    if rank() == 0:
        yield out
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # to its end, and libraries too
        os.dup2(nowhere, stream)
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "out"
        if out.is_dir():
            shutil.copytree(out, mine)
        yield mine
