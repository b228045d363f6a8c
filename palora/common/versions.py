"""Which versions of what made a result, by which command, and on which machine."""

import os
import platform
import shlex
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from palora import __version__


def versions(*more: str) -> dict[str, str]:
    """The machine, and the versions of palora, Python and the libraries whose behaviour a result depends on, `more` of
    them where others had a part in it."""
    found = {"machine": machine(), "python": platform.python_version(), "palora": __version__}
    for package in ("torch", "transformers", "peft", "trl", "accelerate", "datasets", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command() -> str | None:
    """The command line that is at work, as it can be typed again; None where palora is used from Python."""
    name, *given = sys.argv or [""]
    return shlex.join(["palora", *given]) if Path(name).name in ("palora", "palora.exe") else None


def machine() -> str:
    """The GPU, or the processor as the system calls it, with the number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
