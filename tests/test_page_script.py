"""What a report does beside being read (`page.js`): tables sort and are saved, answers are searched. Each statement is
tried in a small engine that is always there, and in a real browser where there is one."""

import csv
import io
import json
import time

import pytest
from browsers import Chromium, QuickJS, opened
from example_run import ACCURACY, ATTACK, evaluation, make_run

from palora.results.pages.report import write_report

FOUND = 'return [...document.getElementById("found").children].map((one) => one.querySelector("pre").textContent)'
COUNT = 'return document.querySelector("output").textContent'
HEADS = 'return [...document.querySelector("table").rows[0].cells].map((cell) => cell.textContent.trim())'


@pytest.fixture(scope="module", params=[QuickJS, Chromium])
def browser(request, tmp_path_factory):
    yield from opened(request.param, tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Ten facts, three known facts, and thirty problems whose words would be a formula or markup elsewhere."""
    values = evaluation()
    values["arms"]["random"]["recall"] = None
    run = make_run(tmp_path_factory.mktemp("run") / "run", values)
    with (run / "answers.jsonl").open("a") as file:
        for number in range(30):
            said = {
                "palora": {"text": f'=SUM({number}) "said"', "correct": None},
                "lora": {"text": "", "correct": False},
            }
            row = {"kind": "chain", "prompt": f"-{number} problem", "expected": "@one", "arms": said}
            file.write(json.dumps(row) + "\n")
    return write_report(run)


@pytest.fixture
def page(browser, report):
    browser.open(report)
    return browser


def search(page, **fields):
    """Type into the form, as someone does who looks for answers."""
    for name, value in fields.items():
        page.run(f'document.getElementById("find").elements[{json.dumps(name)}].value = {json.dumps(value)}')
    page.run('document.getElementById("find").dispatchEvent(new Event("input"))')


def press(page, words, among="button"):
    """Click what says so."""
    page.run(
        f"const found = [...document.querySelectorAll({json.dumps(among)})]"
        f".filter((one) => one.textContent.trim().replace(/\\s+/g, ' ') === {json.dumps(words)});"
        "found[0].click()"
    )


def saved(page, words):
    """(name, rows) of the table that a button gives."""
    page.run("globalThis.save = (name, text) => (globalThis.given = [name, text])")
    press(page, words)
    name, text = page.run("return given")
    assert text[0] == "\ufeff", "Excel reads UTF-8 by this mark alone"
    return name, list(csv.reader(io.StringIO(text[1:])))


# --- the search -----------------------------------------------------------------------------------


def test_a_sample_is_shown_until_something_is_asked(page):
    hidden = 'return ["find", "sample", "found"].map((id) => document.getElementById(id).hidden)'
    assert page.run(hidden) == [False, False, True]
    assert page.run(COUNT) == "a sample of 43 answers"
    search(page, words="where")
    assert page.run(hidden) == [False, True, False]
    search(page, words="  ")
    assert page.run(hidden) == [False, False, True]


def test_every_word_must_be_in_the_question_or_an_answer(page):
    search(page, words="WHERE 2")
    assert page.run(FOUND) == ["Where is 2?"] and page.run(COUNT) == "1 of 43 answers"
    search(page, words="by random number 7")
    assert page.run(FOUND) == [f"Who is {ATTACK} number 7?"]
    search(page, words="nobody said this")
    assert page.run(FOUND) == [] and page.run(COUNT) == "0 of 43 answers"


def test_answers_are_narrowed_down_by_what_they_are(page):
    search(page, which="forgot-lora")
    assert page.run(FOUND) == ["Where is 1?", "Where is 2?"]
    search(page, category="river")
    assert page.run(FOUND) == ["Where is 2?"]
    search(page, kind="fact", category="", which="disagree")
    assert len(page.run(FOUND)) == 10
    search(page, which="all", kind="")
    assert page.run(COUNT) == "43 of 43 answers"


def test_more_are_shown_when_asked(page):
    search(page, which="all")
    assert len(page.run(FOUND)) == 25
    press(page, "Show more")
    assert len(page.run(FOUND)) == 43
    more = "return [...document.querySelectorAll('button')].find((one) => one.textContent === 'Show more').hidden"
    assert page.run(more)
    search(page, words="where")
    assert page.run(more) and len(page.run(FOUND)) == 3


def test_an_answer_shows_every_arm_and_whether_it_is_right(page):
    search(page, words="where 2")
    given = "return [...document.getElementById('found').querySelectorAll('header')].map((one) => one.textContent)"
    assert page.run(given) == ["palora✓", "plain LoRA✗", "random✓", "base✓", "expert✓"]
    search(page, words="-7")
    assert page.run(given)[:3] == ["palora–", "plain LoRA✗", "random–"]
    search(page, words="number 7")
    assert page.run("return document.getElementById('found').querySelectorAll('script').length") == 0
    assert ATTACK in page.run("return document.getElementById('found').textContent"), "as text, whatever a model wrote"


# --- tables ---------------------------------------------------------------------------------------


def test_a_measure_sorts_the_arms(page):
    heads = page.run(HEADS)
    assert [head[2:] for head in heads[1:]] == ["palora", "plain LoRA", "random", "base", "expert"]
    column = (
        "const rows = [...document.querySelector('table').rows];"
        "const row = rows.find((one) => one.cells[0].textContent.trim() === 'recall');"
        "return [...row.cells].slice(1).map((cell) => cell.firstChild.textContent.trim())"
    )
    press(page, "recall")
    assert page.run(column) == ["98.0%", "97.0%", "0.0%", "0.0%", "–"]
    assert [head[2:] for head in page.run(HEADS)[1:]] == ["plain LoRA", "palora", "base", "expert", "random"]
    press(page, "recall")
    assert page.run(column) == ["0.0%", "0.0%", "97.0%", "98.0%", "–"], "what is missing stays last"
    press(page, "drift")
    sorted_by = "return [...document.querySelectorAll('[aria-sort]')].map((one) => one.textContent)"
    assert page.run(sorted_by) == ["drift"], "one at a time"


def test_a_head_sorts_the_rows(page):
    names = (
        "const body = [...document.querySelectorAll('table')].at(-1).tBodies[0];"
        "return [...body.rows].map((row) => row.cells[0].textContent)"
    )
    assert page.run(names) == ["town", "river"]
    press(page, "category")
    assert page.run(names) == ["town", "river"], "the largest first, of words the last"
    press(page, "category")
    assert page.run(names) == ["river", "town"]
    press(page, "questions")
    assert page.run(names) == ["town", "river"], "2 and 1"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234", 1234), ("−3.5%", -3.5), ("2.0 × 10⁻⁷", 2e-7), ("3×10¹²", 3e12), ("97.0% of 200", 97), ("–", None)],
)
def test_what_a_cell_counts_as(page, text, value):
    assert page.run(f"return number({json.dumps(text)})") == (pytest.approx(value) if value is not None else None)


# --- data to take away ----------------------------------------------------------------------------


def test_the_answers_that_were_found_are_saved(page):
    search(page, kind="chain")
    name, (head, *rows) = saved(page, "Save these as CSV")
    assert name == "answers.csv" and len(rows) == 30
    assert head[:6] == ["kind", "category", "question", "expected", "palora", "palora is right"]
    assert rows[3][:6] == ["chain", "", "-3 problem", "'@one", '\'=SUM(3) "said"', ""]
    assert rows[3][6:8] == ["", "false"]
    search(page, kind="")
    assert len(saved(page, "Save these as CSV")[1]) == 44, "without a search all of them"


def test_a_table_is_saved_as_it_stands(page):
    name, rows = saved(page, "Save as CSV")
    assert name == "numbers.csv" and [head[2:] for head in rows[0][1:3]] == ["palora", "plain LoRA"]
    (learned,) = [row for row in rows if row[0] == "recall"]
    assert len(learned) == 1 + len(ACCURACY) and learned[1] == "97.0% (94.0 – 99.0)"


@pytest.mark.parametrize("browser", [Chromium], indirect=True)
def test_a_download_is_a_file(page, tmp_path_factory):
    press(page, "Save as CSV")
    for _ in range(100):
        found = [file for file in tmp_path_factory.getbasetemp().rglob("numbers.csv") if file.stat().st_size]
        if found:
            break
        time.sleep(0.1)
        page.run("return 0")
    assert found and "recall" in found[0].read_text(encoding="utf-8-sig")
