"""One kind of progress bar, on standard error, for everything that takes longer than a moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
        task = bars.add_task(label, total=total, completed=done)
        yield lambda units: bars.advance(task, units)
        bars.update(task, total=bars.tasks[0].completed)  # work that ended early is done
