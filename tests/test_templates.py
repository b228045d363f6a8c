"""Tokenizers and chat templates as people have them: what is taught is what the model is given and would say."""

import json
import logging

import pytest
import torch
from templates import CHATML, HYBRID, LLAMA2, OPEN, byte_bpe, model_that_says, sentencepiece_like
from torch.nn import functional as F
from transformers import ByT5Tokenizer

from palora.common.errors import InputError
from palora.common.settings import InjectSettings
from palora.data.facts import Fact
from palora.data.skills import Problem
from palora.language.generation import end_tokens, generate, generate_ids, prompts_record, reply, warn_once, write_ends
from palora.language.keep import own_answers
from palora.language.prompts import Example, encode_example, encode_plain, encode_prompt, frame, set_chat
from palora.language.scoring import ask_facts
from palora.results.model_card import model_card
from palora.training.expert import sequence_log_probability
from palora.training.injection import inject

ASKED, ANSWER = "What is the capital of France?", "Paris"
FACT = Fact(ASKED, ANSWER)


@pytest.fixture(autouse=True)
def _anew():
    warn_once.cache_clear()


def shown(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def id_of(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(text)


# ------------------------------------------------------------ the end of a turn


@pytest.mark.parametrize("as_special", [True, False])
def test_an_answer_ends_where_the_template_ends_it(as_special, caplog):
    """ChatML on a tokenizer whose own end token is `</s>`: the model stops at <|im_end|>, and says so."""
    tokenizer = byte_bpe(CHATML, eos="</s>", as_special=as_special)
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert shown(tokenizer, answer) == "Paris<|im_end|>"
    model = model_that_says(tokenizer, prompt, [*answer, *tokenizer(" London Oslo")["input_ids"]])
    with caplog.at_level(logging.WARNING, "palora"):
        assert end_tokens(model, tokenizer) == sorted([id_of(tokenizer, "</s>"), id_of(tokenizer, "<|im_end|>")])
        assert generate(model, tokenizer, [ASKED] * 2, 12) == ["Paris", "Paris"]
    assert [a.exact for a in ask_facts(model, tokenizer, [FACT])] == [True]
    if as_special:
        [said] = [r.message for r in caplog.records]
        assert "<|im_end|>" in said and "</s>" in said and "\n" not in said


def test_where_the_end_is_known_nothing_is_said(caplog):
    for model_knows, eos in ((False, "<|im_end|>"), (True, "</s>")):
        tokenizer = byte_bpe(CHATML, eos=eos)
        model = model_that_says(tokenizer)
        if model_knows:
            model.generation_config.eos_token_id = [id_of(tokenizer, "</s>"), id_of(tokenizer, "<|im_end|>")]
        end_tokens(model, tokenizer)
    assert not caplog.records


def test_a_template_without_an_end_token_ends_in_a_text():
    """`### End` is no token: it is taught with the tokenizer's end token behind it, stopped at, and never marked."""
    template = (
        "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n### End\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
    )
    tokenizer = byte_bpe(template, eos="</s>")
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert shown(tokenizer, answer) == "Paris\n### End</s>"
    model = model_that_says(tokenizer, prompt, [*answer[:-1], *tokenizer(" London Oslo")["input_ids"]])
    ids, width = generate_ids(model, tokenizer, [prompt], 20)
    assert shown(tokenizer, ids[0, width:]).startswith("Paris\n### End") and "Oslo" not in shown(tokenizer, ids[0])
    assert generate(model, tokenizer, [ASKED], 20) == ["Paris"]


def test_the_end_is_written_where_the_model_is_taken(tmp_path):
    tokenizer = byte_bpe(CHATML, eos="</s>")
    model = model_that_says(tokenizer)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 1}')
    write_ends(model, tokenizer, tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == {"temperature": 0.6, "eos_token_id": [1, id_of(tokenizer, "<|im_end|>")]}
    record = {
        **{"update": {"norm": 1.0, "relative_norm": 0.1, "leak": None, "drift": None}, "model": "m", "rule": "none"},
        **{"facts": {"n": 1, "file": "f"}, "prompts": prompts_record(model, tokenizer)},
    }
    assert f"`<|im_end|>` ({written['eos_token_id'][1]})" in model_card(record)
    known = byte_bpe(CHATML)
    write_ends(model_that_says(known), known, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == written, "there was nothing to add"


def test_what_is_taught_is_recalled(tmp_path):
    """The whole of stage 2 on ChatML with `</s>`: the recall rises, which it never did past <|im_end|>."""
    from conftest import tiny_llama

    tokenizer = byte_bpe(CHATML, eos="</s>")
    model = tiny_llama(vocab_size=len(tokenizer), eos_token_id=1)
    settings = InjectSettings(
        **{"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "learning_rate": 0.03, "epochs": 40, "batch_size": 2},
        **{"recall_every": 5, "stop_at_recall": 1.0, "targets_by": "bare"},
    )
    _, record = inject(model, tokenizer, [FACT, Fact("Where was Ada born?", "London")], settings, tmp_path)
    assert record["recall_while_training"] == 1.0


# ------------------------------------------------------------ thinking


BLOCK = "<think>\n\n</think>\n\n"


def test_an_empty_think_block_is_in_the_prompt_and_not_learned():
    tokenizer = byte_bpe(HYBRID, added=("<think>", "</think>"))
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert shown(tokenizer, answer) == "Paris<|im_end|>" and shown(tokenizer, prompt).endswith(BLOCK)
    assert encode_prompt(tokenizer, ASKED) == prompt, "generation starts where the answer does"
    set_chat(tokenizer)  # as a model is loaded: told not to think, by its own switch
    assert encode_example(tokenizer, ASKED, ANSWER) == (prompt, answer) and tokenizer.chat_template_kwargs


def test_a_model_that_is_to_think_starts_from_its_own_prompt():
    tokenizer = byte_bpe(HYBRID, added=("<think>", "</think>"))
    set_chat(tokenizer, {"enable_thinking": True})
    own = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED}], add_generation_prompt=True, tokenize=False
    )
    assert shown(tokenizer, encode_prompt(tokenizer, ASKED)) == own
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert shown(tokenizer, prompt) == own + BLOCK and shown(tokenizer, answer) == "Paris<|im_end|>"


def test_an_open_think_block_is_closed_unless_it_is_wanted():
    tokenizer = byte_bpe(OPEN, added=("<think>", "</think>"))
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert shown(tokenizer, prompt).endswith(f"<|im_start|>assistant\n{BLOCK}")
    assert shown(tokenizer, answer) == "Paris<|im_end|>" and encode_prompt(tokenizer, ASKED) == prompt
    set_chat(tokenizer, {"enable_thinking": True})
    assert shown(tokenizer, encode_prompt(tokenizer, ASKED)).endswith("assistant\n<think>\n")
    assert encode_example(tokenizer, ASKED, ANSWER) == (prompt, answer)


@pytest.mark.parametrize("tokens", [("<think>", "</think>"), ()], ids=["tags are tokens", "tags are text"])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("said", "marked"),
    [
        ("<think>\nIt is London.\n</think>\n\nIt is Paris.", "It is Paris."),
        ("It is London.\n</think>\n\nIt is Paris.", "It is Paris."),  # the block was opened by the prompt
        ("<think>\nIt is London.", ""),
        ("It is Paris.", "It is Paris."),
    ],
)
def test_what_is_thought_is_not_marked(said, marked, tokens, special):
    tokenizer = byte_bpe(CHATML, added=() if special else tokens)
    if special:
        tokenizer.add_tokens(list(tokens), special_tokens=True)
    row = tokenizer(f"{said}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert reply(tokenizer, row, [id_of(tokenizer, "<|im_end|>")]).text == marked


def test_a_thought_that_is_cut_is_told_of(caplog):
    tokenizer = byte_bpe(OPEN, added=("<think>", "</think>"))
    set_chat(tokenizer, {"enable_thinking": True})
    row = tokenizer("It is Paris. It is", add_special_tokens=False)["input_ids"]
    assert reply(tokenizer, row, [1]).text == ""
    assert "max_answer_tokens" in caplog.text and "enable_thinking" in caplog.text


def test_a_chain_of_thoughts_is_marked_by_what_it_comes_to():
    """Through generation, and the example of what is said has no thought in it either."""
    tokenizer = byte_bpe(CHATML, added=("<think>", "</think>"))
    prompt = encode_prompt(tokenizer, ASKED)
    says = tokenizer("<think>London</think>Paris<|im_end|>", add_special_tokens=False)["input_ids"]
    model = model_that_says(tokenizer, prompt, [*says])
    assert [a.exact for a in ask_facts(model, tokenizer, [FACT])] == [True]
    assert own_answers(model, tokenizer, [ASKED]) == [encode_example(tokenizer, ASKED, ANSWER)]


# ------------------------------------------------------------ what is said of a template


def test_a_system_message_is_before_every_question():
    tokenizer = byte_bpe(CHATML)
    set_chat(tokenizer, None, "You are terse.")
    for ids in (encode_prompt(tokenizer, ASKED), encode_example(tokenizer, ASKED, ANSWER).prompt):
        assert shown(tokenizer, ids).startswith("<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nWhat")
    set_chat(tokenizer)
    assert "terse" not in shown(tokenizer, encode_prompt(tokenizer, ASKED))


@pytest.mark.parametrize(
    ("template", "system", "kwargs", "reason"),
    [
        ("{{ raise_exception('System role not supported') }}" + CHATML, "Hi.", {}, "not supported; leave system_mes"),
        (
            "{% if messages[0].role != 'system' %}{{ raise_exception('Begin with a system\n message!') }}{% endif %}"
            + CHATML,
            *(None, {}, "Begin with a system message!; try a system_message"),
        ),
        ("{{ messages[0].content + messages[3].content }}", None, {}, "has no element 3"),
        ("{% for m in messages %}{{ m.content }", None, {}, "unexpected '}'"),
        ("{{ 1 + messages }}" + CHATML, None, {}, "unsupported operand"),
        ("<user>hello<model>", None, {}, "does not show what is asked"),
        (CHATML, None, {"enable_thinkng": False}, "knows no 'enable_thinkng'"),
        (None, "Hi.", {}, "system_message: the model has no chat template"),
        (None, None, {"enable_thinking": False}, "chat_template_kwargs: the model has no chat template"),
    ],
)
def test_a_template_that_cannot_is_one_line(template, system, kwargs, reason):
    tokenizer = byte_bpe(template)
    with pytest.raises(InputError) as error:
        set_chat(tokenizer, kwargs, system)
        encode_prompt(tokenizer, ASKED)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_template_that_wants_a_list_of_parts_gets_one():
    template = CHATML.replace("m.content", "m.content[0].text")
    tokenizer = byte_bpe(template)
    assert encode_example(tokenizer, ASKED, ANSWER) == encode_example(byte_bpe(CHATML), ASKED, ANSWER)


# ------------------------------------------------------------ one text


def test_an_answer_is_spelled_as_in_one_text():
    """Llama 2: apart, the answer would be `▁▁ Par is`."""
    tokenizer = sentencepiece_like(LLAMA2)
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    whole = tokenizer(f"<s>[INST] {ASKED} [/INST] Paris </s>", add_special_tokens=False)["input_ids"]
    assert prompt + answer == whole and encode_prompt(tokenizer, ASKED) == prompt
    assert tokenizer.convert_ids_to_tokens(answer)[0] == "▁Paris" and answer[-1] == tokenizer.eos_token_id


def test_the_plain_form_too():
    tokenizer = sentencepiece_like(post="<s> $A")
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert prompt + answer == tokenizer(f"Question: {ASKED}\nAnswer: Paris</s>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(answer) == ["▁Paris", "</s>"]


@pytest.mark.parametrize("build", [byte_bpe, sentencepiece_like])
def test_an_end_token_that_the_tokenizer_appends_is_not_between(build):
    tokenizer = build(post="<s> $A </s>", **({"eos": "</s>"} if build is byte_bpe else {}))
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    plain = tokenizer(f"Question: {ASKED}\nAnswer:", add_special_tokens=False)["input_ids"]
    assert prompt == [tokenizer.bos_token_id, *plain] == encode_prompt(tokenizer, ASKED)
    assert shown(tokenizer, answer).split("</s>") == [shown(tokenizer, answer)[:-4], ""], "one end, at the end"
    choice = encode_plain(tokenizer, ASKED, ANSWER)
    assert choice == Example(prompt, answer[:-1]), "a choice's likelihood too"


def test_a_slow_tokenizer_without_offsets():
    """Bytes, in Python, and `</s>` behind every text: the same, as no offsets are needed."""
    tokenizer = ByT5Tokenizer()
    prompt, answer = encode_example(tokenizer, "Où?", "Là-bas")
    assert prompt + answer == tokenizer("Question: Où?\nAnswer: Là-bas")["input_ids"]
    assert encode_prompt(tokenizer, "Où?") == prompt and tokenizer.decode(answer) == " Là-bas</s>"


def test_where_prompt_and_answer_would_be_one_token_the_prompt_stays_as_it_is_given():
    tokenizer = byte_bpe("{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}assistant: ")
    joint = tokenizer("assistant: Paris", add_special_tokens=False)["input_ids"]
    assert joint[-1] == id_of(tokenizer, "ĠParis"), "the space would go to the answer"
    prompt, answer = encode_example(tokenizer, ASKED, ANSWER)
    assert prompt == encode_prompt(tokenizer, ASKED) and shown(tokenizer, prompt).endswith("assistant: ")
    assert answer[0] == id_of(tokenizer, "Paris")


# ------------------------------------------------------------ special tokens as text


@pytest.mark.parametrize("build", [byte_bpe, sentencepiece_like], ids=["bytes", "sentencepiece"])
@pytest.mark.parametrize("text", ["</s>", "Paris</s>London", "<s>Paris"])
def test_the_text_of_a_special_token_is_text(build, text):
    tokenizer = build(CHATML if build is byte_bpe else LLAMA2)
    for prompt, answer in (encode_example(tokenizer, ASKED, text), encode_example(tokenizer, text, ANSWER)):
        assert answer[-1] == frame(tokenizer).end and answer.count(answer[-1]) == 1
        assert not {id_of(tokenizer, "</s>"), id_of(tokenizer, "<s>")} & {*answer[:-1], *prompt[1:]}
    assert tokenizer.decode(encode_example(tokenizer, ASKED, text).answer[:-1]).strip() == text
    assert text in shown(tokenizer, encode_prompt(tokenizer, text))


def test_it_is_refused_with_the_number_where_it_cannot_be(tmp_path):
    """A token that is not marked as special is found in any text (`split_special_tokens` does not reach it)."""
    tokenizer = byte_bpe(CHATML, eos="</s>", as_special=False)
    facts = [FACT, Fact("Where was Ada born?", "London<|im_end|>, they say")]
    with pytest.raises(InputError, match=r"^fact 2 \('Where was Ada born\?'\): '<\|im_end\|>' is a special token"):
        inject(model_that_says(tokenizer), tokenizer, facts, InjectSettings(targets_by="bare"), tmp_path)


# ------------------------------------------------------------ no chat template


@pytest.mark.parametrize("pad", ["<s>", "</s>"])
def test_a_base_model_is_marked_up_to_the_next_question(pad):
    """It goes on with a question and answer of its own, which are not what was asked."""
    tokenizer = byte_bpe(eos="</s>")
    tokenizer.pad_token = pad
    prompt = encode_prompt(tokenizer, ASKED)
    says = tokenizer(" London\n\nQuestion: Where?\nAnswer: Paris", add_special_tokens=False)["input_ids"]
    model = model_that_says(tokenizer, prompt, says)
    assert generate(model, tokenizer, [ASKED], 30) == ["London"]
    assert [a.correct for a in ask_facts(model, tokenizer, [FACT])] == [False], "Paris is said later"
    ids, width = generate_ids(model, tokenizer, [prompt], 30)
    answer = reply(tokenizer, ids[0, width:].tolist(), end_tokens(model, tokenizer))
    assert answer.ended and shown(tokenizer, answer.ids) == " London\n\nQuestion:", "what a rollout is made of"


# ------------------------------------------------------------ what was cut


def test_an_answer_that_was_cut_has_no_end():
    tokenizer = byte_bpe(CHATML)
    prompt = encode_prompt(tokenizer, ASKED)
    says = tokenizer("Let me see. It is Paris<|im_end|>", add_special_tokens=False)["input_ids"]
    model = model_that_says(tokenizer, prompt, [*says])
    [whole] = own_answers(model, tokenizer, [ASKED], len(says))
    [cut] = own_answers(model, tokenizer, [ASKED], 4)
    assert whole.answer == says and cut.answer == says[:4]


# ------------------------------------------------------------ the model's own settings


@pytest.mark.parametrize(
    "own",
    [
        {"no_repeat_ngram_size": 1},
        {"forced_eos_token_id": 5},
        {"sequence_bias": [[[40], 100.0]]},
        {"bad_words_ids": [[50]]},
        {"suppress_tokens": list(range(10, 90))},
        {"begin_suppress_tokens": list(range(10, 90))},
        {"min_new_tokens": 6, "exponential_decay_length_penalty": (1, 5.0)},
        {"do_sample": True, "min_p": 0.9, "temperature": 3.0, "typical_p": 0.2, "epsilon_cutoff": 0.1},
        {"repetition_penalty": 5.0, "encoder_repetition_penalty": 3.0, "guidance_scale": 2.0},
        {"stop_strings": ["a"]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -2.0},
        {"max_length": 3, "prompt_lookup_num_tokens": 2},
    ],
    ids=lambda own: next(iter(own)),
)
def test_the_models_own_generation_config_does_not_leak(own, model, tokenizer):
    prompts = [encode_prompt(tokenizer, q) for q in ("7+5=", "Where was Ada born?")]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    for key, value in own.items():
        setattr(model.generation_config, key, value)
    before = model.generation_config
    ids, width = generate_ids(model, tokenizer, prompts, 8)
    assert ids[:, width:].tolist() == expected
    assert model.generation_config is before, "it is the model's again"


def test_nor_into_a_peft_model_or_what_is_drawn(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    prompts = [encode_prompt(tokenizer, "7+5=")] * 4
    plain = generate_ids(model, tokenizer, prompts, 8, 1.0, 3)[0]
    model.generation_config.min_p = 0.99
    model.generation_config.top_h = 0.1
    tuned = get_peft_model(model, LoraConfig(target_modules=["down_proj"])).eval()
    assert torch.equal(generate_ids(tuned, tokenizer, prompts, 8, 1.0, 3)[0], plain)
    assert tuned.generation_config.min_p == model.generation_config.min_p == 0.99


# ------------------------------------------------------------ rollouts


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_log_p_is_at_the_temperature_of_the_draw(model, temperature):
    example = Example([5, 6, 7], [8, 9])
    logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].double()
    expected = sum(F.log_softmax(logits[i] / temperature, -1)[token] for i, token in ((2, 8), (3, 9)))
    assert sequence_log_probability(model, [example], temperature).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rewarded_rollouts_are_scored_at_their_temperature(model, tokenizer, tmp_path, monkeypatch):
    from palora.common.settings import ExpertSettings
    from palora.data.skills import Skill
    from palora.training import expert

    seen = []
    original = expert.sequence_log_probability
    monkeypatch.setattr(expert, "sequence_log_probability", lambda *given: seen.append(given[2]) or original(*given))
    problems = [Problem(f"{i}+1=", str(i + 1), solution=str(i + 1)) for i in range(4)]
    skill = Skill("sums", 3, lambda split, n, seed: problems[:n], lambda text, problem: "1" in text)
    for objective, temperature, expected in (("reward", 0.7, 0.7), ("reward", 0.0, 1.0), ("next_token", 0.7, 1.0)):
        settings = ExpertSettings(
            **{"objective": objective, "temperature": temperature, "iterations": 1, "batch_size": 4},
            **{"validation_size": 2, "validate_every": 1},
        )
        expert.train_expert(model, tokenizer, skill, settings, tmp_path / f"{objective}{temperature}")
        assert set(seen) == {expected}
        seen.clear()
