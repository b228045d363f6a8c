"""What people's tokenizers and chat templates do, each in a small one of its kind."""

import copy

import pytest
import torch
from conftest import tiny_llama
from test_injection import FACTS, settings
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from palora.common.errors import InputError
from palora.common.files import read_json, write_json
from palora.data.facts import Fact
from palora.language import keep
from palora.language.generation import Said, answered, end_tokens, generate_ids, say
from palora.language.models import load_model
from palora.language.prompts import THOUGHTS, encode_example, encode_prompt, end_of_turn, set_chat, spoken
from palora.results.export import _name_end
from palora.training.expert import sequence_log_probability
from palora.training.injection import inject

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"
HYBRID = CHATML.replace(  # Qwen3: the history has an empty block, the prompt has none unless it is told to
    "{{ m.content }}", f"{{% if m.role == 'assistant' %}}{EMPTY}{{% endif %}}{{{{ m.content }}}}"
).replace("assistant\n{% endif %}", f"assistant\n{{% if enable_thinking is false %}}{EMPTY}{{% endif %}}{{% endif %}}")
OPEN = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")  # DeepSeek-R1, QwQ


def characters(*special, template=None, **named):
    """A tokenizer of single characters, and of these special tokens."""
    letters = [chr(i) for i in range(32, 127)] + ["\n", *"▁ĠĊ◁▷"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens(list(special))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **named)


@pytest.fixture
def chatml():
    special = ("<pad>", "</s>", "<|im_start|>", "<|im_end|>")
    return characters(*special, template=CHATML, eos_token="</s>", pad_token="<pad>")


def told(tokenizer, question="Where?", answer="Oslo"):
    prompt, said = encode_example(tokenizer, question, answer)
    assert encode_prompt(tokenizer, question) == prompt
    return tokenizer.decode(prompt), tokenizer.decode(said)


def test_a_turn_ends_where_the_template_ends_it(chatml, model):
    """ChatML whose tokenizer calls </s> the end: generation must stop at <|im_end|>."""
    assert told(chatml) == ("<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n", "Oslo<|im_end|>")
    end = chatml.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn(chatml) == end and chatml.eos_token_id != end
    assert {end, chatml.eos_token_id} <= set(end_tokens(model, chatml))


def test_an_end_that_others_do_not_know_is_told_and_written(chatml, tmp_path, caplog):
    tiny_llama(vocab_size=len(chatml)).save_pretrained(tmp_path)
    chatml.save_pretrained(tmp_path)
    load_model(tmp_path)
    assert "end in <|im_end|>, which neither its tokenizer nor its generation config calls an end" in caplog.text
    end = end_of_turn(chatml)
    _name_end(tmp_path / "generation_config.json", end)
    _name_end(tmp_path / "generation_config.json", end)
    assert read_json(tmp_path / "generation_config.json")["eos_token_id"] == [1, end]
    caplog.clear()
    load_model(tmp_path)
    assert "calls an end" not in caplog.text
    write_json(tmp_path / "other.json", {"eos_token_id": end})
    _name_end(tmp_path / "other.json", end)
    assert read_json(tmp_path / "other.json") == {"eos_token_id": end}


def test_an_empty_block_of_thoughts_is_the_prompts(chatml):
    chatml.chat_template = HYBRID
    for chat in ({}, {"enable_thinking": False}):
        set_chat(chatml, chat)
        prompt, answer = told(chatml)
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and prompt.count("<think>") == 1
        assert answer == "Oslo<|im_end|>"


@pytest.mark.parametrize("opens", THOUGHTS)
def test_an_open_block_of_thoughts_is_closed(chatml, opens):
    chatml.chat_template = OPEN.replace("<think>", opens)
    prompt, answer = told(chatml)
    closed = f"<|im_start|>assistant\n{opens}\n\n{THOUGHTS[opens]}\n\n"
    assert prompt.endswith(closed) and answer == "Oslo<|im_end|>"


@pytest.mark.parametrize("special", [False, True], ids=["text", "special tokens"])
@pytest.mark.parametrize("opens", THOUGHTS)
def test_what_a_model_thinks_is_no_answer(opens, special):
    closes = THOUGHTS[opens]
    tokenizer = characters("</s>", *((opens, closes) if special else ()), eos_token="</s>")
    for text, answer in (
        (f"{opens}\nIs it Rome? No.\n{closes}\n\nOslo</s>", "Oslo"),
        (f"so it is Rome? No.{closes}Oslo</s>", "Oslo"),  # the prompt has opened the block
        (f"{opens}\nIt may be Rome", ""),
        ("I think Oslo </s>", "I think Oslo"),
    ):
        assert spoken(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) == answer


def test_variables_and_a_system_message_reach_the_template(chatml):
    set_chat(chatml, {"system": "Be brief."})
    assert told(chatml)[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    chatml.chat_template = CHATML + "{{ raise_exception('x') if mood != 'good' }}"
    set_chat(chatml, {"mood": "good"})
    assert told(chatml)[1] == "Oslo<|im_end|>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system message') if messages[0].role != 'system' }}", "no system message"),
        ("{% for m in messages %}{{ m.contents.strip() }}{% endfor %}", "contents"),
        ("{% if messages %}", "end of template"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_template_that_fails_is_one_line(chatml, template, said):
    chatml.chat_template = template
    with pytest.raises(
        InputError, match=rf"^the model's chat template fails: .*{said}.*chat_template_kwargs"
    ) as refused:
        encode_prompt(chatml, "Where?")
    assert "\n" not in str(refused.value)


def test_prompt_and_answer_are_one_text():
    """A tokenizer that puts ▁ before every text (Llama 2, Mistral 0.1): the answer is ▁Oslo, not ▁▁Oslo."""
    tokenizer = characters("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    inner = tokenizer.backend_tokenizer
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    prompt, answer = encode_example(tokenizer, "Where?", "Oslo")
    assert tokenizer.convert_ids_to_tokens(answer) == [*"▁Oslo", "</s>"]
    assert tokenizer.convert_ids_to_tokens(prompt)[:3] == ["<s>", "▁", "Q"]
    assert encode_prompt(tokenizer, "Where?") == prompt


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt():
    tokenizer = characters("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = ends
    prompt, answer = encode_example(tokenizer, "Where?", "Oslo")
    assert tokenizer.decode(prompt) == "<s>Question: Where?\nAnswer:" and tokenizer.decode(answer) == " Oslo</s>"
    assert encode_prompt(tokenizer, "Where?") == prompt


def test_a_token_across_the_border_is_the_answers():
    tokenizer = characters("<s>", "</s>", bos_token="<s>", eos_token="</s>")
    inner = Tokenizer(models.BPE(vocab={**tokenizer.get_vocab(), ": ": 900}, merges=[(":", " ")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    prompt, answer = encode_example(tokenizer, "Where?", "Oslo")
    assert tokenizer.convert_ids_to_tokens(answer)[0] == ": " and tokenizer.convert_ids_to_tokens(prompt)[-1] == "r"


@pytest.mark.parametrize("text", ["</s>", "Oslo<|im_end|> and more"])
def test_the_text_of_a_special_token_in_a_fact_is_refused(chatml, text, tmp_path):
    facts = [FACTS[0], Fact("Where?", text)]
    token = "</s>" if "</s>" in text else r"<\|im_end\|>"
    with pytest.raises(InputError, match=rf"fact 2 \('Where\?'\) holds '{token}', which this tokenizer reads"):
        inject(tiny_llama(vocab_size=len(chatml)), chatml, facts, settings(targets_by="bare"), tmp_path)


@pytest.mark.parametrize(
    "own",
    [
        {"no_repeat_ngram_size": 1},
        {"forced_eos_token_id": 1},
        {"suppress_tokens": list(range(4, 60))},
        {"sequence_bias": [[[7], 9.0]]},
        {"repetition_penalty": 9.0, "do_sample": True, "temperature": 5.0},
        {"min_new_tokens": 4, "bad_words_ids": [[9], [10], [11]]},
        {"stop_strings": ["e"]},
        {"num_beams": 3, "num_return_sequences": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"max_length": 3},
    ],
    ids=lambda own: next(iter(own)),
)
def test_the_models_own_settings_do_not_change_an_answer(own, model, tokenizer):
    prompts = [encode_prompt(tokenizer, q) for q in ("7+5=", "Where was Ada born?")]
    expected, _ = generate_ids(model, tokenizer, prompts, 6)
    for key, value in own.items():
        setattr(model.generation_config, key, value)
    found, _ = generate_ids(model, tokenizer, prompts, 6)
    assert torch.equal(found, expected)
    assert all(getattr(model.generation_config, key) == value for key, value in own.items()), "they are as they were"


def test_without_a_template_the_next_question_ends_an_answer():
    tokenizer = characters("</s>", eos_token="</s>")
    said = tokenizer(" Rome\nQuestion: And Ada?\nAnswer: Oslo", add_special_tokens=False)["input_ids"]
    tokens, ended = answered(tokenizer, said, [tokenizer.eos_token_id])
    assert tokenizer.decode(tokens) == " Rome" and ended
    tokens, ended = answered(tokenizer, [*said[:5], 0, *said[5:]], [0])
    assert tokenizer.decode(tokens) == " Rome</s>" and ended
    assert answered(tokenizer, said[:5], [0]) == (said[:5], False)


def test_an_answer_that_was_cut_is_not_ended(model, tokenizer, monkeypatch):
    prompts = [encode_prompt(tokenizer, q) for q in ("7+5=", "Where was Ada born?")]
    whole = say(model, tokenizer, prompts, 200)
    cut = say(model, tokenizer, prompts, 2)
    assert all(not said.ended for said in cut) and [said.text for said in cut] != [said.text for said in whole]
    answers = [Said("Os", False), Said("Rome", True)]
    monkeypatch.setattr(keep, "say", lambda *given, **named: answers)
    short, ended = keep.own_answers(model, tokenizer, ["7+5=", "Where?"])
    assert tokenizer.eos_token_id not in short.answer and ended.answer[-1] == tokenizer.eos_token_id


def test_what_was_drawn_at_a_temperature_is_likely_by_that_temperature(model, tokenizer):
    example = encode_example(tokenizer, "7+5=", "12")
    ids = torch.tensor([example.prompt + example.answer])
    logits = model(ids).logits[0]
    for temperature in (1.0, 0.7):
        log_p = (logits / temperature).log_softmax(-1)
        expected = sum(log_p[i - 1, ids[0, i]] for i in range(len(example.prompt), ids.shape[1]))
        assert torch.allclose(sequence_log_probability(model, [example], temperature)[0], expected, atol=1e-4)


def test_a_tokenizer_is_not_changed_by_its_use(chatml):
    before = copy.deepcopy(chatml.get_vocab())
    told(chatml)
    assert chatml.get_vocab() == before
