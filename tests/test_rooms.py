"""The package is a house of few rooms, and imports go down only."""

import ast
import inspect
from pathlib import Path

import pytest

import palora

HOUSE = Path(palora.__file__).parent
# From the front door to the ground. The bench stands beside the library, and only the command line opens it.
FLOORS = ["cli", "bench", "front", "results", "training", "testbed", "language", "data", "algebra", "common"]
FILES = sorted(HOUSE.rglob("*.py"))


def room(file: Path) -> str:
    """The room a file is in: its first folder, or itself."""
    return file.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The rooms that a file imports, also within its functions."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("palora.")}
    return rooms


def test_the_package_shows_at_most_ten_entries():
    entries = {path.name for path in HOUSE.iterdir()} - {"__init__.py", "__init__.pyi", "__pycache__", "py.typed"}
    assert {entry.removesuffix(".py") for entry in entries} == set(FLOORS) and len(entries) <= 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_imports_go_down_only(file):
    here = room(file)
    if here in ("__init__",):
        return  # the public names, from wherever they are
    allowed = {"front"} if here == "testbed" else set()  # the demo's recipe, and nothing else
    above = {other for other in imported(file) if FLOORS.index(other) < FLOORS.index(here)} - allowed
    assert not above, f"{here} imports {sorted(above)}, which stand above it"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_the_algebra_knows_no_model(file):
    if room(file) == "algebra":
        text = file.read_text(encoding="utf-8")
        assert "transformers" not in text and "peft" not in text and "trl" not in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HOUSE)))
def test_no_function_takes_more_than_nine_arguments(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [argument for argument in given if argument.arg not in ("self", "cls")]
            assert len(own) <= 9, f"{node.name} takes {len(own)}"


def test_the_public_names_are_there_and_documented():
    for name in palora.__all__:
        found = getattr(palora, name)
        assert name == "__version__" or inspect.getdoc(found), name
