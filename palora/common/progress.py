"""What is told while work is done, on standard error: one kind of progress bar for everything that takes longer than a
moment, a line or a spinner where nothing can be counted, and how a file was taken."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

from palora.common.wording import one_line


@contextmanager
def progress_bar(label: str, total: int, done: int = 0, transient: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs.

    Args:
        total: units of work in all.
        done: units that an earlier run has done.
        transient: leave no line behind.

    Yields: a function to call with each further number of finished units.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = transient and not console.is_terminal  # in a log file even a vanishing bar would leave an empty line
    begun = nullcontext() if console.is_terminal else waiting(label)  # a log file is shown a bar when it is full
    with Progress(*columns, console=console, transient=transient, disable=hidden) as bars, begun:
        task = bars.add_task(escape(one_line(label)), total=total, completed=done)
        yield lambda units: bars.advance(task, units)
        bars.update(task, total=bars.tasks[0].completed)  # work that ended early is done


@contextmanager
def waiting(said: str, after: float = 1.0) -> Iterator[None]:
    """Say what is waited for while the block runs: by a spinner on a terminal, by a line elsewhere.

    Args:
        after: seconds in which nothing is said; most waits are shorter.
    """
    said = f"{one_line(said)} …"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        status = Console(stderr=True).status(escape(said))
        say, end = status.start, status.stop
    else:
        stream = sys.stderr
        say, end = (lambda: print(said, file=stream, flush=True)), (lambda: None)
    timer = threading.Timer(after, say)
    timer.daemon = True
    if after:
        timer.start()
    else:
        say()
    try:
        yield
    finally:
        timer.cancel()
        end()


class Counted:
    """Says which stage of how many begins."""

    def __init__(self, total: int) -> None:
        self.total, self.number = total, 0

    def begins(self, what: str) -> None:
        self.number += 1
        logging.getLogger("palora").info("stage %d of %d: %s", self.number, self.total, what)


@lru_cache(maxsize=256)
def say_once(file: str, said: str) -> None:
    """Tell how a file was taken ("": nothing to tell), once a process: a run reads its files many times."""
    if said:
        logging.getLogger("palora").info("%s: %s", file, said)
