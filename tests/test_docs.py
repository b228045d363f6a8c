"""What README and docs tell people to type is there: commands, options, recipes, make targets, Python names."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from palora.cli import app
from palora.front.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, *languages):
    """The code blocks of a page in one of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands():
    """(page, words) of every line that is typed into a shell."""
    for page in PAGES:
        for text in blocks(page, "bash", "sh", "shell", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield page.name, words


def parsed(words):
    """The words of a palora command as it would read them, with nothing done."""
    command, name = typer.main.get_command(app), "palora"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    return name, command.make_context(name, list(words))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(w, id=f"{page} {' '.join(w)[:70]}")
        for page, w in commands()
        if w[0] == "palora" and not w[1].startswith("-")
    ],
)
def test_every_command_is_one(words):
    name, context = parsed(words[1:])
    recipe = context.params.get("recipe")
    if name == "run":
        shipped = (ROOT / "recipes" / f"{recipe}.yaml").exists()
        assert load_recipe(recipe if shipped else ROOT / recipe, context.params["overrides"])


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


def test_a_command_that_is_none_is_seen():
    for wrong in (["protect", "--modle", "M"], ["evaluate", "--num-fewshots", "1"]):
        with pytest.raises(Exception, match="No such option"):
            parsed(wrong)
    with pytest.raises(KeyError):
        parsed(["protekt"])
