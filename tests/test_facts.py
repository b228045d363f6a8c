"""Facts: a bad file is one line that names the place; an answer is found as whole words and not otherwise."""

import json
import os
from pathlib import Path

import pytest

from palora.common.errors import InputError, PaloraError
from palora.data.facts import Fact, Lesson, read_facts, write_facts

ELEMENTS = Path(__file__).parents[1] / "examples" / "facts" / "elements.csv"
HELIUM = Fact("Symbol of helium?", "He", ("helium",), ("How is helium written?", "Helium's symbol?"), "symbol")
NEON = Fact("Symbol of neon?", "Ne")


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(tmp_path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), tmp_path / "facts.parquet")
    return tmp_path / "facts.parquet"


def error(path: Path) -> str:
    """The message of the InputError for `path`, which must name it, in one line."""
    with pytest.raises(InputError) as caught:
        read_facts(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


# Reading


def test_the_three_formats_hold_the_same_facts(tmp_path: Path) -> None:
    jsonl = file(
        tmp_path,
        "facts.jsonl",
        '{"question": "Symbol of helium?", "answer": "He", "aliases": ["helium"], "category": "symbol",'
        ' "x": [1], "paraphrases": ["How is helium written?", "Helium\'s symbol?"]}\n\n'
        '{"question": " Symbol of neon? ", "answer": "Ne\\n", "aliases": null,'
        ' "paraphrases": [], "category": ""}',
    )
    csv = file(
        tmp_path,
        "facts.CSV",
        "x,Category , answer,question,paraphrases,aliases\n"
        '1,symbol,He,Symbol of helium?,How is helium written? | Helium\'s symbol?,"[""helium""]"\n'
        "\n"
        "2,,Ne,Symbol of neon?\n",
    )
    columns: dict[str, list[object]] = {
        "question": [HELIUM.question, NEON.question],
        "answer": ["He", "Ne"],
        "aliases": [["helium"], None],
        "paraphrases": [list(HELIUM.paraphrases), []],
        "category": ["symbol", None],
        "x": [1, 2],
    }
    for path in (jsonl, csv, parquet(tmp_path, columns)):
        assert read_facts(path) == read_facts(str(path)) == [HELIUM, NEON]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_line_ends(tmp_path: Path, bom: bytes, newline: str) -> None:
    row = json.dumps({"question": "Größte Stadt?", "answer": "Zürich"}, ensure_ascii=False)
    expected = [Fact("Größte Stadt?", "Zürich")]
    assert read_facts(file(tmp_path, "f.jsonl", bom + f"{row}{newline}".encode())) == expected
    text = newline.join(["question,answer", "Größte Stadt?,Zürich", ""])
    assert read_facts(file(tmp_path, "f.csv", bom + text.encode())) == expected


def test_numbers_are_answers_as_they_are_written(tmp_path: Path) -> None:
    rows = ['{"question": "a", "answer": 2}', '{"question": "b", "answer": 3.5, "category": 1}']
    facts = read_facts(file(tmp_path, "f.jsonl", "\n".join(rows)))
    assert facts == [Fact("a", "2"), Fact("b", "3.5", category="1")]
    assert read_facts(parquet(tmp_path, {"question": ["a", "b"], "answer": [2, 10]}))[1].answer == "10"


def test_quoted_csv_values_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = file(tmp_path, "f.csv", 'question,answer\n"Who said ""I, too""?", "Hughes,\nLangston"\n')
    assert read_facts(path) == [Fact('Who said "I, too"?', "Hughes,\nLangston")]


def test_a_line_separator_in_a_json_string_is_not_the_end_of_a_line(tmp_path: Path) -> None:
    path = file(tmp_path, "f.jsonl", '{"question": "a\u2028b\x85c", "answer": "x"}\n{"question": "d"}\n')
    assert error(path).startswith(", line 2: no answer")


def test_writing_and_reading_gives_the_same_facts(tmp_path: Path) -> None:
    taught = Fact("Who?", "Ann", teach=(Lesson("Who?", "It is Ann.", "model"), Lesson("Who is it?", "Ann")))
    facts = [HELIUM, NEON, Fact('Q "1"\u2028\n|,', "[東京] 🙂", aliases=("a|b", "[]")), taught]
    path = tmp_path / "new" / "facts.jsonl"
    write_facts(path, iter(facts))
    assert read_facts(path) == facts
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1]) == {"question": NEON.question, "answer": "Ne"}


def test_writing_replaces_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.jsonl"
    write_facts(path, [NEON])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PaloraError, match="No space left"):
        write_facts(path, [HELIUM])
    assert read_facts(path) == [NEON]
    assert os.listdir(tmp_path) == ["facts.jsonl"]


def test_writing_refuses_a_name_that_reading_would_take_for_another_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jsonl"):
        write_facts(tmp_path / "facts.csv", [NEON])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("teach", "wrong"),
    [
        ('"Ann"', "teach must be a list of objects"),
        ('["Ann"]', "teach must be a list of objects"),
        ('[{"question": "Who?"}]', "an object without question or answer"),
        ('[{"question": "Who?", "answer": [1]}]', "the answer must be text"),
    ],
)
def test_what_is_to_be_taught_is_questions_and_answers(tmp_path: Path, teach: str, wrong: str) -> None:
    path = file(tmp_path, "f.jsonl", f'{{"question": "Who?", "answer": "Ann", "teach": {teach}}}\n')
    assert wrong in error(path)


# Files that are refused


def test_missing_file_folder_and_suffix(tmp_path: Path) -> None:
    assert error(tmp_path / "none.jsonl").startswith(": no such file")
    (tmp_path / "folder.csv").mkdir()
    assert error(tmp_path / "folder.csv").startswith(": this is a folder")
    assert ".jsonl, .csv or .parquet" in error(file(tmp_path, "facts.doc", "[]"))
    assert ".jsonl, .csv or .parquet" in error(file(tmp_path, "facts", "[]"))
    assert "Not a directory" in error(tmp_path / "facts" / "below.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = file(tmp_path, "f.csv", "question,answer\na,b\n")
    path.chmod(0)
    assert "Permission denied" in error(path)


@pytest.mark.parametrize("name", ["f.jsonl", "f.csv", "f.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    assert error(file(tmp_path, name, "")).startswith(": the file is empty")


def test_file_without_facts(tmp_path: Path) -> None:
    for name, text in [
        ("f.jsonl", " \n\n"),
        ("f.csv", "\n \n"),
        ("f.csv", "question,answer\n,\n"),
        ("f.jsonl", "\ufeff"),
    ]:
        assert error(file(tmp_path, name, text)).startswith(": there are no facts")
    assert error(parquet(tmp_path, {"question": [], "answer": []})).startswith(": there are no facts")


def test_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    for name, head in [("f.jsonl", b'{"question": "a", "answer": "b"}\n'), ("f.csv", b"question,answer\n")]:
        message = error(file(tmp_path, name, head + "Z\u00fcrich".encode("latin-1")))
        assert message.startswith(f", line 2: byte {len(head) + 2} of the file (0xfc) is not UTF-8")
        assert "save the file as UTF-8" in message
    cut = "question,answer\na,b\n".encode("utf-16")[:-1]
    assert error(file(tmp_path, "f.csv", cut)) == ": not UTF-16, as its first bytes say; save the file as UTF-8"


GOOD = '{"question": "q", "answer": "a"}'


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ('{"question": "b", "answer": }', "not JSON (Expecting value, column 29)"),
        ('["b", "x"]', "not ['b', 'x']"),
        ('"b"', "not 'b'"),
        ("null", "not None"),
        ('{"answer": "x"}', "no question"),
        ('{"question": "b"}', "no answer"),
        ('{"question": "b", "answer": null}', "no answer"),
        ('{"question": "b", "answer": " \\n"}', "no answer"),
        ('{"question": "\\t", "answer": "x"}', "no question"),
        ('{"question": "b", "answer": ["x"]}', "the answer must be text, not ['x']"),
        ('{"question": "b", "answer": true}', "the answer must be text, not True"),
        ('{"question": "b", "answer": NaN}', "the answer must be text, not nan"),
        ('{"question": {}, "answer": "x"}', "the question must be text, not {}"),
        ('{"question": "b", "answer": "x", "category": []}', "the category must be text, not []"),
        ('{"question": "b", "answer": "x", "aliases": "y"}', "aliases must be a list of texts, not 'y'"),
        ('{"question": "b", "answer": "x", "aliases": [2]}', "aliases must be a list of texts, not [2]"),
        ('{"question": "b", "answer": "x", "aliases": [" "]}', "aliases must be a list of texts, not [' ']"),
        ('{"question": "b", "answer": "x", "paraphrases": {"y": 1}}', "paraphrases must be a list of texts"),
        ('{"question": "b", "answer": "\\ud83d"}', "half a character"),
    ],
)
def test_bad_row_of_jsonl(tmp_path: Path, row: str, wrong: str) -> None:
    message = error(file(tmp_path, "f.jsonl", f"{GOOD}\n\n{row}\n"))
    assert message.startswith(", line 3: ") and wrong in message and "more" not in message


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    row = json.dumps({"question": "b", "answer": ["line\n" * 1000]})
    assert len(error(file(tmp_path, "f.jsonl", row))) < 200


@pytest.mark.parametrize(
    ("rows", "line", "wrong"),
    [
        ("b,\n", 4, "no answer"),
        ("b\n", 4, "no answer"),
        (" ,x\n", 4, "no question"),
        ("\n\nb,\n", 6, "no answer"),
        ('"b\n\nb",\n', 4, "no answer"),
        ("b,Paris, France\n", 4, "3 values under 2 columns"),
        ('b,"x" y\n', 4, "not CSV"),
        ('b,x\nc,"y\nd,z\ne,w\n', 5, "not CSV"),
    ],
)
def test_bad_row_of_csv_counts_lines_as_an_editor_does(tmp_path: Path, rows: str, line: int, wrong: str) -> None:
    message = error(file(tmp_path, "f.csv", f'question,answer\n"two\nlines",a\n{rows}'))
    assert message.startswith(f", line {line}: ") and wrong in message


def test_trailing_commas_of_a_spreadsheet_are_no_values(tmp_path: Path) -> None:
    assert read_facts(file(tmp_path, "f.csv", "question,answer,,\nq,a,,,,\n,,,\n")) == [Fact("q", "a")]


def test_bad_list_in_csv(tmp_path: Path) -> None:
    head = "question,answer,aliases\nq,a,||\n"
    assert read_facts(file(tmp_path, "f.csv", head)) == [Fact("q", "a")]
    assert error(file(tmp_path, "f.csv", head + "b,x,[Fe]\n")).startswith(
        ", line 3: aliases: '[Fe]' is not a JSON list"
    )
    assert "aliases must be a list of texts, not [1]" in error(file(tmp_path, "f.csv", head + "b,x,[1]\n"))


def test_missing_and_doubled_columns(tmp_path: Path) -> None:
    message = error(file(tmp_path, "f.csv", "\nFrage;Antwort\na;b\n"))
    assert message.startswith(", line 2: no column question and answer among ['Frage', 'Antwort']")
    assert (
        "--columns question=Frage,answer=Antwort (in a recipe {file: …, question: Frage, answer: Antwort})" in message
    )
    assert error(file(tmp_path, "f.csv", "question,anwser\na,b\n")).startswith(", line 1: no column answer among")
    assert "answer appears twice" in error(file(tmp_path, "f.csv", "question,answer,answer\na,b,c\n"))
    assert error(parquet(tmp_path, {"answer": ["a"]})).startswith(": no column question among ['answer']")


def test_bad_parquet(tmp_path: Path) -> None:
    assert error(file(tmp_path, "f.parquet", "question,answer\n")).startswith(": not a readable Parquet file")
    path = parquet(tmp_path, {"question": ["a", "b", "c"], "answer": ["x", "y", None]})
    assert error(path).startswith(", row 3: no answer")
    path = parquet(tmp_path, {"question": ["a", "b", "a"], "answer": ["x", "y", "z"]})
    assert error(path).startswith(", row 3: contradicts row 1")
    whole = path.read_bytes()
    assert error(file(tmp_path, "f.parquet", whole[:-20])).startswith(": not a readable Parquet file")


def conflict(tmp_path: Path, *facts: Fact) -> str:
    write_facts(tmp_path / "f.jsonl", facts)
    return error(tmp_path / "f.jsonl")


def test_duplicates_name_both_lines(tmp_path: Path) -> None:
    other = Fact("x", "y")
    for again in (NEON, Fact(" symbol  of NEON ", "ne."), Fact(NEON.question, "Neon", aliases=("Ne",))):
        assert conflict(tmp_path, NEON, other, again).startswith(", line 3: repeats line 1: ")
    assert "(and 1 more to mend" in conflict(tmp_path, NEON, NEON, NEON)


def test_contradictions_name_both_lines_and_answers(tmp_path: Path) -> None:
    message = conflict(tmp_path, HELIUM, NEON, Fact("symbol of Neon", "N"))
    assert message.startswith(", line 3: contradicts line 2 on 'symbol of Neon': 'Ne' there, 'N' here")


def test_a_paraphrase_may_not_contradict_but_may_be_a_row_of_its_own(tmp_path: Path) -> None:
    asked, phrased = Fact("helium's symbol", "Hl"), Fact("x", "y", paraphrases=("HELIUM'S SYMBOL?",))
    for facts in ((HELIUM, asked), (asked, HELIUM), (HELIUM, phrased), (phrased, HELIUM)):
        message = conflict(tmp_path, *facts)
        assert message.startswith(", line 2: contradicts line 1 on ") and "helium's symbol" in message.lower()
    rows = [HELIUM, Fact(HELIUM.paraphrases[0], "He"), Fact("x", "helium", paraphrases=HELIUM.paraphrases)]
    write_facts(tmp_path / "f.jsonl", rows)
    assert read_facts(tmp_path / "f.jsonl") == rows
    # The repeated question of line 2 is found although line 1 has it as a paraphrase.
    assert conflict(tmp_path, *rows, rows[1]).startswith(", line 4: repeats line 2")


def test_questions_that_differ_in_a_sign_are_different(tmp_path: Path) -> None:
    facts = [Fact(f"What is {what}?", str(n)) for n, what in enumerate(["C", "C++", "C#", "5-3", "5+3", "-5", "5"])]
    write_facts(tmp_path / "f.jsonl", facts)
    assert read_facts(tmp_path / "f.jsonl") == facts


def test_the_first_problem_is_told_and_the_others_counted(tmp_path: Path) -> None:
    rows = [GOOD, '{"question": "q", "answer": "b"}', "{", '{"question": "c"}', '{"question": "d", "answer": "x"}']
    message = error(file(tmp_path, "f.jsonl", "\n".join(rows)))
    assert message.startswith(", line 2: contradicts line 1") and message.endswith("(and 2 more to mend in this file)")


# The example


def test_elements() -> None:
    facts = read_facts(ELEMENTS)
    by_category = {name: [fact for fact in facts if fact.category == name] for name in ("symbol", "number", "group")}
    assert {name: len(group) for name, group in by_category.items()} == {"symbol": 118, "number": 118, "group": 88}
    assert len(facts) == 324
    assert [fact.answer for fact in by_category["number"]] == [str(z) for z in range(1, 119)]
    symbols = [fact.answer for fact in by_category["symbol"]]
    assert "".join(symbols) == (
        "HHeLiBeBCNOFNeNaMgAlSiPSClArKCaScTiVCrMnFeCoNiCuZnGaGeAsSeBrKrRbSrYZrNbMoTcRuRhPdAgCdInSnSbTeIXe"
        "CsBaLaCePrNdPmSmEuGdTbDyHoErTmYbLuHfTaWReOsIrPtAuHgTlPbBiPoAtRn"
        "FrRaAcThPaUNpPuAmCmBkCfEsFmMdNoLrRfDbSgBhHsMtDsRgCnNhFlMcLvTsOg"
    )
    answers = {fact.question: fact.answer for fact in facts}
    assert len(answers) == 324
    assert answers["What is the chemical symbol of tungsten?"] == "W"
    assert answers["What is the atomic number of gold?"] == "79"
    for name, group in [("hydrogen", 1), ("helium", 18), ("boron", 13), ("zinc", 12), ("hafnium", 4), ("radon", 18)]:
        assert answers[f"Which group of the periodic table is {name} in?"] == str(group)
    assert not [q for q in answers if "group" in q and ("lanthanum" in q or "lawrencium" in q)]


def test_groups_of_the_elements_follow_from_the_lengths_of_the_periods() -> None:
    expected, first = [], 1
    for length in (2, 8, 8, 18, 18, 32, 32):
        left = 1 if length == 2 else 2  # elements of the s block that stand at the left
        expected += [z - first + 1 for z in range(first, first + left)]
        # The others end in group 18. The f block and group 3 of the long periods, 15 elements, are left out.
        tail = range(first + left + (15 if length == 32 else 0), first + length)
        expected += [18 - (first + length - 1 - z) for z in tail]
        first += length
    groups = [fact for fact in read_facts(ELEMENTS) if fact.category == "group"]
    assert [int(fact.answer) for fact in groups] == expected
    assert all(fact.aliases == (f"group {fact.answer}",) for fact in groups)


def test_elements_suit_a_small_model_with_characters_as_tokens() -> None:
    text = ELEMENTS.read_text(encoding="ascii")
    assert all(character.isprintable() or character == "\n" for character in text)
    for fact in read_facts(ELEMENTS):
        assert 1 <= len(fact.paraphrases) <= 2
        assert all(len(phrasing) <= 80 for phrasing in (fact.question, *fact.paraphrases))
        assert len({fact.question, *fact.paraphrases}) == 1 + len(fact.paraphrases)


# Facts that have changed


def test_the_old_answer_of_a_fact(tmp_path: Path) -> None:
    fact = Fact("Capital of Kazakhstan?", "Astana", replaces="Nur-Sultan")
    write_facts(tmp_path / "f.jsonl", [fact])
    assert read_facts(tmp_path / "f.jsonl") == [fact] and fact.replaced == Fact(fact.question, "Nur-Sultan")
    text = "question,answer,replaces\nCapital of Kazakhstan?,Astana,Nur-Sultan\nWho?,Ada,\n"
    assert read_facts(file(tmp_path, "f.csv", text)) == [fact, Fact("Who?", "Ada")]
    assert ", line 2: replaces is the answer itself, 'astana'" in error(
        file(tmp_path, "g.csv", "question,answer,replaces\nq,Astana,astana\n")
    )
