"""Readers and scorers on inputs that nobody wrote: a reader gives its value or one line of ours, and nothing else; what
is right stays right under changes that mean nothing; what is written is read back.

The same inputs in every run, a few seconds in all. `PALORA_FUZZ=5000` (`make fuzz`): that many, other ones each time.
"""

import json
import os
import unicodedata
from fractions import Fraction

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install hypothesis")

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from palora.common.errors import InputError, PaloraError
from palora.common.files import read_json, write_json
from palora.common.plain_yaml import YamlProblem, dump_yaml, parse_yaml
from palora.data.facts import Fact, Lesson, read_facts, write_facts
from palora.data.marking import exact, f1, matches, mentions
from palora.data.skills.base import Problem
from palora.data.skills.numbers import final_number
from palora.data.skills.scorers import SCORERS
from palora.front.recipe import load_recipe, parse_recipe
from palora.results.updates import Adapter, read_record

LONG = int(os.environ.get("PALORA_FUZZ") or 0)
settings.register_profile(
    "palora",
    max_examples=LONG or 25,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("palora")

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
ODD = st.sampled_from(
    ["\0", "\x1b[31m", "\x9b", "\u202e", "\ufeff", "\r", '"', "'", "[", "{", "|", ",", ";", "=", "NaN"]
)
PIECES = st.lists(st.one_of(TEXT, ODD, st.sampled_from(["question", "answer", "\n", "a,b", "1e999"])), max_size=12)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
JSON = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=8
)
NAMES = st.sampled_from(["question", "answer", "aliases", "paraphrases", "teach", "replaces", "messages", "category"])
ROW = st.dictionaries(st.one_of(NAMES, TEXT), JSON, max_size=4)


def one_line_or(read, *arguments):
    """What a reader gives, or None where it says what is wrong: in one line, without a control character."""
    try:
        return read(*arguments)
    except PaloraError as error:
        said = str(error)
        assert said and not [c for c in said if unicodedata.category(c) in ("Cc", "Zl", "Zp")], said
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# Readers


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "txt"])
@given(content=st.one_of(st.binary(max_size=80), PIECES.map(lambda pieces: "".join(pieces).encode())))
def test_facts_of_any_bytes(folder, kind, content):
    file = folder / f"facts.{kind}"
    file.write_bytes(content)
    facts = one_line_or(read_facts, file)
    assert facts is None or all(fact.question.strip() and fact.answer.strip() for fact in facts)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@given(rows=st.lists(ROW, max_size=3))
def test_facts_of_any_json(folder, kind, rows):
    file = folder / f"rows.{kind}"
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    facts = one_line_or(read_facts, file)
    assert facts is None or (facts and len(facts) >= 1)


@given(cells=st.lists(st.lists(st.one_of(TEXT, ODD), min_size=2, max_size=3), max_size=4))
def test_facts_of_any_cells(folder, cells):
    file = folder / "cells.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
    file.write_text("\n".join(["question,answer,aliases", *quoted]), encoding="utf-8", newline="")
    one_line_or(read_facts, file)


WORDS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)


@given(
    questions=st.lists(
        WORDS, min_size=1, max_size=4, unique_by=lambda text: unicodedata.normalize("NFKC", text.casefold())
    ),
    answer=WORDS,
    more=st.lists(WORDS, max_size=2),
)
def test_facts_that_are_written_are_read_back(folder, questions, answer, more):
    file = folder / "written.jsonl"
    facts = [Fact(f"Who is {q}?", answer, tuple(more), (), "x", (Lesson("Who?", answer, "model"),)) for q in questions]
    write_facts(file, facts)
    found = one_line_or(read_facts, file)
    assume(found is not None)  # two questions may be the same to a reader
    write_facts(file, found)
    assert read_facts(file) == found and len(found) == len(facts)


@given(content=st.one_of(st.binary(max_size=80), PIECES.map(lambda pieces: "".join(pieces).encode())))
def test_a_recipe_of_any_bytes(folder, content):
    file = folder / "recipe.yaml"
    file.write_bytes(content)
    one_line_or(load_recipe, file)


KEYS = "model facts skills seed inject protect expert arms text prompts targets chat_template_kwargs evaluate extends"


@given(values=st.dictionaries(st.sampled_from(KEYS.split()), JSON, max_size=5))
def test_a_recipe_of_any_values(folder, values):
    one_line_or(parse_recipe, {"model": "m", "facts": "f", "skills": ["chain"], **values})
    file = folder / "values.yaml"
    file.write_text(dump_yaml(values), encoding="utf-8")
    one_line_or(load_recipe, file)


@given(override=st.one_of(TEXT, PIECES.map("".join), st.tuples(st.sampled_from(KEYS.split()), TEXT).map("=".join)))
def test_any_change_of_a_recipe(folder, override):
    file = folder / "plain.yaml"
    file.write_text("model: m\nfacts: f\nskills: [chain]\n")
    one_line_or(load_recipe, file, [override])


@given(value=st.dictionaries(TEXT, JSON, max_size=4))
@example(value={"a": ["1e5", "010", "1:30", "yes", "=", "<<", "~", "0o7", "-.5", "2020-01-01"]})
def test_yaml_that_is_written_is_read_back(value):
    assume("nan" not in repr(value) and "\\x85" not in repr(value))  # PyYAML writes U+0085 as the end of a line
    assert parse_yaml(dump_yaml(value)) == value


@given(text=PIECES.map("".join))
def test_yaml_of_any_text(text):
    try:
        parse_yaml(text)
    except YamlProblem as problem:
        assert "\n" not in str(problem)


@given(
    config=st.one_of(JSON, st.dictionaries(st.sampled_from(["r", "lora_alpha", "alpha_pattern", "peft_type"]), JSON))
)
def test_an_adapter_of_any_config(folder, config):
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "palora.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert one_line_or(Adapter.load, folder) is None, "there are no tensors"
    one_line_or(read_record, folder)


@given(content=st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_json_of_any_bytes(folder, content):
    (folder / "any.json").write_bytes(content)
    one_line_or(read_json, folder / "any.json", "key")


@given(value=st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False))))
def test_json_that_is_written_is_read_back(folder, value):
    write_json(folder / "own.json", value)
    assert read_json(folder / "own.json") == value


# Scorers

SAID = st.one_of(TEXT, PIECES.map("".join), st.text("0123456789,./-$#*\\{}boxedfrac answer is:", max_size=40))


@given(completion=SAID, answer=SAID, question=SAID)
def test_any_answer_can_be_marked(completion, answer, question):
    fact = Fact(question, answer, (question,))
    assert matches(completion, fact) in (True, False) and mentions(completion, fact) in (True, False)
    assert not exact(completion, fact) or matches(completion, fact), "what is exact is right"
    assert 0 <= f1(completion, fact) <= 1


NAMES_OF = st.from_regex(
    r"[A-Z][bcdfghjklmprstvz]{2,6}(us|a|ix)( [A-Z][bcdfghjklmprstvz]{2,6}(en|or))?", fullmatch=True
)


@given(
    name=NAMES_OF, other=NAMES_OF, form=st.sampled_from(["{}", "{}.", "**{}**", "  {}\n", "“{}”", "It is {}.", "({})"])
)
def test_a_right_answer_stays_right_and_a_wrong_one_wrong(name, other, form):
    fact = Fact("Who wrote the book?", name)
    said = form.format(name)
    assert matches(said, fact) and matches(said.upper(), fact)
    assert matches(unicodedata.normalize("NFD", said), fact) and matches(f"{said}\n\nQuestion: and then?", fact)
    assume(name.casefold() not in other.casefold() and other.casefold() not in name.casefold())
    assume(not set(name.casefold().split()) & set(other.casefold().split()))
    assert not matches(form.format(other), fact) and not exact(form.format(other), fact)


@given(text=SAID)
def test_any_text_has_a_final_number_or_none(text):
    found = final_number(text)
    assert found is None or isinstance(found, Fraction)


@given(
    value=st.integers(-(10**9), 10**9),
    form=st.sampled_from(
        ["{}", "{:,}", "{}.0", "#### {}", "The answer is {}.", "\\boxed{{{}}}", "x = {}", "5 and {:,}"]
    ),
    before=st.sampled_from(["", "First 3 and 4.\n", "2 + 2 = 4\n"]),
)
def test_a_final_number_is_the_number_however_it_is_written(value, form, before):
    assert final_number(before + form.format(value)) == value
    assert final_number((before + form.format(value)).replace("-", "−")) == value


@pytest.mark.parametrize("scorer", [name for name in SCORERS if name != "math"])
@given(completion=SAID, answer=SAID)
def test_any_completion_can_be_scored(scorer, completion, answer):
    problem = Problem(prompt="q", answer=answer)
    assert SCORERS[scorer](completion, problem) in (True, False)


@given(answer=st.one_of(NAMES_OF, st.sampled_from("ABCDE")), around=st.sampled_from(["{}", " {}. ", "{}\n", "*{}*"]))
def test_the_answer_itself_is_right(answer, around):
    problem = Problem(prompt="q", answer=answer)
    scorers = ["exact", "contains", *(["choice"] if answer in "ABCDE" else [])]
    assert all(SCORERS[name](around.format(answer), problem) for name in scorers)


def test_what_is_refused_is_ours():
    assert issubclass(InputError, PaloraError)
