"""The process that a cell runs in: silent, with one thread, its time and memory counted."""

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what the block writes to standard error (bars of several processes at once) to a file, which is removed
    when the block ends well; with one thread, so that the numbers do not depend on how many work beside it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
            yield
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        torch.cuda.empty_cache()  # another process may need it; nothing where there is no GPU
    log.unlink()


def clock() -> float:
    """Seconds, for the cost of a training: CPU time, in which neighbours do not count; on a GPU the time of day."""
    return time.monotonic() if torch.cuda.is_available() else time.process_time()


def reset_peak_memory() -> None:
    """Start counting anew, where the system lets us (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
