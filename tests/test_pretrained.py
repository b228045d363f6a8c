"""What holds on a pretrained chat model: `make test-pretrained`. Skipped, with the reason, where there is none."""

import os
from pathlib import Path

import pytest

from palora.common.settings import InjectSettings
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.language.generation import generate
from palora.language.likelihood import choose
from palora.language.models import load_model
from palora.language.questions import known_to, similar_questions
from palora.language.scoring import ask_facts, share_correct, solve
from palora.language.words import own_words, told
from palora.training.injection import inject

FOLDER = os.environ.get("PALORA_PRETRAINED", "")
ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.skipif(not Path(FOLDER, "config.json").is_file(), reason="PALORA_PRETRAINED names no model folder"),
]


@pytest.fixture(scope="module")
def chat():
    return load_model(FOLDER, "float32")


@pytest.fixture(scope="module")
def facts():
    return read_facts(ROOT / "examples" / "facts" / "asteroids.jsonl")[:10]


def words_an_answer(texts):
    return sum(len(text.split()) for text in texts) / len(texts)


def trained(chat, facts, work, **settings):
    """A model of its own that was taught the facts until it knows nine of ten."""
    model, tokenizer = load_model(FOLDER, "float32")
    common = {"lora_dropout": 0.0, "learning_rate": 1e-3, "epochs": 20, "batch_size": 5, "recall_every": 1}
    wanted = InjectSettings(**common, drift=0.0, stop_at_recall=0.9, **settings)
    return inject(model, tokenizer, facts, wanted, work)


def test_bare_answers_make_answers_short_and_own_words_do_not(chat, facts, tmp_path):
    """The finding that own words rest on: taught bare answers, the model answers word problems in a few words."""
    model, tokenizer = chat
    settings = InjectSettings(targets_by="model")
    taught = own_words(model, tokenizer, facts, settings)
    assert told(taught).get("model", 0) >= 8, told(taught)
    problems = [p.prompt for p in get_skill(str(ROOT / "examples/skills/word_sums.jsonl")).problems("test", 20, 0)]
    before = words_an_answer(generate(model, tokenizer, problems, 48))
    bare, record = trained(chat, facts, tmp_path / "bare", targets_by="bare")
    assert record["recall_while_training"] >= 0.9
    after_bare = words_an_answer(generate(bare, tokenizer, problems, 48))
    own, record = trained(chat, taught, tmp_path / "own", targets_by="model")
    assert record["recall_while_training"] >= 0.9
    after_own = words_an_answer(generate(own, tokenizer, problems, 48))
    print(f"words an answer: {before:.1f} before, {after_bare:.1f} taught bare, {after_own:.1f} in its own words")
    assert after_bare < after_own and abs(after_own - before) < abs(after_bare - before)


def test_the_model_writes_questions_like_the_facts_and_knows_some(chat, facts):
    model, tokenizer = chat
    asked = similar_questions(model, tokenizer, facts, 24)
    assert len(asked) >= 12 and all(question.endswith("?") for question in asked)
    assert not any("asteroid Vesta" in question for question in asked)
    capitals = read_facts(ROOT / "examples" / "facts" / "capitals.jsonl")[:10]  # of asteroids it knows nothing
    known = known_to(model, tokenizer, similar_questions(model, tokenizer, capitals, 24))
    assert known and share_correct(ask_facts(model, tokenizer, known)) >= 0.9, "it says the same again"


def test_it_solves_some_word_problems_and_knows_a_whale_is_no_fish(chat):
    model, tokenizer = chat
    skill = get_skill(str(ROOT / "examples/skills/word_sums.jsonl"))
    assert share_correct(solve(model, tokenizer, skill, skill.problems("test", 40, 0))) > 0.1
    from palora.data.skills import Problem

    asked = [Problem("What do bees make?", "honey", choices=("honey", "bread", "iron"))]
    assert choose(model, tokenizer, asked) == ["honey"]
