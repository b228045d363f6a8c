"""What README and docs name is there: make targets, Python names, the public API (`test_commands.py`: commands)."""

import ast
import importlib
import re

from pages import PAGES, ROOT, blocks, commands

import palora


def test_every_make_target_is_one():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for _, words in commands() if words[0] == "make" for word in words[1:] if "=" not in word}
    assert {"demo", "test"} <= asked <= targets


def test_every_python_name_is_there():
    imported = 0
    for page in PAGES:
        for text in blocks(page, "python") if page.name != "design.md" else ():  # which shows signatures
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("palora", "peft"):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), (page.name, ast.unparse(node))
                    imported += len(node.names)
    assert imported > 5


def test_the_reference_names_every_public_name():
    named = re.findall(r"^::: palora\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(set(palora.__all__) - {"__version__"})
