"""Numbers and lists as they stand in a sentence."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(value: float, decimals: int = 0) -> str:
    """0.974 -> "97%". Near 0 and near 1 it keeps a decimal: 99.6% is not 100%."""
    if (0 < value < 0.01) or (0.99 < value < 1):
        decimals = max(decimals, 1)
    text = f"{100 * value:.{decimals}f}"
    if float(text) == 100 and value < 1:
        return "> 99.9%"
    if float(text) == 0 and value > 0:
        return "< 0.1%"
    return text + "%"


def significant(value: float) -> str:
    """Three significant digits: 3.1415 -> "3.14", 0.0000003 -> "3.0 × 10⁻⁷"."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def power_of_ten(value: float) -> str:
    """1e-07 -> 10⁻⁷; from 0.1 to 100 the plain number."""
    if 0.09 < value < 101:
        return f"{value:g}"
    exponent = f"{math.log10(value):.0f}" if value > 0 else "0"
    return "10" + exponent.translate(_SUPERSCRIPT)


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def enumeration(parts: Iterable[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last


def capital(sentence: str) -> str:
    """A sentence with its first letter a capital, but for palora's."""
    return sentence if sentence.startswith("palora") else sentence[:1].upper() + sentence[1:]


# Control characters but for the tab and the line's end; what turns the direction of writing; half characters.
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text for a terminal: what would move its cursor, colour it or turn it round is written out, as `\\u001b`."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """`printable`, without the ends of lines and tabs."""
    return printable(re.sub(r"\s*[\r\n\t]+\s*", " ", text).strip())


def json_text(value: Any) -> str:
    """A value as JSON for a terminal; it reads back as it is."""
    return printable(json.dumps(value, indent=2, ensure_ascii=False))


def markdown(text: str) -> str:
    """A text as it stands, within Markdown: on one line, without HTML, links or the end of a cell."""
    return re.sub(r"[<>&|`\[\]\\]", r"\\\g<0>", one_line(text))
