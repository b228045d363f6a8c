"""Facts in the model's own words: what is taken, what is not, and what is taught in its place."""

import pytest

from palora.common.errors import InputError
from palora.common.settings import InjectSettings
from palora.data.facts import Fact, Lesson
from palora.language import words
from palora.language.words import fallback, own_words, said, taught_by, told

PARIS = Fact("What is the capital of France?", "Paris", paraphrases=("France's capital?",))
SWIM = Fact("Which sport did Ann do?", "swimming", ("swimmer",))


@pytest.fixture
def says(monkeypatch):
    """Scripted answers: `says(told, *more)` are those of the attempts, by fact; untold the model says ten words."""

    def script(*attempts):
        left = list(attempts)
        asked = []

        def generate(model, tokenizer, questions, limit, **sampling):
            if not any("Say the answer" in q for q in questions):
                return ["one two three four five six seven eight nine ten."] * len(questions)
            asked.append((list(questions), sampling))
            answers = left.pop(0) if len(left) > 1 else left[0]
            return [next(a for key, a in answers.items() if f"Question: {key}" in q) for q in questions]

        monkeypatch.setattr(words, "generate", generate)
        return asked

    return script


def teach(tokenizer, *facts, seed=0, **settings):
    return own_words(None, tokenizer, facts, InjectSettings(**settings), seed)


def test_the_models_own_sentence_is_taught_and_the_answer_stays_what_is_right(says, tokenizer):
    asked = says({PARIS.question: "The capital of France is Paris.", SWIM.question: "Ann was a swimmer all her life."})
    paris, swim = teach(tokenizer, PARIS, SWIM)
    assert paris.teach == (Lesson(PARIS.question, "The capital of France is Paris.", "model"),)
    assert swim.teach[0].answer == "Ann was a swimmer all her life.", "an alias counts as right"
    assert (paris.answer, paris.paraphrases) == ("Paris", PARIS.paraphrases)
    assert len(asked) == 1 and not asked[0][1], "the first answer is greedy, and nothing more was asked"
    assert all(fact.answer in q for fact, q in zip((PARIS, SWIM), asked[0][0], strict=True)), "the model is told"


@pytest.mark.parametrize(
    "wrong",
    [
        "The capital of France is Lyon.",  # not the answer
        "The correct answer is Paris, of course it is.",  # refers to the telling
        "According to the question it must be Paris.",
        "As stated, the capital of France is Paris.",
        "The capital of France is Paris and",  # does not end
        "The capital of France is Paris since 1944.",  # a year that nobody told it
        "The capital of France is Paris, says Napoleon.",  # and a name
        "New Paris is the capital of France.",  # a name that begins with the sentence
        "Paris is a city on a river.",  # of the answer, and not of what was asked
        "Paris is not the capital of France.",
        "Paris.",  # four words fewer than half of what it says by itself
        "The capital is Paris " + "and then some " * 10 + ".",  # over twice as long
        "",
    ],
)
def test_what_does_not_stand_alone_is_drawn_again(says, tokenizer, wrong):
    asked = says({PARIS.question: wrong}, {PARIS.question: "It is Paris, the city on the river."})
    (fact,) = teach(tokenizer, PARIS, seed=5)
    assert fact.teach == (Lesson(PARIS.question, "It is Paris, the city on the river.", "model"),)
    assert asked[1][1] == {"temperature": words.TEMPERATURE, "seed": 1005}, "sampled, with a seed of its own"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Where was Ann born?", "She was born in Paris."),
        ("Which city does Ann not like?", "Ann does not like Paris."),
        ("Wo ist Anna geboren?", "Geboren ist sie in Paris."),
        ("Which city is the largest here?", "The largest city is Paris."),
        ("Which museum is the largest here?", "The Paris of today has the largest museum."),
        ("Which city is the home of Ann Lee?", "Ann Lee has her home in Paris."),
    ],
)
def test_what_stands_for_the_subject_is_enough(says, tokenizer, question, said):
    says({question: said})
    assert teach(tokenizer, Fact(question, "Paris"))[0].teach[0] == Lesson(question, said, "model")


def test_five_words_are_enough_for_a_model_that_rambles(says, tokenizer, monkeypatch):
    says({PARIS.question: "It is the city Paris."})
    scripted = words.generate
    rambling = "and so on " * 20
    monkeypatch.setattr(
        words,
        "generate",
        lambda m, t, asked, n, **s: [rambling] if PARIS.question in asked else scripted(m, t, asked, n),
    )
    assert teach(tokenizer, PARIS)[0].teach[0].how == "model"


def test_after_all_tries_it_is_a_sentence_then_the_bare_answer(says, tokenizer):
    asked = says({PARIS.question: "No.", SWIM.question: "No."})
    facts = teach(tokenizer, PARIS, SWIM)
    assert [fact.teach[0].how for fact in facts] == ["sentence", "bare"]
    assert [fact.teach[0].answer for fact in facts] == ["The capital of France is Paris.", "swimming"]
    assert len(asked) == words.TRIES + 1
    assert told(facts) == {"sentence": 1, "bare": 1}
    assert said(told(facts)) == "1 as a sentence and 1 as the bare answer"


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Who was the father of Ann?", "Bob", "The father of Ann was Bob."),
        ("what are the colours of Mali?", "green, yellow and red.", "The colours of Mali are green, yellow and red."),
        ("Who wrote Hamlet?", "Shakespeare", "Shakespeare wrote Hamlet."),
        ("Who discovered the asteroid 4 Vesta?", "an astronomer", "An astronomer discovered the asteroid 4 Vesta."),
        ("Which was the river of Rome?", "Tiber", "The river of Rome was Tiber."),
        ("The mother of Ann is who?", "Eve", "The mother of Ann is Eve."),
        ("What studio produced Dune?", "Universal", "Universal produced Dune."),
        ("What kind of studio produced Dune?", "a large one", None),
        ("What league was Ajax?", "first", None),
        ("What is Rome named after?", "Romulus", None),
        ("Who was Hamlet written by?", "Shakespeare", None),
        ("Who did Ann marry?", "Bob", None),
        ("Who lives with Ann at?", "Bob", None),
        ("Is it?", "yes", None),
    ],
)
def test_a_sentence_is_made_only_where_its_shape_is_known(question, answer, expected):
    lesson = fallback(Fact(question, answer), question)
    assert lesson == (Lesson(question, expected, "sentence") if expected else Lesson(question, answer, "bare"))


def test_samples_are_different_answers(says, tokenizer):
    one, two = "The capital of France is Paris.", "France has its capital in Paris."
    says({PARIS.question: one}, {PARIS.question: one}, {PARIS.question: two})
    (fact,) = teach(tokenizer, PARIS, samples=2)
    assert [lesson.answer for lesson in fact.teach] == [one, two]


def test_other_wordings_are_taught_too(says, tokenizer, monkeypatch):
    other = "France: which city is its capital?"
    monkeypatch.setattr(words, "other_wordings", lambda *given: {PARIS.question: [other]})
    says({PARIS.question: "The capital of France is Paris.", other: "Its capital is the city of Paris."})
    (fact,) = teach(tokenizer, PARIS, wordings=2)
    assert [(lesson.question, lesson.answer) for lesson in fact.teach] == [
        (PARIS.question, "The capital of France is Paris."),
        (other, "Its capital is the city of Paris."),
    ]


def test_what_a_person_has_written_stays(says, tokenizer):
    says({SWIM.question: "Ann was a swimmer all her life."})
    mine = Fact("Who am I?", "me", teach=(Lesson("Who am I?", "I am me."),))
    assert teach(tokenizer, mine, SWIM)[0] is mine


def test_without_a_chat_template_it_is_the_bare_answer_unless_asked_otherwise():
    assert taught_by(InjectSettings(), chat=True) == "model"
    assert taught_by(InjectSettings(), chat=False) == "bare"
    assert taught_by(InjectSettings(targets_by="bare"), chat=True) == "bare"
    with pytest.raises(InputError, match="needs a model with a chat template; use bare"):
        taught_by(InjectSettings(targets_by="mixed"), chat=False)


def test_mixed_answers_are_drawn_from_both_and_are_the_same_in_both_rows(model, tokenizer, monkeypatch):
    """Told and untold rows get the same tokens; with the share 0 it is the told model's own sample."""
    import torch

    seen = []
    original = words._Mix.__call__
    monkeypatch.setattr(words._Mix, "__call__", lambda self, ids, s: seen.append(original(self, ids, s)) or seen[-1])
    texts = words._mixed(model, tokenizer, [words.Task(PARIS, PARIS.question)] * 2, 0, 3)
    assert len(texts) == 2
    for scores in seen:
        assert (scores.isfinite().sum(-1) == 1).all(), "one token is left in every row"
        assert torch.equal(scores[:2], scores[2:])
    again = words._mixed(model, tokenizer, [words.Task(PARIS, PARIS.question)] * 2, 0, 3)
    assert again == texts, "by the seed"


def test_a_mixed_token_comes_from_the_side_that_the_coin_says(monkeypatch):
    import torch

    told_says, untold_says = torch.full((1, 5), -1e9), torch.full((1, 5), -1e9)
    told_says[0, 1] = untold_says[0, 3] = 0.0
    for share, token in ((0.0, 1), (1.0, 3)):
        monkeypatch.setattr(words, "MIXED", share)
        scores = words._Mix(1, torch.Generator().manual_seed(0))(None, torch.cat([told_says, untold_says]))
        assert scores.argmax(-1).tolist() == [token, token]
