"""What is measured, against counts done by hand."""

import pytest

from palora.common.settings import EvaluateSettings
from palora.data.facts import Fact
from palora.data.skills import get_skill
from palora.language import scoring
from palora.language.generation import Reply
from palora.language.scoring import ask_until_missed, wilson
from palora.results import evaluation
from palora.results.evaluation import Base, Questions, evaluate

FACTS = [
    Fact(question="Capital of France?", answer="Paris", aliases=("Lutetia",), paraphrases=("France's capital?",)),
    Fact(question="Symbol of helium?", answer="He"),
]


def answering(monkeypatch, answers):
    """The model says what `answers` has for the question, whatever the model."""
    monkeypatch.setattr(scoring, "generate", lambda model, tokenizer, questions, *rest: [answers[q] for q in questions])
    monkeypatch.setattr(scoring, "encode_prompt", lambda tokenizer, question: question)
    said = lambda model, tokenizer, questions, *rest: [Reply([], answers[q], True) for q in questions]  # noqa: E731
    monkeypatch.setattr(scoring, "replies", said)


def test_facts_are_marked_by_alias_and_exactly(monkeypatch, tokenizer):
    answering(monkeypatch, {"Capital of France?": "It is Lutetia, I think.", "Symbol of helium?": "He"})
    first, second = scoring.ask_facts(None, tokenizer, FACTS)
    assert (first.correct, first.exact, first.f1) == (True, False, 2 / 6)
    assert (second.correct, second.exact, second.f1) == (True, True, 1.0)
    assert scoring.beside_recall([first, second]) == {"recall_exact": 0.5, "recall_f1": 4 / 6}
    assert scoring.beside_recall([]) == {"recall_exact": None, "recall_f1": None}


def test_facts_are_asked_until_the_target_is_clearly_missed(monkeypatch, tokenizer):
    """600 facts: a model that knows half of them is asked 256, one that may reach the target all of them."""
    facts = [Fact(question=f"Number {i}?", answer="yes") for i in range(600)]

    def knowing(share):
        answering(monkeypatch, {f.question: "yes" if i < share * 600 else "no" for i, f in enumerate(facts)})
        found = ask_until_missed(None, tokenizer, facts, 0.95)
        assert len({answer.prompt for answer in found}) == len(found), "each once"
        return len(found), sum(answer.correct for answer in found) / len(found)

    asked, share = knowing(0.5)
    assert asked == 256 and share == pytest.approx(0.5, abs=0.1), "not the first ones alone, which it knows"
    assert knowing(0.96) == (600, pytest.approx(0.96))
    assert knowing(0.94)[0] == 600, "too near to be clear"
    assert knowing(0.0)[0] == 256
    assert len(ask_until_missed(None, tokenizer, facts[:200], 0.95)) == 200


def test_wilson():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_a_whole_evaluation_counted_by_hand(monkeypatch, model, tokenizer):
    chain = get_skill("chain")
    problems = chain.problems("test", 4, 0)
    known = [Fact(question="Known?", answer="yes"), Fact(question="Also known?", answer="no")]
    right = {p.prompt: p.solution for p in problems}
    says = {
        "base": {**dict.fromkeys(right, "0"), **dict(list(right.items())[:2])},
        "expert": {**right, next(iter(right)): "wrong"},
    }
    facts = {"Capital of France?": "Paris", "France's capital?": "Rome", "Symbol of helium?": "H"}
    shared = {**facts, "Known?": "yes", "Also known?": "maybe"}
    turn = iter(["base", "expert"])
    ask = evaluation._ask

    def asking(*arguments):
        answering(monkeypatch, shared | says[next(turn)])
        return ask(*arguments)

    monkeypatch.setattr(evaluation, "_ask", asking)
    bases = [Base(arm, lambda: (model, tokenizer), {}) for arm in ("base", "expert")]
    result = evaluate(bases, Questions({"chain": (chain, problems)}, FACTS, known), EvaluateSettings(answers=3))
    base, expert = result["arms"]["base"], result["arms"]["expert"]
    counted = sum(says["base"][p.prompt].rsplit(",")[-1] == p.answer for p in problems) / 4
    assert base["skills"]["chain"]["accuracy"] == counted and expert["skills"]["chain"]["accuracy"] == 0.75
    assert base["skills"]["chain"]["n"] == 4
    assert base["recall_exact"] == base["recall_f1"] == 0.5
    assert base["recall"] == 0.5 and base["paraphrase_recall"] == 0.0 and base["locality"] == 0.5
    assert result["retention"]["base"]["chain"] == {"vs_expert": counted / 0.75, "vs_base": 1.0}
    assert len(result["answers"]) == 3
    assert {row["kind"] for row in result["answers"]} == {"fact", "chain"}
    for row in result["answers"]:
        assert set(row["arms"]) == {"base", "expert"}


def test_retention_against_nothing_is_null():
    arm = {"skills": {"chain": {"accuracy": 0.5}}}
    nothing = {"skills": {"chain": {"accuracy": 0.0}}}
    found = evaluation._retention({"base": nothing, "palora": arm})
    assert found["palora"]["chain"] == {"vs_expert": None, "vs_base": None}


def test_a_model_is_loaded_when_it_is_needed_and_not_before(tmp_path, model, tokenizer):
    """Finished arms of this very evaluation are read, and their model is left on the disk."""
    chain = get_skill("chain")
    asked = Questions({"chain": (chain, chain.problems("test", 2, 0))})
    loads = []
    base = Base("base", lambda: loads.append(1) or (model, tokenizer), {})
    first = evaluate([base], asked, EvaluateSettings(), work=tmp_path, identity="x")
    assert len(loads) == 1
    assert evaluate([base], asked, EvaluateSettings(), work=tmp_path, identity="x") == first and len(loads) == 1
    evaluate([base], asked, EvaluateSettings(), work=tmp_path, identity="y")
    assert len(loads) == 2


def test_an_updated_fact_is_recall_of_the_new_and_silence_of_the_old(monkeypatch, tokenizer):
    facts = [
        Fact("Capital of Kazakhstan?", "Astana", replaces="Nur-Sultan", paraphrases=("Where is its government?",)),
        Fact("Seat of the firm?", "New York City", replaces="New York"),
        Fact("Its head?", "Ada", replaces="Bob"),
        Fact("Symbol of helium?", "He"),
    ]
    says = {
        "Capital of Kazakhstan?": "Astana",
        "Where is its government?": "In Nur-Sultan",
        "Seat of the firm?": "New York City",  # which holds the old answer, and is the new one
        "Its head?": "Bob",
        "Symbol of helium?": "Bob",
    }
    answering(monkeypatch, says)
    arm = evaluation.measure(None, tokenizer, Questions({}, facts), EvaluateSettings(), "base")
    assert arm["n_updated"] == 3 and arm["updated_recall"] == pytest.approx(2 / 3)
    assert arm["old_answer"] == pytest.approx(1 / 3) and arm["old_answer_paraphrased"] == 1.0
    answering(monkeypatch, says | {"Seat of the firm?": "New York"})
    arm = evaluation.measure(None, tokenizer, Questions({}, facts), EvaluateSettings(), "base")
    assert arm["old_answer"] == pytest.approx(2 / 3)
    none = evaluation.measure(None, tokenizer, Questions({}, facts[3:]), EvaluateSettings(), "base")
    assert none["n_updated"] == 0 and none["updated_recall"] is None and none["old_answer"] is None
