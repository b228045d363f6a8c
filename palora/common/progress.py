"""What is told while work is done: one kind of progress bar, on standard error, for everything that takes longer than a
moment, and how a file was taken."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with Progress(*columns, console=console, transient=transient, disable=hidden) as bars:
        task = bars.add_task(escape(one_line(label)), total=total, completed=done)
        yield lambda units: bars.advance(task, units)
        bars.update(task, total=bars.tasks[0].completed)  # work that ended early is done


@lru_cache(maxsize=256)
def say_once(file: str, said: str) -> None:
    """Tell how a file was taken ("": nothing to tell), once a process: a run reads its files many times."""
    if said:
        logging.getLogger("palora").info("%s: %s", file, said)
