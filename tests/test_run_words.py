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
from palora.front.words import Wanted, wanted, write_words
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
        how = settings.targets_by or "model"
        made = [Lesson(fact.question, f"It is {fact.answer}.", how) for fact in facts]
        return [
            Fact(f.question, f.answer, f.aliases, f.paraphrases, f.category, (m,))
            for f, m in zip(facts, made, strict=True)
        ]

    monkeypatch.setattr(language_words, "own_words", own)
    asked = [f"Where was Q{i} born?" for i in range(40)]
    monkeypatch.setattr(
        words.questions,
        "similar_questions",
        lambda model, tok, facts, n, seed, besides: [q for q in asked if q not in besides][:n],
    )
    monkeypatch.setattr(
        words.questions, "known_to", lambda model, tok, asked, seed: [Fact(q, "Ulm") for q in asked[:3]]
    )
    monkeypatch.setattr(words, "KNOWN", 10)


def test_a_run_teaches_own_words_and_splits_the_known_facts(values, tmp_path):
    out = tmp_path / "run"
    result = pipeline.run(parse_recipe(values), out)
    taught = read_facts(out / "teach.jsonl")
    assert [fact.teach[0].answer for fact in taught] == [f"It is {fact.answer}." for fact in taught]
    assert read_json(out / "words.json")["files"]["teach.jsonl"]["found"] == {"model": 6}
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
    loss = {arm: values["loss"] for arm, values in result["update"].items()}
    assert loss["palora"]["distil"] == 1.0 and not loss["lora"], "own words come with distillation"


def test_a_bare_run_writes_nothing(values, tmp_path):
    plan = parse_recipe(values | {"inject": {"targets_by": "bare", "drift": 0}})
    assert wanted(plan) == Wanted(), "with nothing in the loss the known facts are all measured"
    out = tmp_path / "run"
    out.mkdir()
    assert write_words(plan, out) == plan and not list(out.iterdir())
    bare = parse_recipe(values | {"known_facts": None, "inject": {"targets_by": "bare", "drift": 0}})
    assert wanted(bare) == Wanted(known_facts=True)


def test_facts_that_the_model_wrote_are_measured_and_never_kept(values, tmp_path):
    del values["known_facts"]
    pipeline.run(parse_recipe(values), tmp_path / "run")
    assert read_json(tmp_path / "run" / "protection" / "protection.json")["keep"]["known_facts"] == 0


def test_another_arm_has_words_of_its_own(values, tmp_path):
    """`mixed` is written anew for the arm; an arm with another rule alone is taught what palora is taught."""
    values["arms"] = {"mixed": {"inject": {"targets_by": "mixed"}}, "sigma": {"protect": {"rule": "sigma", "k": 2}}}
    pipeline.run(parse_recipe(values), tmp_path / "run")
    arms = tmp_path / "run" / "arms"
    assert read_json(arms / "mixed" / "adapter" / "palora.json")["facts"]["taught"] == {"mixed": 6}
    assert read_json(arms / "sigma" / "adapter" / "palora.json")["facts"]["taught"] == {"model": 6}


def test_only_what_is_made_of_other_things_is_written_again_and_yours_is_kept(values, tmp_path, caplog):
    del values["prompts"]
    out = tmp_path / "run"
    plan = parse_recipe(values)
    write_words(plan, out)
    facts = read_facts(out / "teach.jsonl")
    mine = Fact(facts[0].question, facts[0].answer, teach=(Lesson(facts[0].question, "Mine."),))
    write_facts(out / "teach.jsonl", [mine, *facts[1:]])
    write_words(plan.model_copy(update={"prompts": None, "inject": plan.inject.model_copy(update={"r": 3})}), out)
    assert read_facts(out / "teach.jsonl")[0] == mine, "the rank has nothing to do with it"
    write_words(plan.model_copy(update={"inject": plan.inject.model_copy(update={"samples": 2})}), out)
    assert read_facts(out / "teach.jsonl") == facts and read_facts(out / "teach.mine.jsonl")[0] == mine
    assert "was changed by hand" in caplog.text
    (out / "teach.jsonl").unlink()
    write_words(plan.model_copy(update={"inject": plan.inject.model_copy(update={"samples": 2})}), out)
    assert read_facts(out / "teach.jsonl") == facts, "what is gone is written again"


def test_a_file_of_the_run_is_not_what_it_is_made_of(values, tmp_path):
    out = tmp_path / "run"
    pipeline.run(parse_recipe(values), out)
    again = parse_recipe(values | {"known_facts": str(out / "known_facts.jsonl")})
    with pytest.raises(InputError, match="is written by the run itself"):
        pipeline.run(again, out)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "teach.jsonl").write_text("mine")
    with pytest.raises(InputError, match="was not written by palora and would be lost"):
        write_words(parse_recipe(values), tmp_path / "new")


def test_an_interrupted_training_does_not_teach_another_files_words(values, tmp_path, monkeypatch):
    common = ("--model", values["model"], "--epochs", 1, "--r", 2, "--out", tmp_path / "adapter")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(stages.injection, "inject", lambda *given, **named: (_ for _ in ()).throw(RuntimeError))
        palora("inject", "--facts", values["facts"], *common)
    write_facts(tmp_path / "other.jsonl", new_facts(9)[6:])
    assert palora("inject", "--facts", tmp_path / "other.jsonl", *common).code == 0
    taught = read_facts(tmp_path / "adapter" / "teach.jsonl")
    assert [fact.question for fact in taught] == [fact.question for fact in new_facts(9)[6:]]


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


def test_a_run_counts_its_stages_and_says_how_many_facts_were_learned(values, tmp_path, caplog):
    caplog.set_level("INFO", "palora")
    pipeline.run(parse_recipe(values), tmp_path / "run")
    begun = [record.getMessage() for record in caplog.records if record.getMessage().startswith("stage ")]
    assert [line.partition(":")[0] for line in begun] == [f"stage {i} of 5" for i in range(1, 6)]
    assert [line.partition(": ")[2] for line in begun[2:]] == [
        "teach the facts (lora)",
        "teach the facts (palora)",
        "ask every arm the same questions",
    ]
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if " learned: " in line] == [
        f"{arm} learned: not measured while training (stop_at_recall says whether); palora evaluate tells"
        for arm in ("lora", "palora")
    ]
    assert any("of the skill's input energy" in line for line in told)


def test_own_words_that_were_stopped_go_on(values, tmp_path, monkeypatch):
    """Six facts, one after the other, stopped at the third: what was written is not written again, and the file is as
    if nothing had been."""
    monkeypatch.setattr(language_words, "AT_ONCE", 1)
    own, written = language_words.own_words, []

    def stopping(model, tokenizer, facts, *rest):
        if len(written) == 2 and not (tmp_path / "go on").exists():
            raise KeyboardInterrupt
        written.extend(fact.question for fact in facts)
        return own(model, tokenizer, facts, *rest)

    monkeypatch.setattr(language_words, "own_words", stopping)
    common = ("--model", values["model"], "--facts", values["facts"])
    assert palora("facts", "rephrase", *common, "--out", tmp_path / "teach.jsonl").code == 130
    assert len(written) == 2 and not (tmp_path / "teach.jsonl").exists()
    (tmp_path / "go on").touch()
    assert palora("facts", "rephrase", *common, "--out", tmp_path / "teach.jsonl").code == 0
    facts = read_facts(values["facts"])
    assert written == [fact.question for fact in facts], "each once"
    assert [fact.question for fact in read_facts(tmp_path / "teach.jsonl")] == written
    assert not list(tmp_path.glob("*.parts")), "nothing is left beside it"
