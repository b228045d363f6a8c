"""A figure, from empty axes to a page: our matplotlib settings, what several pictures share, SVG and PNG.

Every picture is one small panel, about as wide as a phone: a page's grid sets several side by side on a screen and
stacks them on a phone, with text of the same size. A picture is drawn once, in the light colours of `PALETTE`;
`to_html` then replaces each colour in the SVG by the CSS variable of the same name, so one drawing serves light and
dark. matplotlib is imported on the first drawing; pyplot, with its global state, never is.
"""

import base64
import io
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from palora.common.wording import power_of_ten
from palora.results.plots.style import PALETTE

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

SVG_LIMIT = 300_000  # characters; a larger drawing is embedded as PNG
WIDE, NARROW = 440, 340  # pixels: a panel of which a page sets two, or three, side by side

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; in the page its own font replaces it
    "font.size": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "text.usetex": False,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "text.color": PALETTE["ink"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.edgecolor": PALETTE["line"][0],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["line"][0],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["line"][0],
    "ytick.color": PALETTE["line"][0],
    "xtick.labelcolor": PALETTE["muted"][0],
    "ytick.labelcolor": PALETTE["muted"][0],
    **{f"{axis}tick.{which}.size": 0 for axis in "xy" for which in ("major", "minor")},
    "figure.facecolor": "none",
    "figure.dpi": 72,  # so that a unit of every size here is a pixel of the page
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "palora",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Picture:
    """A figure of a page: its title, the drawing (SVG or img), and a line beside the title."""

    title: str
    drawing: "Markup"
    note: str = ""


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run `draw` in our matplotlib settings and put the user's back afterwards."""

    @wraps(draw)
    def in_our_settings(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return in_our_settings


def colour(slot: str) -> str:
    """What a name of PALETTE is drawn in."""
    return PALETTE[slot][0]


def panel(width: float, height: float) -> tuple["Figure", "Axes"]:
    """A figure of `width` x `height` pixels and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


# --- axes -----------------------------------------------------------------------------------------


def percent_axis(axis: "Axis", decimals: int = 0) -> None:
    """Label an axis of shares in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def log_axis(axes: "Axes") -> None:
    """A logarithmic y axis with labels in plain text (10⁻³), which any font of the page can set."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 10:  # less than a decade may hold no labelled tick
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))


def level(axes: "Axes", y: float, **look: Any) -> None:
    """A dashed line across at what the picture is measured against: the expert, the base, chance."""
    axes.axhline(y, **{"color": colour("muted"), "lw": 1, "ls": (0, (4, 3)), **look})


# --- out of matplotlib ----------------------------------------------------------------------------


@styled
def to_html(figure: "Figure", description: str) -> "Markup":
    """The figure as inline SVG in CSS colours (above SVG_LIMIT as PNG), with a description for who cannot see."""
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    label = escape(description, quote=True)
    if len(svg) > SVG_LIMIT:
        data = base64.b64encode(to_png(figure, dpi=144)).decode("ascii")
        return Markup(f'<img class="plot" alt="{label}" src="data:image/png;base64,{data}">')
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', svg)
    start = f'<svg class="plot" role="img" aria-label="{label}" viewBox="{box[1] if box else ""}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: start, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    prefix = f"f{zlib.crc32(svg.encode()):x}-"  # ids are global in a page: make them this picture's own
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)  # coordinates, not labels
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    return Markup(re.sub(r"\s*\n\s*", "\n", svg))


@styled
def to_png(figure: "Figure", dpi: int = 200) -> bytes:
    """The figure as PNG on the light page colour."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=colour("page"))
    return buffer.getvalue()
