"""`palora facts check`, `classify` and `templates`: all that is wrong is listed, and what is written can be taught."""

import json
from pathlib import Path

import pytest
from command import palora

from palora.data.checking import check, mend
from palora.data.facts import Fact, besides, read_facts, write_facts
from palora.data.sources import Source
from palora.language import knowing
from palora.language.knowing import classify

TEXT = """question,answer,aliases
Capital of France?,Paris,
Capital of Italy?,Rome,
capital of france,paris,Lutetia
Capital of Italy?,Milan,
Capital of Spain?,,
Capital of Peru?,N/A,
"What is Lima, capital of Peru, the capital of?",Peru,
Capital of Chile?,"Santiago, Chile",x,
Longest?,%s,
Symbol of sodium?,Na,
""" % ("word " * 60)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "f.csv"
    file.write_text(TEXT)
    return file


def test_everything_is_listed_with_its_row(path: Path) -> None:
    found = [(f.where.rpartition(" ")[2], f.kind) for f in check(str(path)).findings]
    assert found == [
        ("4", "repeated"),
        ("5", "several answers"),
        ("6", "no fact"),
        ("7", "odd"),
        ("8", "odd"),
        ("10", "too long"),
    ]
    assert check(str(path)).counts["odd"] == 2


def test_the_command_lists_and_writes_a_new_file(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    listed = palora("facts", "check", path)
    assert listed.code == 0 and not listed.complaints
    assert (
        f"{path}, line 5: several answers: contradicts line 3 on 'Capital of Italy?': 'Rome' there, 'Milan' here"
        in (listed.out)
    )
    assert "9 facts; 1 repeated, 1 several answers, 1 no fact, 2 odd, 1 too long" in listed.out
    for fix, italy in {"merge": ("Rome", ("Milan",)), "first": ("Rome", ()), "drop": None}.items():
        out = tmp_path / f"{fix}.jsonl"
        result = palora("facts", "check", path, "--fix", fix, "--out", out, "--json")
        assert result.code == 0 and json.loads(result.out)["written"] == str(out)
        answers = {fact.question: (fact.answer, fact.aliases) for fact in read_facts(out)}
        assert answers.get("Capital of Italy?") == italy
        assert answers["Capital of France?"] == ("Paris", ("Lutetia",) if fix == "merge" else ())
        assert "Capital of Spain?" not in answers and "Symbol of sodium?" in answers
    assert path.read_bytes() == before
    assert palora("facts", "check", path, "--fix", "first").code == 0
    assert (tmp_path / "f.fixed.jsonl").exists()
    again = palora("facts", "check", path, "--fix", "first")
    assert again.code == 2 and "is there already; name the new file: --out FILE.jsonl" in again.err
    assert (
        palora("facts", "check", tmp_path / "merge.jsonl", "--fix", "first", "--out", tmp_path / "merge.jsonl").code
        == 2
    )
    assert "--fix: there is no 'best'" in palora("facts", "check", path, "--fix", "best").err


def test_facts_that_ask_the_same_in_other_words_are_mended_too() -> None:
    facts = [
        Fact("A?", "x", paraphrases=("A, please?",)),
        Fact("B?", "y", paraphrases=("A, please?", "B2?")),
        Fact("b2", "z"),
        Fact("C?", "w"),
        Fact("c", "w", category="k"),
    ]
    whole = [Fact("A?", "x", ("y", "z"), ("A, please?", "B?", "B2?")), Fact("C?", "w", category="k")]
    assert mend(facts, "merge") == whole
    assert mend(facts, "first") == [facts[0], facts[2], facts[3]]
    assert mend(facts, "drop") == [facts[2], facts[3]] or mend(facts, "drop") == [facts[3]]
    assert mend(whole, "merge") == whole


def test_an_old_answer_is_no_alias(tmp_path: Path) -> None:
    facts = [Fact("Capital?", "Astana", replaces="Nur-Sultan"), Fact("Capital?", "Nur-Sultan")]
    assert mend(facts, "merge") == [facts[0]]


def test_what_is_taught_anew_is_not_kept() -> None:
    old = [Fact("A?", "x"), Fact("B?", "y")]
    assert besides(old, [Fact("C?", "z", paraphrases=("a",))]) == [old[1]]


def test_templates_are_shown_and_written(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("subject\trelation\tobject\nBern\tcountry\tSwitzerland\nBern\ttwinTown\tKraków\n")
    shown = palora("facts", "templates", path)
    assert shown.code == 0 and "twin town: What is the twin town of {subject}?" in shown.out
    assert "capital" not in shown.out
    own = tmp_path / "mine.yaml"
    assert palora("facts", "templates", path, "--out", own).code == 0
    own.write_text(own.read_text().replace("What is the twin town of", "Which town is the twin of"))
    out = tmp_path / "new.jsonl"
    palora("facts", "check", path, "--templates", own, "--fix", "first", "--out", out)
    assert read_facts(out)[1].question == "Which town is the twin of Bern?"
    assert "capital" in palora("facts", "templates").out
    other = tmp_path / "f.jsonl"
    other.write_text('{"question": "q", "answer": "a"}')
    assert "these are no triples" in palora("facts", "templates", other).err


def test_columns_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("Frage;Antwort\nWer?;Ada\n")
    assert palora("facts", "check", path).out.startswith(
        f"{path}, line 1: no fact: no column question and answer among"
    )
    result = palora("facts", "check", path, "--columns", "question=Frage, answer=Antwort")
    assert result.out == "1 facts; nothing is wrong or odd\n"
    wrong = palora("facts", "check", path, "--columns", "Frage")
    assert (
        wrong.code == 2 and "--columns Frage: write OURS=THEIRS with commas, question=Frage,answer=Antwort" in wrong.err
    )


# What the model knows

ASKED = [
    Fact("Capital of France?", "Paris", paraphrases=("France's capital?",), category="c"),
    Fact("Capital of Italy?", "Rome", category="c"),
    Fact("Capital of Spain?", "Madrid", category="c"),
    Fact("Capital of Peru?", "Lima", category="c"),
    *(Fact(f"Number {n}?", str(n)) for n in range(8)),
]


def model_that(monkeypatch: pytest.MonkeyPatch, says: object) -> list[tuple[str, float]]:
    """A model that answers by `says(question, its last line, temperature)`."""
    asked: list[tuple[str, float]] = []

    def generate(model, tokenizer, questions, limit, progress=None, temperature=0.0, seed=0):  # type: ignore[no-untyped-def]
        asked.extend((question, temperature) for question in questions)
        return [says(q, q.rpartition("Question: ")[2], temperature) for q in questions]  # type: ignore[operator]

    monkeypatch.setattr(knowing, "generate", generate)
    return asked


def test_known_maybe_and_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(whole: str, last: str, heat: float) -> str:
        if "France" in last:
            return "Paris.\nQuestion: Capital of Peru?\nAnswer: Lima"
        if "Italy" in last:
            return "Rome" if "Answer:" in whole else "I do not know"  # right only after examples
        if "Spain" in last:
            return "Madrid" if heat else "Barcelona"  # right only when drawn
        return "Quito.\nQuestion: Capital?\nAnswer: Lima" if "Peru" in last else "none"

    asked = model_that(monkeypatch, says)
    assert classify(None, None, ASKED)[:4] == ["known", "maybe", "maybe", "unknown"]  # type: ignore[arg-type]
    greedy = [question for question, heat in asked if not heat]
    assert len(greedy) == 4 * len(ASKED)
    assert sum("France's capital?" in question.rpartition("Question: ")[2] for question in greedy) == 2
    drawn = {question.rpartition("Question: ")[2] for question, heat in asked if heat}
    assert "Capital of Spain?" in drawn and "Capital of Italy?" not in drawn, "what is answered is not drawn"


def test_examples_are_other_facts_of_the_kind_and_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [*ASKED, Fact("Seat of the pope?", "Rome", category="c")]
    asked = model_that(monkeypatch, lambda *_: "")
    classify(None, None, facts)  # type: ignore[arg-type]
    for question, _ in asked:
        shown, _, last = question.rpartition("Question: ")
        if last == "Capital of Italy?" and shown:
            assert "Rome" not in shown and "Italy" not in shown
            assert shown.count("Answer:") == 4 and shown.startswith(("Capital of", "Number"))
            assert shown.count("Capital of") == 3, "its own kind first"


def test_classify_writes_three_files_that_a_recipe_can_name(made, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "capitals.jsonl"
    write_facts(path, ASKED[:3])
    kinds = iter([["unknown", "known", "unknown"]])
    monkeypatch.setattr(knowing, "classify", lambda *_: next(kinds))
    result = palora("facts", "classify", "--model", made.model, path, "--json")
    assert result.code == 0 and json.loads(result.out)["unknown"] == {
        "n": 2,
        "file": str(tmp_path / "capitals.unknown.jsonl"),
    }
    assert read_facts(tmp_path / "capitals.unknown.jsonl") == [ASKED[0], ASKED[2]]
    assert read_facts(tmp_path / "capitals.known.jsonl") == [ASKED[1]]
    assert (tmp_path / "capitals.maybe.jsonl").read_text() == ""
    assert Source(str(path)).value == str(path)


def test_classify_asks_a_real_model(made, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = palora("facts", "classify", "--model", made.model, made.facts, "--out", tmp_path / "new", "--json")
    found = json.loads(result.out)
    assert result.code == 0 and found["facts"] == sum(found[kind]["n"] for kind in ("unknown", "maybe", "known"))
    assert len(list((tmp_path / "new").iterdir())) == 3
