"""The forms of facts: each gives the question and the answer that it holds, and says how it was taken."""

import json
import logging
from pathlib import Path

import pytest

from palora.common.errors import InputError
from palora.common.progress import say_once
from palora.data.facts import Fact, read_facts
from palora.data.templates import read_templates, relation_words, templates_text


def written(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turns(*said: tuple[str, object], who: str = "role", what: str = "content") -> list[dict[str, object]]:
    return [{who: speaker, what: text} for speaker, text in said]


SHAREGPT = {"who": "from", "what": "value"}


@pytest.mark.parametrize(
    ("row", "fact", "said"),
    [
        ({"messages": turns(("user", "Who?"), ("assistant", "Ada"))}, Fact("Who?", "Ada"), "chat messages"),
        (
            {"messages": turns(("system", "."), ("user", [{"type": "text", "text": "Who?"}]), ("assistant", "Ada"))},
            Fact("Who?", "Ada"),
            "chat messages",
        ),
        (
            {"messages": turns(("user", "Who?"), ("assistant", "Ada"), ("user", "When?"), ("assistant", "1815"))},
            Fact("Who?", "Ada"),
            "the first question and the answer to it",
        ),
        ({"conversations": turns(("human", "Who?"), ("gpt", "Ada"), **SHAREGPT)}, Fact("Who?", "Ada"), "ShareGPT"),
        ({"instruction": "Which city?", "input": "", "output": "Bern"}, Fact("Which city?", "Bern"), "Alpaca"),
        (
            {"instruction": "Name the capital.", "input": "France", "output": "Paris", "text": "…"},
            Fact("Name the capital.\n\nFrance", "Paris"),
            "Alpaca",
        ),
        (
            {"instruction": "Who?", "context": "", "response": "Ada", "category": "open_qa"},
            Fact("Who?", "Ada", category="open_qa"),
            "instruction and response",
        ),
        ({"prompt": "Who?", "completion": " Ada"}, Fact("Who?", "Ada"), "prompt and completion"),
        (
            {"prompt": turns(("user", "Who?")), "completion": turns(("assistant", "Ada"))},
            Fact("Who?", "Ada"),
            "prompt and completion",
        ),
        (
            {"question": "Who?", "answers": {"text": ["Ada", "Ada", "A. L."], "answer_start": [1, 1, 2]}, "id": 1},
            Fact("Who?", "Ada", ("A. L.",)),
            "SQuAD",
        ),
        ({"question": "Who?", "answers": ["Ada", "A. L."]}, Fact("Who?", "Ada", ("A. L.",)), "SQuAD"),
        (
            {"subject": "France", "relation": "capital", "object": "Paris", "aliases": ["Lutetia"]},
            Fact("What is the capital of France?", "Paris", ("Lutetia",), category="capital"),
            "triples",
        ),
        (
            {"head": "France", "relation": "/location/country/number_of_regions", "tail": 18},
            Fact("What is the number of regions of France?", "18", category="/location/country/number_of_regions"),
            "triples",
        ),
        (
            {"subject": "Io", "predicate": "orbits with", "object": ["Jupiter", "Europa"]},
            Fact("Complete the sentence: Io orbits with ___.", "Jupiter", ("Europa",), category="orbits with"),
            "triples",
        ),
        (
            {"statement": "The capital of France is Paris."},
            Fact("Complete the sentence: The capital of France is ___.", "Paris"),
            "plain",
        ),
        ({"statement": "[[Ada]] wrote it."}, Fact("Complete the sentence: ___ wrote it.", "Ada"), "plain"),
        ({"statement": "{{c1::Ada::who}} wrote it."}, Fact("Complete the sentence: ___ wrote it.", "Ada"), "plain"),
        (
            {"statement": "Paris, in France, is the capital of France", "answer": "France"},
            Fact("Complete the sentence: Paris, in France, is the capital of ___", "France"),
            "plain",
        ),
        (
            {"masked_sentence": "Dante was born in [MASK].", "obj_label": "Florence"},
            Fact("Complete the sentence: Dante was born in ___.", "Florence"),
            "plain",
        ),
    ],
)  # fmt: skip
def test_a_form_is_recognised_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: object, fact: Fact, said: str
) -> None:
    caplog.set_level(logging.INFO, "palora")
    path = written(tmp_path, row)
    say_once.cache_clear()
    assert read_facts(path) == [fact] == read_facts(path)
    assert [record.message.startswith(f"{path}: ") and said in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("answers", [["Ada", "A. L."], {"value": "Ada", "aliases": ["A. L.", "Ada"]}])
def test_several_answers_in_the_column_of_one(tmp_path: Path, answers: object) -> None:
    path = written(tmp_path, {"question": "Who?", "answer": answers})
    with pytest.raises(
        InputError, match=r"the answer must be text, .* several right answers: --columns answers=answer"
    ):
        read_facts(path)
    assert read_facts({"file": str(path), "answers": "answer"}) == [Fact("Who?", "Ada", ("A. L.",))]


def test_our_own_form_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "palora")
    read_facts(written(tmp_path, {"question": "q", "answer": "a", "subject": "s", "relation": "r", "object": "o"}))
    assert not caplog.records


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": turns(("user", "When?"))}, "a conversation without a question of the user and an answer"),
        ({"messages": "Who? Ada"}, "a conversation must be a list of turns"),
        ({"messages": [1]}, "a conversation must be a list of turns"),
        ({"question": "When?", "answers": {"text": [], "answer_start": []}}, "no answer"),
        ({"subject": "France", "relation": "", "object": "Paris"}, "no relation"),
        ({"subject": ["France"], "relation": "capital", "object": "Paris"}, "the subject must be text"),
        ({"statement": "Rain fell."}, "no answer is seen in 'Rain fell.'; mark it"),
        ({"instruction": "Who?", "output": ""}, "no answer"),
        ({"text": "Ada"}, "no question and answer among the keys ['text']"),
        ({}, "no question and answer among the keys []"),
    ],
)
def test_a_row_without_a_fact_is_one_line(tmp_path: Path, row: object, said: str) -> None:
    first = {"question": "Who?", "answer": "Ada"}
    with pytest.raises(InputError) as caught:
        read_facts(written(tmp_path, first, row))
    assert f"f.jsonl, line 2: {said}" in str(caught.value) and "\n" not in str(caught.value)


def test_templates_can_be_changed(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"subject": "Bern", "relation": "twinTown", "object": "Kraków"},
        {"subject": "Bern", "relation": "country", "object": "Switzerland"},
    )
    own = tmp_path / "mine.yaml"
    own.write_text("twin town: ['Which town is the twin of {subject}?', 'Twin of {subject}?']\n")
    given = {"file": str(path), "templates": str(own)}
    assert read_facts(given) == [
        Fact("Which town is the twin of Bern?", "Kraków", paraphrases=("Twin of Bern?",), category="twinTown"),
        Fact("In what country is Bern?", "Switzerland", category="country"),
    ]
    for text, said in {
        "twin town: Which town?": "twin town: write a question with {subject}",
        "- a": "templates are a YAML mapping",
        "ok: Is {subject}?\na: {subject} is in": 'line 2: not YAML; write relation: "question about {subject}"',
    }.items():
        wrong = tmp_path / f"{hash(text)}.yaml"
        wrong.write_text(text)
        with pytest.raises(InputError, match=said.replace("{", r"\{")):
            read_facts(given | {"templates": str(wrong)})


def test_the_templates_of_a_file_read_back_as_they_were(tmp_path: Path) -> None:
    text = templates_text(["birthPlace", "moons"], read_templates())
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert "birth place: Where was {subject} born?" in text and "moons: What is the moons of {subject}?" in text
    again = read_templates(str(path))
    assert all(again[name] == asked for name, asked in read_templates().items())


@pytest.mark.parametrize("name", ["place of birth", "place_of_birth", "placeOfBirth", "/people/person/place_of_birth"])
def test_a_relation_is_known_however_it_is_written(name: str) -> None:
    assert relation_words(name) == "place of birth" and relation_words("http://a.org/entity/P19") == "P19"
