"""Plain values as JSON, with their types: pack(({1}, 2.0)) = ["tuple", [["set", [1]], 2.0]], and back.

Values of a subclass become those of the plain type: a defaultdict a dict, an int whose `==` is always true an int.
Other numbers become plain ones, and whatever else can be iterated an iterator over its first values. Of all else only
the name of its type and its truth arrive, in an `Other` that equals nothing but itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from numbers import Number

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would double the time that a process takes to start
    from collections.abc import Callable
    from typing import Any

ITEMS = 100_000  # of an iterator, which may have no end


class Other:
    """What stands for a value that is not plain, such as the match of a regular expression."""

    def __init__(self, kind: str, truth: bool) -> None:
        self.kind, self.truth = str(kind), bool(truth)

    def __bool__(self) -> bool:
        return self.truth

    def __repr__(self) -> str:
        return f"<{self.kind}>"


MAKE: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "complex": lambda parts: complex(*map(float, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "list": lambda items: [unpack(item) for item in items],
    "tuple": lambda items: tuple(map(unpack, items)),
    "set": lambda items: set(map(unpack, items)),
    "frozenset": lambda items: frozenset(map(unpack, items)),
    "dict": lambda pairs: {unpack(key): unpack(value) for key, value in pairs},
    "iterator": lambda items: iter([unpack(item) for item in items]),
    "other": lambda content: Other(*content),
}


def pack(value: Any) -> Any:
    """What `json` can write of `value`."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 64 else ["int", hex(value)]  # decimal text stops at 4,300 digits
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [pack(item) for item in value]]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number or truth of NumPy
        return pack(value.item())
    if isinstance(value, Number):  # a Fraction, a Decimal
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, Iterable):
        return ["iterator", [pack(item) for item in islice(value, ITEMS)]]
    return ["other", [type(value).__name__, bool(value)]]


def unpack(packed: Any) -> Any:
    """The value of `pack`. Any exception where `packed` is nothing that `pack` writes."""
    if packed is None or isinstance(packed, bool | int | str):
        return packed
    if isinstance(packed, float):
        return packed * 1.0  # a new one: `json` has a single NaN, and a container takes the same one as equal
    kind, content = packed
    return MAKE[kind](content)
