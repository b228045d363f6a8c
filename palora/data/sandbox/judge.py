"""The process of the tests: runs them, with a stand-in for each function of the solution. Its status is the verdict.

A stand-in sends its arguments to the process of the solution and makes the result, or the exception, from the
plain values that come back; lists, sets and dicts that the function changed change here too. An answer that is no
answer, and a solution that has ended, end the judge.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
from types import CodeType

from .cage import end_with_parent, limit
from .plain import pack, unpack
from .solution import serve

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would double the time that a process takes to start
    from collections.abc import Callable
    from typing import Any, NoReturn

LINE = 2**24  # bytes of an answer


def main() -> None:
    """Judge the job on stdin; argv: the arguments of `cage.enter` for the solution."""
    way, (seconds, clock, megabytes) = sys.argv[1], map(int, sys.argv[2:5])
    signal.alarm(clock)
    end_with_parent()
    (requests, calls), (answers, replies) = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:  # before the job is read, so that the solution's process never held it
        serve(requests, replies, way, seconds, clock, megabytes)
    os.close(requests)
    os.close(replies)
    limit(seconds, megabytes)
    stop = signal.SIGTERM if way == "namespaces" else signal.SIGKILL  # the first ends and reaps those in them
    solution = Solution(process, stop, answers, calls)
    try:
        passed(solution, **json.load(sys.stdin))
    except BaseException:
        solution.end(1)
    solution.end(0)


def passed(solution: Solution, code: str, tests: str, function: str, given: str) -> None:
    """Run the tests. They raise where the solution is wrong.

    Args:
        solution: the process that runs `code`.
        function: the name of the solution that is tested; "": only those below.
        given: statements before the tests, of the task itself. Names that the tests use and that neither Python
            nor these have are taken from the solution too.
    """
    program, before = compile(tests, "tests.py", "exec"), compile(given, "given.py", "exec")
    own: dict[str, Any] = {"__name__": "tests"}
    exec(before, own)
    names = used(program) - set(own) - set(dir(builtins)) | ({function} - {""})
    exec(program, own | solution.start(code, sorted(names)))


def used(code: CodeType) -> set[str]:
    """The names that `code` reads or sets, of attributes too."""
    return set(code.co_names).union(*(used(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


class Solution:
    """The other process."""

    def __init__(self, process: int, stop: int, answers: int, calls: int) -> None:
        self.process, self.stop = process, stop
        self.answers, self.calls = os.fdopen(answers, "rb"), os.fdopen(calls, "w", encoding="ascii")

    def start(self, code: str, names: list[str]) -> dict[str, Any]:
        """Run the code; the stand-ins and values for those of the `names` that it makes."""
        found = self.ask({"code": code, "names": names})
        try:
            made = {name: found[name][1:] for name in names if name in found}  # and no more: it could send `set`
            return {name: unpack(*value) if value else self.stand_in(name) for name, value in made.items()}
        except Exception:
            self.end(1)

    def stand_in(self, name: str) -> Callable[..., Any]:
        """A function that has the solution's function called."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            sent = [pack(argument) for argument in arguments]
            reply = self.ask([name, sent, {key: pack(value) for key, value in keywords.items()}])
            try:
                kind, outcome, after = reply
                for mine, before, now in zip(arguments, sent, after, strict=True):
                    if now is not None and now != before:
                        change(mine, unpack(now))
                result = unpack(outcome) if kind == "return" else exception(*outcome)
            except Exception:
                self.end(1)
            if kind == "return":
                return result
            raise result

        return call

    def end(self, status: int) -> NoReturn:
        """End both. No exception: the tests could take it for one of the solution."""
        os.kill(self.process, self.stop)
        os.waitpid(self.process, 0)
        os._exit(status)

    def ask(self, message: Any) -> Any:
        """The answer to a message."""
        try:
            print(json.dumps(message), file=self.calls, flush=True)
            line = self.answers.readline(LINE)
            return json.loads(line) if line.endswith(b"\n") else self.end(1)
        except Exception:
            self.end(1)


def change(mine: Any, now: Any) -> None:
    """Let `mine`, an argument, be what the solution has made of it."""
    if type(mine) is not type(now):
        return
    if isinstance(mine, list | bytearray):
        mine[:] = now
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(now)
    elif isinstance(mine, tuple):
        for item, changed in zip(mine, now, strict=True):
            change(item, changed)


def exception(name: str, message: str) -> Exception:
    """The exception of Python that the solution raised, or that its own was made from."""
    kind = getattr(builtins, name, None)
    try:
        return kind(message) if isinstance(kind, type) and issubclass(kind, Exception) else Exception(message)
    except TypeError:  # UnicodeDecodeError wants more than a message
        return Exception(message)
