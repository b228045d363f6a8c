"""Jobs side by side, each worker a process. Nothing heavy is imported here: a worker sets itself up before it is."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from palora.common.errors import PaloraError

log = logging.getLogger("palora")


class Job(NamedTuple):
    """A piece of work for any process: a function that can be pickled, and what it is called with."""

    label: str
    work: Callable[..., str | None]
    arguments: tuple[Any, ...]


class Workers:
    """Processes that do jobs, used as a context; they end when this process does. One worker is this process itself.

    Args:
        count: how many jobs are at work at once.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, _begin_worker) if count > 1 else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if self._pool is None:
            return
        if kind is not None and not issubclass(kind, Exception):  # interrupted: what is at work is not waited for
            for worker in list((self._pool._processes or {}).values()):
                worker.terminate()
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> None:
        """Do the jobs; say what came out of each, and how long the others will take.

        Raises: what a job raised; those that were at work end, the others are not begun.
        """
        started = time.monotonic()
        for done, (job, found) in enumerate(self._results(jobs), 1):
            left = (time.monotonic() - started) / done * (len(jobs) - done) / 60
            log.info("[%d/%d] %s%s · %.0f min left", done, len(jobs), job.label, f": {found}" if found else "", left)

    def _results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | None]]:
        """Each job with what it returned, as they end."""
        if self._pool is None:
            yield from ((job, job.work(*job.arguments)) for job in jobs)
            return
        futures = {self._pool.submit(job.work, *job.arguments): job for job in jobs}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BrokenProcessPool:
            raise PaloraError("a worker was killed (out of memory?); run this again with fewer --workers") from None


def _begin_worker() -> None:
    """A worker leaves without a word when it is interrupted, and when the process that began it is gone."""
    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
