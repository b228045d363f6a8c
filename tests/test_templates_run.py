"""Stages on a model whose template ends a turn with a token that nothing else knows, and can think."""

import pytest
from command import palora
from conftest import tiny_llama
from templates import HYBRID, byte_bpe
from transformers import AutoTokenizer

from palora.common.errors import InputError
from palora.common.files import read_json
from palora.data.facts import Fact, write_facts
from palora.front import pipeline
from palora.front.recipe import Plan, parse_recipe
from palora.front.stages import Models, inputs_of
from palora.language.models import load_model
from palora.language.prompts import encode_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    tokenizer = byte_bpe(HYBRID, eos="</s>", added=("<think>", "</think>"))
    tiny_llama(vocab_size=len(tokenizer), eos_token_id=1, max_position_embeddings=512).save_pretrained(made)
    tokenizer.save_pretrained(made)
    write_facts(made / "facts.jsonl", [Fact("Where was Ada born?", "London")])
    return made


def test_a_merged_model_ends_where_its_answers_do(folder, tmp_path):
    how = ("--targets-by", "bare", "--epochs", 1, "--r", 2, "--system-message", "You are terse.")
    made = palora("inject", "--model", folder, "--facts", folder / "facts.jsonl", *how, "--out", tmp_path / "adapter")
    assert made.code == 0, made.err
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "**An answer ends with** `<|im_end|>`" in card and "You are terse." in card and "enable_thinking" in card
    end = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")
    assert read_json(tmp_path / "adapter" / "palora.json")["prompts"]["end"] == {"token": "<|im_end|>", "id": end}
    merged = palora("export", "--adapter", tmp_path / "adapter", "--as", "merged", "--out", tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert read_json(tmp_path / "merged" / "generation_config.json")["eos_token_id"] == [1, end]
    assert read_json(folder / "generation_config.json")["eos_token_id"] == 1


def test_a_recipe_says_how_the_template_is_rendered(folder):
    plan = Plan(model=str(folder), device="cpu")
    thinking = plan.model_copy(update={"chat_template_kwargs": {"enable_thinking": True}})
    models = Models()

    def asked(plan):
        model, tokenizer = models.load(plan)
        return model, tokenizer.decode(encode_prompt(tokenizer, "Where?"))

    model, quiet = asked(plan)
    same, loud = asked(thinking)
    assert same is model, "the model is loaded once"
    assert quiet == f"{loud}<think>\n\n</think>\n\n" and asked(plan)[1] == quiet
    assert load_model(folder)[1].chat_template_kwargs == {"enable_thinking": False}, "as a model is loaded"
    assert inputs_of(plan, plan.inject) != inputs_of(thinking, plan.inject)
    assert "chat" not in inputs_of(plan, plan.inject), "runs of before are still up to date"


def test_on_the_command_line_it_is_a_mapping(folder, tmp_path):
    def evaluated(given):
        facts = ("--facts", folder / "facts.jsonl", "--max-answer-tokens", 2)
        return palora("evaluate", "--model", folder, *facts, "--chat-template-kwargs", given, "--out", tmp_path)

    assert evaluated('{"enable_thinking": true}').code == 0
    for wrong, reason in (("{enable_thinkng: true}", "knows no 'enable_thinkng'"), ("quick", "dictionary")):
        found = evaluated(wrong)
        assert found.code == 2 and reason in found.err and "Traceback" not in found.err


def test_a_run_is_refused_before_it_begins(folder, tmp_path):
    recipe = {"model": str(folder), "skills": ["chain"], "facts": str(tmp_path / "facts.jsonl")}
    write_facts(tmp_path / "facts.jsonl", [Fact("Where was Ada born?", "London"), Fact("Which tag?", "It is <think>.")])
    with pytest.raises(InputError, match=r"fact 2 \('Which tag\?'\): '<think>' is a special token to this model"):
        pipeline.run(parse_recipe(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()
