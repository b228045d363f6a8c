"""Files of facts as people have them: whatever they are kept in, the same facts come out, or one line with the row."""

import csv
import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from palora.common.errors import InputError
from palora.data.facts import Fact, read_facts
from palora.data.sources import Source, identity, sources

ROWS = [("Wer schrieb „Faust“?", "Goethe, J. W."), ("Wie hoch; in Metern?", "3,5")]
FACTS = [Fact(*row) for row in ROWS]


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(tmp_path: Path, name: str, separator: str, encoding: str = "utf-8", before: str = "") -> Path:
    path = tmp_path / name
    with open(path, "w", encoding=encoding, newline="") as opened:
        opened.write(before)
        writer = csv.writer(opened, delimiter=separator)
        writer.writerows([("question", "answer"), *ROWS])
    return path


def error(given: object) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "separator", "encoding", "before"),
    [
        ("f.csv", ",", "utf-8", ""),
        ("f.csv", ";", "utf-8", ""),
        ("f.csv", "\t", "utf-8", ""),
        ("f.csv", "|", "utf-8", ""),
        ("f.tsv", "\t", "utf-8-sig", ""),
        ("f.csv", ";", "utf-8-sig", ""),
        ("f.csv", ";", "utf-8-sig", "sep=;\r\n"),
        ("f.csv", "\t", "utf-8", "sep=\t\r\n"),
        ("f.csv", "~", "utf-8", '"sep=~"\n'),
        ("f.csv", "\t", "utf-16", ""),  # Excel's "Unicode text"
        ("f.csv", ";", "utf-16", "sep=;\r\n"),
        ("f.tsv", "\t", "utf-32", ""),
    ],
)
def test_separators_and_encodings_of_spreadsheets(
    tmp_path: Path, name: str, separator: str, encoding: str, before: str
) -> None:
    assert read_facts(table(tmp_path, name, separator, encoding, before)) == FACTS


def test_big_endian_utf16(tmp_path: Path) -> None:
    assert read_facts(file(tmp_path, "f.csv", b"\xfe\xff" + "question;answer\r\nä;ö".encode("utf-16-be"))) == [
        Fact("ä", "ö")
    ]
    row = json.dumps({"question": "ä", "answer": "ö"}, ensure_ascii=False)
    assert read_facts(file(tmp_path, "f.jsonl", row.encode("utf-16"))) == [Fact("ä", "ö")]


def test_lines_are_counted_behind_what_a_spreadsheet_writes_first(tmp_path: Path) -> None:
    assert ", line 4: no answer" in error(file(tmp_path, "f.csv", 'sep=;\nquestion;answer\n"b";c\nd;\n'))
    assert ", line 5: 3 values under 2 columns; put a value with ; in" in error(
        file(tmp_path, "g.csv", '\nquestion;answer\n"b\nb";c\nd;e;f\n')
    )


def test_columns_of_any_name(tmp_path: Path) -> None:
    text = "Nr;Frage;Antwort;Auch\n1;Wer?;Ada;A. L.|Lovelace\n"
    path = file(tmp_path, "f.csv", text)
    wrong = error(path)
    assert "line 1: no column question and answer among ['Nr', 'Frage', 'Antwort', 'Auch']" in wrong
    assert "--columns question=QUESTIONS_COLUMN,answer=ANSWERS_COLUMN" in wrong
    assert wrong.endswith("the first row must name the columns")
    named = {"file": str(path), "question": "Frage", "answer": "antwort", "aliases": "Auch"}
    assert read_facts(named) == [Fact("Wer?", "Ada", ("A. L.", "Lovelace"))]
    assert "no column 'Farge', which is to be the question, among ['Nr', 'Frage'" in error(
        named | {"question": "Farge"}
    )
    assert "there is no 'qestion'; there are file, templates, question" in error(
        {"file": str(path), "qestion": "Frage"}
    )
    rows = file(tmp_path, "f.jsonl", '{"Frage": "Wer?", "Antwort": 3}\n')
    assert (
        "line 1: no question and answer among the keys ['Frage', 'Antwort']; name them: --columns question=Frage,"
        in (error(rows))
    )
    assert read_facts({"file": str(rows), "question": "Frage", "answer": "Antwort"}) == [Fact("Wer?", "3")]


def test_capitals_in_names_do_not_matter(tmp_path: Path) -> None:
    assert read_facts(file(tmp_path, "f.jsonl", '{"Question": "q", "ANSWER": "a"}')) == [Fact("q", "a")]


@pytest.mark.parametrize(
    "value",
    [
        [{"question": "a", "answer": "x"}, {"question": "b", "answer": "y"}],
        {"version": 2, "data": [{"question": "a", "answer": "x"}, {"question": "b", "answer": "y"}]},
        {"question": ["a", "b"], "answer": ["x", "y"]},
        {"question": {"0": "a", "1": "b"}, "answer": {"0": "x", "1": "y"}},
    ],
)
def test_json(tmp_path: Path, value: object) -> None:
    for name in ("f.json", "f.jsonl") if isinstance(value, list) else ("f.json",):
        assert read_facts(file(tmp_path, name, json.dumps(value, indent=1))) == [Fact("a", "x"), Fact("b", "y")]


def test_json_that_is_lines(tmp_path: Path) -> None:
    text = '{"question": "a", "answer": "x"}\n{"question": "b"}\n'
    assert ", line 2: no answer" in error(file(tmp_path, "f.json", text))
    assert ", line 2: not JSON (Expecting ',' delimiter, column 2)" in error(file(tmp_path, "f.json", '["a"\n "b"]'))
    assert ", row 2: no answer" in error(file(tmp_path, "f.json", '[{"question":"a","answer":"b"},{"question":"c"}]'))


def test_squad_as_it_is_published(tmp_path: Path) -> None:
    asked = [
        {
            "id": "1",
            "question": "Who?",
            "answers": [{"text": "Ada", "answer_start": 1}, {"text": "A.", "answer_start": 2}],
        },
        {"id": "2", "question": "When?", "answers": [{"text": "1815", "answer_start": 9}]},
    ]
    value = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "…", "qas": asked}]}]}
    assert read_facts(file(tmp_path, "f.json", json.dumps(value))) == [
        Fact("Who?", "Ada", ("A.",)),
        Fact("When?", "1815"),
    ]


def test_excel(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        (None, None),
        ("Question", "Answer", "aliases", None),
        ("When?", datetime.datetime(1969, 7, 20)),
        ("At what time?", datetime.datetime(1969, 7, 20, 20, 17)),
        ("Which year?", 1969.0),
        ("How much?", 0.1 + 0.2),
        (None, None),
        ("Who?", "Neil\r\nArmstrong", "Neil | Armstrong"),
    ):
        book.active.append(row)
    book.create_sheet("others")
    book.save(tmp_path / "f.xlsx")
    assert [(f.answer, f.aliases) for f in read_facts(tmp_path / "f.xlsx")] == [
        ("1969-07-20", ()),
        ("1969-07-20 20:17:00", ()),
        ("1969", ()),
        ("0.3", ()),
        ("Neil\nArmstrong", ("Neil", "Armstrong")),
    ]
    book.active.append(("Why?", None))
    book.save(tmp_path / "f.xlsx")
    assert ", row 9: no answer" in error(tmp_path / "f.xlsx")
    whole = (tmp_path / "f.xlsx").read_bytes()
    assert "not a readable Excel file" in error(file(tmp_path, "g.xlsx", whole[: len(whole) // 2]))


def test_without_openpyxl_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install openpyxl" in error(file(tmp_path, "f.xlsx", "x"))


def test_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(
        [{"question": "a", "answer": "x", "id": 1}, {"question": "b", "answer": "y", "id": 2}]
    )
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": data.select([0]), "train": data}).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits"):
        assert read_facts(tmp_path / name) == [Fact("a", "x"), Fact("b", "y")]
    (tmp_path / "one" / "state.json").write_text("{")
    assert "not a readable folder of save_to_disk" in error(tmp_path / "one")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"question": "a", "answers": {"text": ["x", "z"], "answer_start": [1, 2]}}])
    asked = []

    def load(*name: str | None) -> object:
        asked.append(name)
        return datasets.DatasetDict({"validation": data})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_facts("someone/facts:plain") == [Fact("a", "x", ("z",))]
    assert asked == [("someone/facts", "plain")]
    assert "there is no split 'test'; there are validation" in error("someone/facts#test")


def test_without_network_a_name_of_the_hub_is_one_line() -> None:
    assert "no such file here, and no data set of that name" in error("nobody-at-all/nothing")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Ada\r\nLovelace", "Ada\nLovelace"),
        ("Ada\rLovelace", "Ada\nLovelace"),
        ("Ada\x0bLovelace", "Ada\nLovelace"),
        ("Ada_x000D_\nLovelace", "Ada\nLovelace"),
        ("A\x00d\x07a\x7f", "Ada"),
        ("\x1b[31;1mAda\x1b[0m", "Ada"),
        ("\x1b]8;;http://a.b\x07Ada\x1b]8;;\x07", "Ada"),
        ("\ufeffAda", "Ada"),
        ("Ada\u2028L", "Ada\u2028L"),
        ("नमस्‍ते 👩‍🚀", "नमस्‍ते 👩‍🚀"),  # joiners are letters' business
    ],
)
def test_what_nobody_writes_is_left_out(tmp_path: Path, written: str, read: str) -> None:
    path = tmp_path / "f.csv"
    with open(path, "w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("question", "answer"), ("q", written)])
    assert read_facts(path) == [Fact("q", read)]
    assert read_facts(file(tmp_path, "f.jsonl", json.dumps({"question": "q", "answer": written}))) == [Fact("q", read)]


def test_numbers_as_spreadsheets_write_them(tmp_path: Path) -> None:
    cells = "question,answer\na,1969.0\nb,-40000.0\nc,3.0\nd,1969.00\ne,007\n"
    assert [f.answer for f in read_facts(file(tmp_path, "f.csv", cells))] == ["1969", "-40000", "3.0", "1969.00", "007"]
    values = [1969.0, 3.0, 3.25, -0.0, 2.5e20, 12, "1969.0"]
    rows = "".join(json.dumps({"question": str(i), "answer": value}) + "\n" for i, value in enumerate(values))
    assert [f.answer for f in read_facts(file(tmp_path, "f.jsonl", rows))] == [
        *("1969", "3", "3.25", "0", "2.5e+20", "12", "1969.0")  # the last one is text
    ]


def test_dates_of_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    days = [datetime.date(1969, 7, 20), datetime.date(2024, 2, 29)]
    write_table(pyarrow.table({"question": ["a", "b"], "answer": days}), tmp_path / "f.parquet")
    assert [f.answer for f in read_facts(tmp_path / "f.parquet")] == ["1969-07-20", "2024-02-29"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.jsonl", '{"question": "b", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2: nested too deeply"),
        ("f.jsonl", '{"question": "b", "answer": ' + "[" * 500 + "]" * 500 + "}", "line 2: the answer must be text"),
        ("f.jsonl", '{"question": "b", "answer": ' + "7" * 5000 + "}", "line 2: a number of more than 4,300 digits"),
        ("f.csv", "b," + "7" * 5000, "line 3: a number of more than 4,300 digits"),
        ("f.csv", "b," + "z" * 200_000, "line 3: the answer has 200,000 characters, and may have 100,000"),
        ("f.csv", '"b,' + "z\n" * 200_000, "line 3: not CSV (unexpected end of data); close every quote"),
    ],
)
def test_what_is_no_fact_is_one_line_with_its_row(tmp_path: Path, name: str, content: str, said: str) -> None:
    good = {"f.jsonl": '{"question": "a", "answer": "x"}\n', "f.csv": "question,answer\na,x\n"}[name]
    message = error(file(tmp_path, name, good + content))
    assert said in message and len(message) < 400


def test_other_columns_may_be_as_long_and_odd_as_they_like(tmp_path: Path) -> None:
    path = file(tmp_path, "f.csv", f"question,answer,context\na,x,{'z' * 200_000}\n")
    assert read_facts(path) == [Fact("a", "x")]
    assert csv.field_size_limit() == 131_072, "the limit of others is as it was"
    assert read_facts(file(tmp_path, "f.jsonl", '{"question": "a", "answer": "x", "n": %s}' % ("7" * 5000))) == [
        Fact("a", "x")
    ]


def test_several_files_are_one_set_of_facts(tmp_path: Path) -> None:
    one = file(tmp_path, "one.csv", "question,answer\na,x\n")
    two = file(tmp_path, "two.csv", "F;A\nb;y\n")
    mapped = {"file": str(two), "question": "F", "answer": "A"}
    assert read_facts([str(one), mapped]) == [Fact("a", "x"), Fact("b", "y")]
    again = file(tmp_path, "again.jsonl", '{"question": "A?", "answer": "z"}')
    assert error([str(one), str(again)]).startswith(f"{again}, line 1: contradicts {one}, line 2: 'A?'")


def test_how_a_file_is_read_belongs_to_what_a_run_was_made_of(tmp_path: Path) -> None:
    path = str(file(tmp_path, "f.csv", "question,answer,b\na,x,y\n"))
    other = str(file(tmp_path, "g.csv", "question,answer,b\na,x,y\n"))
    assert identity(path) == identity(other) == identity([path]) != identity({"file": path, "answer": "b"})
    assert sources({"file": path, "columns": {"answer": "b"}}) == [Source(path, {"answer": "b"})]
    file(tmp_path, "f.csv", "question,answer,b\na,x,z\n")
    assert identity(path) != identity(other) and identity(None) is None


SCALED = """
import resource, sys, time
from palora.data.facts import read_facts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
n = len(read_facts(sys.argv[1]))
print(n, time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("name", ["f.csv", "f.jsonl"])
def test_many_rows_cost_little_time_and_memory(tmp_path: Path, name: str) -> None:
    """A million rows take 16 s of CPU and 300 MB: 30 s a million is allowed, and 600 bytes a row beside 15 MB."""
    n = 50_000
    with open(tmp_path / name, "w", newline="") as opened:
        rows = ((f"In which city was person number {i} born?", f"City {7 * i}") for i in range(n))
        if name == "f.csv":
            csv.writer(opened).writerows([("question", "answer"), *rows])
        else:
            opened.writelines(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows)
    done = subprocess.run([sys.executable, "-c", SCALED, tmp_path / name], capture_output=True, text=True, check=True)
    count, seconds, megabytes = done.stdout.split()
    assert int(count) == n
    assert float(seconds) < 30 * n / 1e6 + 1 and float(megabytes) < 600 * n / 2**20 + 15, done.stdout
