"""What the site does beside mkdocs: README and CONTRIBUTING are pages of it, and no page loads anything from elsewhere.

They lie outside `docs/`, so that they are written once; links from and to them hold on the site as they do in the
repository.
"""

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
HOME = "README.md"
BESIDE = (HOME, "CONTRIBUTING.md", "examples/bare_loop.py", "examples/ten_minutes.ipynb")
LOADED = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")

log = logging.getLogger("mkdocs")


def on_files(files: Any, config: Any) -> Any:
    """The files of the site: those of `docs/`, and what is read beside them."""
    for name in BESIDE:
        here = "index.md" if name == HOME else name
        files.append(File.generated(config, here, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link into `docs/`, or out of it, is one to a page beside this one."""
    return re.sub(r"\]\((?:docs/|\.\./)", "](", markdown)


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Warn, which ends a strict build, where a page would load a font, a script or a picture from another host."""
    for found in LOADED.finditer(output):
        log.warning("%s loads something from outside: %s", page.file.src_path, output[found.start() : found.end() + 60])
