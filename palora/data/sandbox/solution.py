"""The process of a solution: runs it in a cage, then answers calls of its functions.

    <- {"code": "def double(x): return 2 * x", "names": ["double", "half"]}      ->  {"double": ["function"]}
    <- ["double", [4], {}]                                                      ->  ["return", 8, [null]]
    <- ["double", [null], {}]                                       ->  ["raise", ["TypeError", "…"], [null]]

The last list is what the arguments have become, for those that a function can change.
"""

from __future__ import annotations

import json
import os
import sys
import types

from .cage import enter
from .plain import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would double the time that a process takes to start
    from typing import Any, NoReturn


def serve(requests: int, replies: int, *cage: Any) -> NoReturn:
    """Serve the process at the other ends of two pipes, in the cage, until it closes them."""
    try:
        os.dup2(requests, 0)
        os.dup2(replies, 1)
        os.closerange(3, 256)
        enter(*cage)
        lines, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):  # a solution may print, and finds no input
            os.dup2(nowhere, stream)
        sys.argv[1:] = []
        sys.dont_write_bytecode = True
        wanted = json.loads(lines.readline())
        module = sys.modules["solution"] = types.ModuleType("solution")
        exec(compile(wanted["code"], "solution.py", "exec"), module.__dict__)
        print(json.dumps(shown(vars(module), wanted["names"])), file=out, flush=True)
        for line in lines:
            print(json.dumps(answer(vars(module), *json.loads(line))), file=out, flush=True)
    finally:
        os._exit(0)  # nothing that the solution left for the end is run


def shown(names: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """What the solution made under each of the `wanted` names: a function, or a plain value."""
    found = {name: names[name] for name in set(wanted) & set(names)}
    return {name: ["function"] if callable(made) else ["value", pack(made)] for name, made in found.items()}


def answer(names: dict[str, Any], name: str, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    """What a call gives or raises, packed, and its arguments after it."""
    given = [unpack(argument) for argument in arguments]
    try:
        outcome = ["return", pack(names[name](*given, **{key: unpack(value) for key, value in keywords.items()}))]
    except Exception as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
        outcome = ["raise", [known, str(error)]]
    return [*outcome, [pack(a) if isinstance(a, list | dict | set | bytearray | tuple) else None for a in given]]
