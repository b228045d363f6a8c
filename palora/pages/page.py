"""A page: a template of this folder with values in it, one self-contained HTML file.

`report.html.jinja`, `spectrum.html.jinja` and `compare.html.jinja` are the pages; `page.html.jinja` is what they share.
"""

import re
from typing import TYPE_CHECKING, Any

from palora.plots.style import PALETTE

if TYPE_CHECKING:
    from markupsafe import Markup


def fill(page: str, /, **values: Any) -> str:
    """`PAGE.html.jinja` with `values` in it. What is not Markup is escaped; a value that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("palora.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = PALETTE
    environment.filters["strong"] = _strong
    return environment.get_template(f"{page}.html.jinja").render(**values)


def _strong(sentence: str) -> "Markup":
    """The percentages of a sentence in bold."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"((?:&[gl]t; )?\d[\d,.]*%)(?! interval)", r"<b>\1</b>", str(escape(sentence))))
