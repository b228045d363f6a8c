"""How things look everywhere: the colours of pictures and pages, light and dark; the colour and marker of every arm."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

# name -> (light, dark). The hues are Okabe and Ito's, darkened to a contrast of at least 3:1 on white.
PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14181d"),
    "ink": ("#1b1f24", "#e6e9ed"),
    "muted": ("#68707a", "#9aa4af"),
    "line": ("#d3d8de", "#3b434d"),
    "area": ("#eceff2", "#262d35"),
    "goal": ("#dcefe6", "#1d3b30"),
    "palora": ("#0072b2", "#5bb8f5"),
    "lora": ("#d55e00", "#ff9254"),
    "expert": ("#00876a", "#3fcfa4"),
    "base": ("#5b6069", "#b4bac2"),
    "extra-1": ("#a1478d", "#e391d3"),
    "extra-2": ("#8c6a00", "#e3b93c"),
    "extra-3": ("#5a4ab4", "#aa9dff"),
    "extra-4": ("#08848f", "#52d6e3"),
}


@dataclass(frozen=True)
class Style:
    """How an arm (or a method, or a band) looks: `slot` is its colour in PALETTE, `glyph` its marker as a character."""

    label: str
    slot: str
    marker: str
    glyph: str


_KNOWN_ARMS = {
    "base": Style("base", "base", "D", "◆"),
    "expert": Style("expert", "expert", "^", "▲"),
    "lora": Style("plain LoRA", "lora", "s", "■"),
    "palora": Style("palora", "palora", "o", "●"),
}
_RULES = ("svf", "sigma", "random", "activation", "covariance")  # arms of a rule's name look alike on every page
_EXTRA_MARKERS = (("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"), ("<", "◀"), (">", "▶"))


def arm_styles(arms: Iterable[str]) -> dict[str, Style]:
    """The style of every arm; arms beyond the known four take the remaining pairs of colour and marker in order: the
    first 24 are all different."""
    arms = list(arms)
    free = (n for n in count() if n >= len(_RULES) or _RULES[n] not in arms)
    styles: dict[str, Style] = {}
    for arm in arms:
        if arm in _KNOWN_ARMS:
            styles[arm] = _KNOWN_ARMS[arm]
            continue
        extra = _RULES.index(arm) if arm in _RULES else next(free)
        marker, glyph = _EXTRA_MARKERS[(extra + extra // 4) % len(_EXTRA_MARKERS)]
        styles[arm] = Style(arm, f"extra-{extra % 4 + 1}", marker, glyph)
    return styles
