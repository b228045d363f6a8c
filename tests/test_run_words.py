"""What the model writes before it is taught, in a run: the files, what they are used for, and that a person may change
them."""

import pytest
from command import palora
from conftest import tiny_llama

from palora.common.errors import InputError
from palora.common.files import read_json
from palora.data.facts import Fact, Lesson, read_facts, write_facts
from palora.front import pipeline, stages, words
from palora.front.recipe import parse_recipe
from palora.front.words import Wanted, wanted
from palora.language import words as language_words
from palora.testbed.world import known_facts, new_facts


@pytest.fixture
def values(model_folder, tmp_path):
    write_facts(tmp_path / "new.jsonl", new_facts(6))
    write_facts(tmp_path / "known.jsonl", known_facts()[:6])
    (tmp_path / "prompts.txt").write_text("Where was Zed born?\nWhat is the job of Zed?\n")
    return {
        "model": str(model_folder),
        "skills": ["chain"],
        "facts": str(tmp_path / "new.jsonl"),
        "known_facts": str(tmp_path / "known.jsonl"),
        "prompts": str(tmp_path / "prompts.txt"),
        "protect": {"keep": {"examples": 8}},
        "inject": {"r": 2, "epochs": 1, "stop_at_recall": None, "keep": {"examples": 8}},
        "evaluate": {"problems": 2, "max_answer_tokens": 4},
    }


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    """The tiny model talks nonsense; what it would say is written here."""

    def own(model, tokenizer, facts, settings, seed=0):
        made = [Lesson(fact.question, f"It is {fact.answer}.", "model") for fact in facts]
        return [
            Fact(f.question, f.answer, f.aliases, f.paraphrases, f.category, (m,))
            for f, m in zip(facts, made, strict=True)
        ]

    monkeypatch.setattr(language_words, "own_words", own)
    monkeypatch.setattr(stages, "own_words", own)
    asked = [f"Where was Q{i} born?" for i in range(40)]
    monkeypatch.setattr(words.questions, "similar_questions", lambda model, tok, facts, n, seed: asked[:n])
    monkeypatch.setattr(
        words.questions, "known_to", lambda model, tok, asked, seed: [Fact(q, "Ulm") for q in asked[:3]]
    )
    monkeypatch.setattr(words, "KNOWN", 10)


def test_a_run_teaches_own_words_and_splits_the_known_facts(values, tmp_path):
    out = tmp_path / "run"
    result = pipeline.run(parse_recipe(values), out)
    taught = read_facts(out / "teach.jsonl")
    assert [fact.teach[0].answer for fact in taught] == [f"It is {fact.answer}." for fact in taught]
    assert read_json(out / "words.json")["taught"] == {"model": 6}
    kept, measured = read_facts(out / "kept_facts.jsonl"), read_facts(out / "known_facts.jsonl")
    known = read_facts(values["known_facts"])
    assert kept == known[::3] and set(kept) | set(measured) == set(known) and not set(kept) & set(measured)
    assert result["arms"]["palora"]["n_known"] == len(measured), "nothing is measured that was kept"
    record = read_json(out / "adapter" / "palora.json")
    assert record["facts"]["taught"] == {"model": 6} and record["training"]["settings"]["targets_by"] == "model"
    assert read_facts(out / "adapter" / "teach.jsonl") == taught
    control = read_json(out / "arms" / "lora" / "adapter" / "palora.json")
    assert control["facts"]["taught"] == {"bare": 6}, "plain LoRA is taught the answers as they are"
    assert not (out / "prompts.txt").exists(), "they were given"


def test_what_a_person_changes_is_taught(values, tmp_path):
    out = tmp_path / "run"
    pipeline.run(parse_recipe(values), out)
    facts = read_facts(out / "teach.jsonl")
    mine = Fact(facts[0].question, facts[0].answer, teach=(Lesson(facts[0].question, "Mine."),))
    write_facts(out / "teach.jsonl", [mine, *facts[1:]])
    pipeline.run(parse_recipe(values), out)
    assert read_facts(out / "teach.jsonl")[0] == mine, "it is not written again"
    assert read_facts(out / "adapter" / "teach.jsonl")[0] == mine


def test_what_is_not_given_the_model_writes(values, tmp_path):
    out = tmp_path / "run"
    del values["prompts"], values["known_facts"]
    result = pipeline.run(parse_recipe(values), out)
    prompts = (out / "prompts.txt").read_text().splitlines()
    known = read_facts(out / "known_facts.jsonl")
    assert len(prompts) == 8 and len(known) == 3 == result["arms"]["base"]["n_known"]
    assert not {fact.question for fact in known} & set(prompts), "what is measured is not kept"


def test_a_bare_run_writes_nothing(values, tmp_path):
    values |= {"kept_facts": values["known_facts"], "known_facts": None}
    plan = parse_recipe(values | {"inject": {"targets_by": "bare", "drift": 0}})
    assert wanted(plan) == Wanted(known_facts=True)
    assert not wanted(plan.model_copy(update={"known_facts": values["kept_facts"]}))


def test_one_known_fact_cannot_be_split(values, tmp_path):
    write_facts(tmp_path / "one.jsonl", known_facts()[:1])
    with pytest.raises(InputError, match="one fact cannot be kept and measured"):
        pipeline.run(parse_recipe(values | {"known_facts": str(tmp_path / "one.jsonl")}), tmp_path / "run")


def test_without_a_chat_template_the_answers_are_bare(values, tmp_path, tokenizer):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    folder = tmp_path / "plain"
    tiny_llama().save_pretrained(folder)
    plain.save_pretrained(folder)
    values["model"] = str(folder)
    pipeline.run(parse_recipe(values), tmp_path / "run")
    assert read_json(tmp_path / "run" / "adapter" / "palora.json")["facts"]["taught"] == {"bare": 6}
    with pytest.raises(InputError, match="needs a model with a chat template; use bare"):
        pipeline.run(parse_recipe(values | {"inject": {"targets_by": "model"}}), tmp_path / "other")


def test_facts_rephrase_writes_facts_that_can_be_taught(values, tmp_path):
    common = ("--model", values["model"], "--facts", values["facts"])
    made = palora("facts", "rephrase", *common, "--out", tmp_path / "teach.jsonl")
    assert made.code == 0, made.err
    assert read_facts(tmp_path / "teach.jsonl")[0].teach[0].how == "model"
    wrong = palora("facts", "rephrase", *common, "--targets-by", "bare", "--out", tmp_path / "t.jsonl")
    assert wrong.code == 2 and "targets_by=bare rephrases nothing" in wrong.err
    taught = ("--epochs", 1, "--r", 2, "--out", tmp_path / "adapter")
    done = palora("inject", "--model", values["model"], "--facts", tmp_path / "teach.jsonl", *taught)
    assert done.code == 0, done.err
