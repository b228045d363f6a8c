"""How many threads torch works with on a CPU: as many as there are cores that nobody uses.

    threads = cores that this process may use, but no more than the machine's cores − its load, from 1 to MOST

The load is that of the last minute. Two processes with a thread a core each wait for one another: beside other work a
step of the demo took 7.9 s with torch's default, a thread a core, and 0.55 s with one. The same number of threads gives
the same results, so who wants those of another day sets it: `--threads`, or OMP_NUM_THREADS.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("palora")

MOST = 16  # unasked: the others of a larger machine may be wanted in the next minute
VARIABLE = "OMP_NUM_THREADS"  # torch reads it when it is imported
_untold: list[str] = []  # what is to be said of the threads, where it turns out that the CPU does the work


@contextmanager
def threads(asked: int | None = None) -> Iterator[None]:
    """While open, torch works with `asked` threads; by default with those of OMP_NUM_THREADS, where it is set, or as
    many as there are free cores. torch is not imported for it."""
    given, before = os.environ.get(VARIABLE), _now()
    if asked is not None:
        n, why = asked, "--threads"
    elif given is not None:
        n, why = None, VARIABLE
    else:
        may, there, load = allowed_cores(), os.cpu_count() or 1, _load()
        n, why = free_cores(may, there, load), f"of {may} cores, load {load:.1f}; --threads sets it"
    if n is not None:
        os.environ[VARIABLE] = str(n)
        _set(n)
    _untold[:] = [why]
    try:
        yield
    finally:
        _untold.clear()
        os.environ.pop(VARIABLE, None)
        if given is not None:
            os.environ[VARIABLE] = given
        if before is not None:
            _set(before)


def say_threads(device: str) -> None:
    """Tell once, where `device` is a CPU, how many threads do the work and why that many."""
    if _untold and device == "cpu":
        n = _now()
        log.info("CPU: %s thread%s (%s)", n, "" if n == 1 else "s", _untold.pop())


def free_cores(allowed: int, cores: int, load: float) -> int:
    """How many threads to work with: the `allowed` cores, but no more than are free of the machine's `cores`, on which
    `load` threads are at work; from 1 to MOST."""
    return max(1, min(allowed, round(cores - load), MOST))


def allowed_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use: its affinity and, in a container, the limit of its cgroup under `root`,
    rounded down, and 1 at least."""
    # macOS and Windows have no affinity to ask for.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota(root) or cores)))


def _quota(root: Path) -> float | None:
    """The cores' worth of time that a cgroup (version 2, or 1) may use; None for any."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period, *_ = " ".join((root / file).read_text() for file in files).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _load() -> float:
    """Threads at work on the machine in the last minute; 0 where the system does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _now() -> int | None:
    """The threads of torch, where it is imported."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


def _set(n: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n)
