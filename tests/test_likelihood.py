"""Choosing by likelihood: against a plain loop over whole sequences."""

import pytest
import torch

from palora.common.errors import InputError
from palora.common.settings import ExpertSettings
from palora.data.skills import Problem, get_skill
from palora.language import likelihood
from palora.language.likelihood import choose
from palora.language.prompts import PLAIN_PROMPT
from palora.language.scoring import solve
from palora.training.expert import train_expert

PROBLEMS = [
    Problem("What is a whale?", "a mammal", choices=("a fish", "a mammal", "an ox")),
    Problem("7+5=", "12", choices=("12", "11")),
    Problem(
        "A much longer question than the others, so that padding is needed?", "yes", choices=("yes", "no", "maybe")
    ),
]


def by_hand(model, tokenizer, problem):
    scores = {}
    for choice in problem.choices:
        prompt = tokenizer(PLAIN_PROMPT.format(question=problem.prompt))["input_ids"]
        whole = tokenizer(f"{PLAIN_PROMPT.format(question=problem.prompt)} {choice}")["input_ids"]
        log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        own = sum(float(log_p[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
        scores[choice] = own / len(choice)
    return max(scores, key=scores.__getitem__)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_it_is_the_likeliest_choice_a_character(model, tokenizer, batch_size):
    counts = []
    found = choose(model, tokenizer, PROBLEMS, batch_size, counts.append)
    assert found == [by_hand(model, tokenizer, problem) for problem in PROBLEMS]
    assert sum(counts) == len(PROBLEMS)


def test_a_model_that_is_no_plain_cache_reads_the_question_for_every_choice(model, tokenizer, monkeypatch):
    expected = choose(model, tokenizer, PROBLEMS)
    monkeypatch.setattr(likelihood, "can_be_cut", lambda cache: False)
    assert choose(model, tokenizer, PROBLEMS) == expected


def test_an_expert_is_not_rewarded_for_choices(model, tokenizer, tmp_path):
    file = tmp_path / "whales.jsonl"
    row = '"answer": "b", "choices": ["a", "b"], "scorer": "likelihood"}'
    file.write_text("\n".join(f'{{"prompt": "Question {i}?", {row}' for i in range(8)))
    with pytest.raises(InputError, match="gives no answers to reward; use next_token"):
        train_expert(model, tokenizer, get_skill(str(file)), ExpertSettings(), tmp_path)


def test_a_skill_with_choices_is_solved_by_likelihood(model, tokenizer, tmp_path):
    file = tmp_path / "whales.jsonl"
    rows = [
        f'{{"prompt": "Question {i}?", "answer": "b", "choices": ["a", "b"], "scorer": "likelihood"}}' for i in range(4)
    ]
    file.write_text("\n".join(rows))
    skill = get_skill(str(file))
    problems = skill.problems("train", None, 0)
    answers = solve(model, tokenizer, skill, problems)
    assert [answer.text for answer in answers] == choose(model, tokenizer, problems)
    assert [answer.correct for answer in answers] == [answer.text == "b" for answer in answers]
