"""The notebook of examples/ runs from top to bottom, here with fewer facts; and what is committed of it is clean."""

import json

import pytest
from pages import ROOT

CELLS = json.loads((ROOT / "examples" / "ten_minutes.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SMALL = {"FACTS": 4, "EPOCHS": 40, "PROBLEMS": 4}  # in place of what the first cell says


def test_it_has_no_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict = {}
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        if number == 0:
            assert set(SMALL) <= set(names), "the first cell holds what may be changed"
            names |= SMALL
    table = names["table"]
    assert list(table.index) == ["the model before", "plain LoRA", "palora"]
    assert table.loc["the model before", "new facts"] < 0.5 < table.loc["palora", "new facts"]
    before, after = (names["share"](model, names["facts"]) for model in (names["before"], names["model"]))
    assert before < 0.5 < after, "the trainer of one's own taught them too"
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
