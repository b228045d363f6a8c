"""Questions by the model: other wordings, questions like the facts', and what the model knows."""

import pytest

from palora.data.facts import Fact
from palora.language import questions
from palora.language.questions import known_to, other_wordings, similar_questions

ANN = Fact("Where was Ann Lee born?", "Ulm", paraphrases=("What is Ann Lee's birthplace?",))


@pytest.fixture
def writes(monkeypatch):
    def script(*attempts):
        left = list(attempts)

        def complete(model, tokenizer, prompts, limit, temperature, seed):
            return [(left.pop(0) if len(left) > 1 else left[0])] * len(prompts)

        monkeypatch.setattr(questions, "complete", complete)

    return script


@pytest.mark.parametrize(
    "wrong",
    [
        "Ann Lee was born in Ulm.",  # no question
        "Where was she born?",  # a name is gone
        "Where in Bonn was Ann Lee born?",  # another one came in
        "Was Ann Lee born in Ulm?",  # gives the answer away
        "where was Ann Lee born",  # the same, and no question
        "Where was Ann Lee born ?",  # the same
        "What is Ann Lee's birthplace?",  # a paraphrase that is measured
        "Where was Ann Lee born? Where did she die?",
    ],
)
def test_a_wording_asks_the_same_in_other_words(writes, tokenizer, wrong):
    writes(wrong, '"In which town was Ann Lee born?"\n3. And more?')
    assert other_wordings(None, tokenizer, [ANN], 1) == {ANN.question: ["In which town was Ann Lee born?"]}


def test_there_are_fewer_wordings_where_the_model_has_no_more(writes, tokenizer):
    writes("In which town was Ann Lee born?")
    assert other_wordings(None, tokenizer, [ANN], 3) == {ANN.question: ["In which town was Ann Lee born?"]}


def test_similar_questions_are_about_other_things(writes, tokenizer):
    writes("Where was Ann Lee's son born?", "Where was he born?", "Where was Bob Ray born?", "Where was Bob Ray born?")
    assert similar_questions(None, tokenizer, [ANN], 2) == ["Where was Bob Ray born?"]


def test_questions_that_are_kept_are_not_asked_again(writes, tokenizer):
    writes("Where was Bob Ray born?", "Where was Cid Roe born?")
    assert similar_questions(None, tokenizer, [ANN], 1, besides=["where was Bob Ray born"]) == [
        "Where was Cid Roe born?"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Émile Zola lived in Łódź.", ["Zola", "Łódź"]),
        ("It was J. R. R. Tolkien.", ["J", "R", "R", "Tolkien"]),
        ("He was born in St. Gallen in 1950. Then he moved.", ["St", "Gallen", "1950"]),
        ("Анна живёт в городе Ош.", ["Ош"]),
        ('He said "Ann is here." Bob left.', ["Ann"]),
        ("", []),
    ],
)
def test_names_are_words_with_a_capital_or_a_digit(text, expected):
    assert questions.names(text) == expected


def test_what_is_known_is_answered_alike_three_times(monkeypatch):
    asked = ["Where was Bob Ray born?", "Who wrote Emma?", "What is Rome?"]
    told = iter(
        [
            ["Bob Ray was born in Bad Ems.", "Emma was written by Jane Austen. It is a novel.", "Rome is."],
            ["Bob Ray was born in Bad Ems, Germany.", "Jane Austen wrote Emma.", "Rome is."],
            ["Bob Ray was born in Bern.", "It was Jane Austen.", "Rome is."],
        ]
    )
    monkeypatch.setattr(questions, "generate", lambda *given, **sampling: next(told))
    assert known_to(None, None, asked) == [Fact("Who wrote Emma?", "Jane Austen")]
