"""Tokens: training sees exactly what generation starts from, with a chat template and without; and generation."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from palora.language import generation
from palora.language.generation import generate, generate_ids
from palora.language.prompts import batches, encode_example, encode_prompt

QUESTIONS = ["Where was Ada born?", "7+5=", "What is the job of a very long name indeed?"]


@pytest.fixture(scope="module")
def plain_tokenizer():
    """A byte-level BPE without chat template that adds <s> in front, as base models have."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(QUESTIONS, trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet))
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def test_with_a_chat_template(tokenizer):
    prompt, answer = encode_example(tokenizer, "Where?", "Oslo")
    assert tokenizer.decode(prompt + answer) == "<user>Where?<model>Oslo<eos>"
    assert encode_prompt(tokenizer, "Where?") == prompt
    assert tokenizer.decode(prompt).endswith("<model>"), "the answer starts where the model starts to speak"


def test_without_one(plain_tokenizer):
    prompt, answer = encode_example(plain_tokenizer, "Where?", "Oslo")
    assert plain_tokenizer.decode(prompt) == "<s>Question: Where?\nAnswer:"
    assert plain_tokenizer.decode(answer) == " Oslo</s>"
    assert prompt.count(plain_tokenizer.bos_token_id) == 1 and plain_tokenizer.bos_token_id not in answer
    assert encode_prompt(plain_tokenizer, "Where?") == prompt


def test_a_template_that_rewrites_the_history(tokenizer):
    """Some templates drop or change earlier turns once there is an answer: the answer is then ended plainly."""
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = (
        "{% if messages|length > 1 %}<user>?<model>{{ messages[1].content }}{% else %}"
        "<user>{{ messages[0].content }}<model>{% endif %}"
    )
    prompt, answer = encode_example(odd, "Where?", "Oslo")
    assert odd.decode(prompt + answer) == "<user>Where?<model>Oslo<eos>"


def test_batches_hold_everything_once_and_like_lengths_together():
    lengths = [5, 1, 9, 1, 5, 7]
    found = batches(lengths, 2)
    assert sorted(i for group in found for i in group) == list(range(6))
    assert [[lengths[i] for i in group] for group in found] == [[1, 1], [5, 5], [7, 9]]


def test_padding_does_not_change_an_answer(model, tokenizer):
    alone = [generate(model, tokenizer, [q], 6)[0] for q in QUESTIONS]
    assert generate(model, tokenizer, QUESTIONS, 6, batch_size=3) == alone


def test_greedy_is_the_argmax_whatever_the_models_own_settings(model, tokenizer):
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 3.0
    prompt = encode_prompt(tokenizer, "7+5=")
    ids, width = generate_ids(model, tokenizer, [prompt], 4)
    expected = list(prompt)
    for _ in range(4):
        logits = model(input_ids=torch.tensor([expected])).logits[0, -1]
        expected.append(int(logits.argmax()))
        if expected[-1] == tokenizer.eos_token_id:
            break
    assert ids[0, : len(expected)].tolist() == expected and width == len(prompt)


def test_sampling_follows_the_seed(model, tokenizer):
    prompts = [encode_prompt(tokenizer, q) for q in QUESTIONS]

    def draw(seed):
        return generate_ids(model, tokenizer, prompts, 8, temperature=1.0, generator_seed=seed)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_progress_counts_every_answer(model, tokenizer):
    counts = []
    generate(model, tokenizer, QUESTIONS, 2, batch_size=2, progress=counts.append)
    assert counts == [2, 1]


def test_a_shared_beginning_and_answers_that_end_early_change_nothing(model, tokenizer, monkeypatch):
    """With the beginning read once and ended rows leaving the batch, every answer is what it is alone."""
    asked = [f"What is the sum of all these numbers, please: {'1+' * i}7?" for i in (0, 1, 4, 2)]
    with monkeypatch.context() as plain:
        plain.setattr(generation, "SHARED", 10**9)
        plain.setattr(generation, "CHUNK", 10**9)
        expected = generate(model, tokenizer, asked, 24)
    alone = [generate(model, tokenizer, [q], 24)[0] for q in asked]
    seen = []
    original = model.generate
    monkeypatch.setattr(generation, "CHUNK", 3)
    monkeypatch.setattr(model, "generate", lambda **given: seen.append(given["input_ids"].shape) or original(**given))
    assert generate(model, tokenizer, asked, 24) == expected == alone
    assert len(seen) > 1, "it went on in parts"


def test_a_model_with_another_memory_is_asked_in_one_call(model, tokenizer, monkeypatch):
    """Linear attention or sliding windows: nothing is shared, no row leaves, and padding stands on the left."""
    asked = [f"What is the sum of all these numbers, please: {'1+' * i}7?" for i in (0, 3)]
    expected = generate(model, tokenizer, asked, 40)
    calls, original = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **given: calls.append(given) or original(**given))
    monkeypatch.setattr(generation, "can_be_cut", lambda cache: False)
    assert generate(model, tokenizer, asked, 40) == expected
    (call,) = calls
    assert call["past_key_values"] is None and call["attention_mask"][0, 0] == 0 and call["max_new_tokens"] == 40


def test_rows_that_have_ended_leave_the_batch(model, tokenizer, monkeypatch):
    prompts = [encode_prompt(tokenizer, q) for q in QUESTIONS]
    ids, width = generate_ids(model, tokenizer, prompts, 12)
    first = int(ids[0, width + 1])  # what the first one says second ends an answer from here on
    monkeypatch.setattr(generation, "end_tokens", lambda *given: [first])
    monkeypatch.setattr(generation, "CHUNK", 2)
    rows, original = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **given: rows.append(len(given["input_ids"])) or original(**given))
    cut, _ = generate_ids(model, tokenizer, prompts, 12)
    assert rows[0] == len(prompts) and rows[-1] < len(prompts)
    for whole, row in zip(ids.tolist(), cut.tolist(), strict=True):
        answer = whole[width:]
        end = answer.index(first) + 1 if first in answer else len(answer)
        assert row[width : width + end] == answer[:end]
        assert set(row[width + end :]) <= {tokenizer.pad_token_id}


def test_an_answer_that_has_begun_is_gone_on_with(tokenizer):
    assert encode_prompt(tokenizer, "7+5=", "1. ")[-3:] == tokenizer("1. ", add_special_tokens=False)["input_ids"]
