"""What is released: the wheel holds the whole package and the recipes that stand alone; the sdist builds the same."""

import importlib.util
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import palora
from palora.common.errors import InputError
from palora.front.recipe import load_recipe

ROOT = Path(__file__).parents[1]
ALONE = ("default", "8b", "24gb", "paper")
needs_hatchling = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")


def tree():
    """The files of the package, by their place under the root."""
    files = [path for path in (ROOT / "palora").rglob("*") if path.is_file()]
    return {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts and p.suffix != ".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    from hatchling.builders.wheel import WheelBuilder

    [file] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return zipfile.ZipFile(file)


@needs_hatchling
def test_the_wheel_has_every_file_of_the_package(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == tree() | {f"palora/front/recipes/{name}.yaml" for name in ALONE}
    needed = {".jinja", ".css", ".safetensors", ".yaml", ".jsonl", ".txt", ".pyi", ".typed"}
    assert needed <= {Path(f"x{Path(name).name}").suffix or Path(name).name for name in packed}
    for name in ("palora/testbed/model/model.safetensors", "palora/results/pages/report.html.jinja"):
        assert wheel.read(name) == (ROOT / name).read_bytes()


@needs_hatchling
def test_the_metadata_pins_no_torch_and_names_the_command(wheel):
    [place] = [name.partition("/")[0] for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    told = Parser().parsestr(wheel.read(f"{place}/METADATA").decode())
    assert (told["Name"], told["Version"]) == ("palora", palora.__version__)
    needs = [need for need in told.get_all("Requires-Dist") if "extra ==" not in need]
    assert [need for need in needs if need.startswith("torch")] == ["torch>=2.6"]
    assert not [need for need in needs if "==" in need], "an exact version would fight with the user's own"
    assert "palora = palora.cli:main" in wheel.read(f"{place}/entry_points.txt").decode()
    assert {"lm-eval", "bitsandbytes", "vllm"} <= set(told.get_all("Provides-Extra"))


@needs_hatchling
def test_the_sdist_has_what_a_wheel_is_built_of_and_nothing_else(tmp_path):
    from hatchling.builders.sdist import SdistBuilder

    [file] = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(file) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert tree() | {f"recipes/{name}.yaml" for name in ALONE} | {"pyproject.toml", "README.md", "LICENSE"} <= names
    rooms = {name.partition("/")[0] for name in names if "/" in name}
    assert rooms == {"palora", "recipes", "examples", "docs"}


@pytest.mark.parametrize("name", ALONE)
def test_a_recipe_by_its_name_from_anywhere(tmp_path, monkeypatch, name):
    changes = ["model=m", "facts=f.jsonl"]
    wanted = load_recipe(ROOT / "recipes" / f"{name}.yaml", changes)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name, changes) == wanted
    (tmp_path / name).write_text("model: mine\nskills: [chain]\nfacts: f.jsonl\n")
    assert load_recipe(name).model == "mine", "a file of that name comes first"


def test_a_name_that_is_none_says_which_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("defualt", "recipes/default.yaml", "../default"):
        with pytest.raises(InputError, match="no such recipe; with palora come default, 8b, 24gb and paper"):
            load_recipe(wrong)
