"""Run model-written Python against tests, where it finds neither the tests nor much else.

    run_tests("def double(x): return 2 * x", "assert double(2) == 4")   ->   True

The solution and the tests run in a process each, and exchange plain values (`palora.data.sandbox`). What contains
the solution depends on the machine (`palora/data/sandbox/cage.py`), and is said where it is not the
strongest. No way is proof against a hole in the system's kernel, so nothing runs until PALORA_ALLOW_CODE=1 is set;
set it where nothing is lost, in a container without network. Needs a POSIX system.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from palora.common.errors import InputError
from palora.common.progress import say_once
from palora.data import sandbox

SWITCH = "PALORA_ALLOW_CODE"
PATIENCE = 6  # seconds by the clock for one of processor time
START = (
    f"import sys; sys.path.insert(0, {str(Path(sandbox.__file__).parent.parent)!r});"
    " from sandbox.judge import main; del sys.path[0]; main()"
)
WEAK = (
    "the model's code runs without namespaces, which this machine does not allow: it can reach the network and"
    " {reach}; run palora in a container without network, one that allows user namespaces"
)
REACH = {"user": "the files that are everybody's", "limits": "the files and processes of this user"}

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def require_permission() -> None:
    """Raise InputError unless the user allowed running a model's code, and this machine can limit it."""
    if os.environ.get(SWITCH) != "1":
        raise InputError(
            f"this skill runs code that the model writes, and no sandbox is perfect:"
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


def run_tests(
    code: str, tests: str, *, function: str = "", given: str = "", timeout: float = 5.0, memory_mb: int = 1024
) -> bool:
    """Whether `tests` run to their end with what `code` defines.

    Args:
        code: the solution.
        tests: statements that raise where the solution is wrong.
        function: the name in the solution that is tested. Others that the tests use, and that neither Python nor
            `given` has, are taken from the solution too.
        given: statements before the tests, such as the task's own helpers.
        timeout: seconds of processor time for each process, so that a busy machine changes no verdict; after
            `PATIENCE` times as many by the clock all is killed, asleep or not.
        memory_mb: address space of each process, MiB.

    Returns:
        False for every failure: a wrong result, any exception, no valid Python, out of time or of memory; also
        where the tests need more of the solution than functions of plain values (methods, functions as arguments).

    Raises:
        InputError: PALORA_ALLOW_CODE is not 1.
    """
    require_permission()
    sources = {"code": code, "tests": tests, "function": function, "given": given}
    return _judge(_way(), sources, timeout, memory_mb)


@cache
def _way() -> str:
    """The strongest way to contain a solution that works here, found by trying."""
    trial = {"code": "import os, math\ndef pid(): return os.getpid()", "function": "pid", "given": ""}
    for way in sandbox.WAYS[:-1]:
        allowed = sys.platform == "linux" if way == "namespaces" else os.geteuid() == 0
        if allowed and _judge(
            way, trial | {"tests": f"assert pid() {'==' if way == 'namespaces' else '>'} 1"}, 30, 1024
        ):
            break
    else:
        way = sandbox.WAYS[-1]
    say_once(SWITCH, WEAK.format(reach=REACH[way]) if way in REACH else "")
    return way


def _judge(way: str, sources: dict[str, str], timeout: float, memory_mb: int) -> bool:
    """The verdict of `palora.data.sandbox.judge` on a solution."""
    job = json.dumps({name: source.encode(errors="replace").decode() for name, source in sources.items()})
    clock = PATIENCE * timeout
    with subprocess.Popen(
        [sys.executable, "-I", "-c", START, way, str(math.ceil(timeout)), str(math.ceil(clock) + 1), str(memory_mb)],
        cwd="/",
        env={"PATH": os.defpath, "HOME": "/tmp", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that the solution can be killed with it
    ) as judge:
        try:
            judge.communicate(job.encode(), timeout=clock)
            return judge.returncode == 0
        except (subprocess.TimeoutExpired, OSError):
            return False
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
                os.killpg(judge.pid, signal.SIGKILL)
