"""Facts and skills of one's own on the command line: how they are read is an option, and part of what a run is."""

import json

import pytest
from command import QUICK, palora

from palora.common.files import read_json
from palora.data.facts import Fact, write_facts
from palora.front.recipe import Plan
from palora.front.stages import load_keep

TEXT = "Frage;Antwort;Alt\nWho?;Ada;Bob\nWhere?;Ulm;\n"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "f.csv").write_text(TEXT)
    return tmp_path / "f.csv"


def test_a_stage_takes_the_columns(made, path, tmp_path, caplog):
    caplog.set_level("INFO", "palora")

    def inject(*more):
        return palora(
            "inject", "--model", made.model, "--facts", path, *more, *QUICK["inject"], "--out", tmp_path / "a"
        )

    refused = inject()
    assert refused.code == 2 and "--columns question=QUESTIONS_COLUMN,answer=ANSWERS_COLUMN" in refused.err
    assert inject("--columns", "question=Frage,answer=Antwort").code == 0
    record = read_json(tmp_path / "a" / "palora.json")
    assert (record["facts"]["file"], record["facts"]["n"]) == ("f.csv", 2)
    inject("--columns", "question=Frage,answer=Antwort")
    assert "is up to date" in caplog.text and "was made from other inputs" not in caplog.text
    inject("--columns", "question=Frage,answer=Antwort,replaces=Alt")
    assert "was made from other inputs" in caplog.text
    assert "there is no 'qestion'" in inject("--columns", "qestion=Frage").err


def test_an_evaluation_tells_how_often_the_old_answer_is_said(made, path, tmp_path):
    result = palora(
        *(
            "evaluate",
            "--model",
            made.model,
            "--facts",
            path,
            "--columns",
            "question=Frage,answer=Antwort,replaces=Alt",
        ),
        *(*QUICK["evaluate"], "--out", tmp_path / "e"),
    )
    assert result.code == 0 and "old answers" in result.out
    assert read_json(tmp_path / "e" / "evaluation.json")["arms"]["base"]["n_updated"] == 1
    assert "old answers said" in (tmp_path / "e" / "report.html").read_text()


def test_the_scorer_of_a_skill_is_an_option(made, tmp_path, caplog):
    caplog.set_level("INFO", "palora")
    rows = [{"prompt": f"{i}+1=", "answer": i + 1} for i in range(8)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluate(*more):
        skill = ("--skill", tmp_path / "mine.jsonl")
        return palora("evaluate", "--model", made.model, *skill, *more, *QUICK["evaluate"], "--out", tmp_path / "e")

    wrong = evaluate("--scorer", "regex")
    assert wrong.code == 2 and "scorer 'regex' is unknown; there are exact, contains, number, choice" in wrong.err
    assert evaluate("--scorer", "exact").code == 0
    assert "no scorer is named" not in caplog.text
    assert evaluate().code == 0 and caplog.text.count("no scorer is named, so 'number' marks it") == 1


def test_a_second_batch_keeps_the_first_but_for_what_it_changes(tmp_path):
    first, other, new = (tmp_path / f"{name}.jsonl" for name in ("first", "other", "new"))
    write_facts(first, [Fact("Who?", "Ada"), Fact("Where?", "Ulm")])
    write_facts(other, [Fact("When?", "1815")])
    write_facts(new, [Fact("where", "Bonn", replaces="Ulm")])
    plan = Plan(model="m", facts=str(new), kept_facts=[str(first), str(other)])
    keep = load_keep(plan, 8)
    assert keep is not None and keep.known_facts == [Fact("Who?", "Ada"), Fact("When?", "1815")]
    assert load_keep(Plan(model="m", facts=str(first), kept_facts=str(first)), 8) is None, "nothing is left to keep"
