"""A page: a template with values in it, one self-contained HTML file.

`report.html.jinja` is the report of a run, `page.html.jinja` what all pages share. A page may run one script, our own
`page.js` within it: the browser is told its hash, and runs nothing else whatever a model wrote.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from palora.results.plots.style import PALETTE

if TYPE_CHECKING:
    from markupsafe import Markup


HERE = Path(__file__).parent


def fill(template: Path, /, **values: Any) -> str:
    """A template (`*.html.jinja`) with `values` in it. What is not Markup is escaped; a value that is missing is an
    error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = PALETTE
    environment.globals["script"] = Markup(script())
    environment.globals["script_hash"] = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    environment.filters["strong"] = _strong
    return environment.get_template(template.name).render(**values)


def script() -> str:
    """What a page can do beside being read; without it, it is whole."""
    return (HERE / "page.js").read_text(encoding="utf-8")


def _strong(sentence: str) -> "Markup":
    """The percentages of a sentence in bold."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"((?:&[gl]t; )?\d[\d,.]*%)(?! interval)", r"<b>\1</b>", str(escape(sentence))))


def words(kind: str) -> dict[str, str]:
    """What the report says of its own words (`words.yaml`): measures, rules or limits, by their name."""
    told: dict[str, dict[str, str]] = yaml.safe_load((HERE / "words.yaml").read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in told[kind].items()}
