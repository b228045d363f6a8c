"""Run model-written Python against tests, in a process of its own.

    run_tests("def double(x): return 2 * x", "assert double(2) == 4")   ->   True

**Not a security sandbox.** The process has a time limit, a memory limit, a temporary working folder, no
inherited environment and no output, which contains accidents: endless loops, endless memory, endless files.
It can still read and delete whatever its user can, reach the network, and leave processes behind. So nothing
runs until PALORA_ALLOW_CODE=1 is set; set it where nothing is lost, in a container without network. Needs a
POSIX system.
"""

import contextlib
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from palora.common.errors import InputError

SWITCH = "PALORA_ALLOW_CODE"

# Runs in the child. The verdict is a file that holds a word the solution was never told: an exit status or a
# line of output could come from the solution itself (`sys.exit(0)` before the tests). Solution and tests are
# compiled apart, so that an open quote or a loop at the end of one cannot swallow the other.
DRIVER = """
import resource, sys, types
word = sys.stdin.readline()
cpu, memory = map(int, sys.argv[1:])
for name, most in (("CPU", cpu), ("AS", memory), ("FSIZE", 2**24), ("CORE", 0), ("NPROC", 0)):
    try:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    except (AttributeError, ValueError, OSError):
        pass  # macOS refuses some; NPROC, which stops fork bombs, does not bind root
module = sys.modules["solution"] = types.ModuleType("solution")
for part in ("solution.py", "tests.py"):
    with open(part, encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, part, "exec"), module.__dict__)
with open("passed", "w") as file:
    file.write(word)
"""

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def require_permission() -> None:
    """Raise InputError unless the user allowed running a model's code, and this machine can limit it."""
    if os.environ.get(SWITCH) != "1":
        raise InputError(
            f"this skill runs code that the model writes, and palora is no sandbox:"
            f" set {SWITCH}=1 to allow it, best in a container without network"
        )
    if os.name != "posix":
        raise InputError("this skill runs code under resource limits, which needs Linux or macOS")


def extract_code(completion: str, function: str) -> str:
    """The code of a completion: the first block that defines `function`, else the first, else all of it.

    Blocks stand between lines of ```. One that is never closed, in a completion cut off, reaches to the end.
    """
    blocks: list[str] = FENCE.findall(completion)
    return next((block for block in blocks if defines(block, function)), blocks[0] if blocks else completion)


def defines(code: str, function: str) -> bool:
    """Whether `code` defines `function` at its top level."""
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(function)}\b", code, re.MULTILINE) is not None


def run_tests(code: str, tests: str, *, timeout: float = 5.0, memory_mb: int = 1024) -> bool:
    """Whether `tests` run to their end after `code`, in the same module.

    Args:
        code: the solution.
        tests: statements that raise where the solution is wrong.
        timeout: seconds, wall clock; then the whole process group is killed.
        memory_mb: address space of the process, MiB.

    Returns:
        False for every failure: a wrong result, any exception, no valid Python, out of time or of memory.

    Raises:
        InputError: PALORA_ALLOW_CODE is not 1.
    """
    require_permission()
    word = secrets.token_hex(16)
    command = [sys.executable, "-I", "-B", "-c", DRIVER, str(math.ceil(timeout) + 1), str(memory_mb * 2**20)]
    with tempfile.TemporaryDirectory(prefix="palora-", ignore_cleanup_errors=True) as folder:
        for name, source in (("solution.py", code), ("tests.py", tests)):
            Path(folder, name).write_text(source, encoding="utf-8", errors="replace")
        with subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that its children can be killed with it
        ) as process:
            try:
                process.communicate(word.encode(), timeout=timeout)
                passed = Path(folder, "passed")
                return passed.is_file() and passed.read_bytes() == word.encode()
            except (subprocess.TimeoutExpired, OSError):
                return False
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
                    os.killpg(process.pid, signal.SIGKILL)
