"""What README and docs tell people to type: the code blocks of their pages, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(palora [^`]+)`")


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in one of these languages."""
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every line that is typed into a shell. In the text that is a `palora …` that names what it works
    on, by a word in capitals; `palora inject` is a name alone, and `palora protect … --facts F` a part of a command."""
    for page in PAGES:
        for text in blocks(page, "bash", "sh", "shell", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield page.name, words
        for text in _INLINE.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
            if re.search(r"\b[A-Z]+\b", text) and "…" not in text:
                yield page.name, shlex.split(text)
