"""The sentences say what the numbers say, in favour of palora or against it."""

from example_run import ACCURACY, evaluation

from palora.algebra.rules import RULES
from palora.results.pages.findings import RULES as SAID
from palora.results.pages.findings import findings, headline
from palora.results.pages.results import Results


def test_headline_gives_the_numbers_of_the_evaluation() -> None:
    assert headline(Results(evaluation())) == (
        "palora learned 97% of 200 facts and kept 99% of the expert's chain skill and 100% of the facts that the base "
        "knows; plain LoRA learned 98% and kept 35% and 100%."
    )


def test_headline_names_every_skill() -> None:
    values = evaluation()
    for arm in values["arms"]:
        values["arms"][arm]["skills"]["lookup"] = {"accuracy": ACCURACY[arm] / 2, "n": 50, "ci95": None}
    values["retention"]["palora"]["lookup"] = {"vs_expert": 0.5, "vs_base": None}
    sentence = headline(Results(values))
    assert "kept 99% of the expert's chain skill, 126% of the base's lookup skill and 100% of the facts" in sentence
    assert sentence.endswith("kept 35%, 45% and 100%.")  # from the accuracies where "retention" is silent


def test_a_worse_palora_is_said_to_be_worse() -> None:
    values = evaluation()
    values["arms"]["palora"]["recall"] = 0.80
    values["arms"]["palora"]["skills"]["chain"] = {"accuracy": 0.14, "n": 400, "ci95": [0.11, 0.18]}
    values["retention"]["palora"]["chain"] = {"vs_expert": 0.20, "vs_base": 0.25}
    values["arms"]["palora"]["locality"] = 0.31
    results = Results(values)
    assert headline(results).startswith(
        "palora learned 80% of 200 facts and kept 20% of the expert's chain skill and 32% of"
    )
    found = {finding.text: finding.mark for finding in findings(results)}
    assert found["palora did not reach 95% recall."] == "✗"
    assert found["palora kept less than 95% of the expert's chain skill."] == "✗"
    assert found["palora kept less of chain than plain LoRA did (20% against 35%)."] == "✗"
    assert found["random kept more of chain: 40%, and learned 96%."] == "✗"
    assert any("Known facts were lost: the base answers 98% of them, palora 31%" in text for text in found)
    assert "✓" not in found.values()


def test_an_uncertain_difference_is_called_uncertain() -> None:
    values = evaluation()
    values["arms"]["lora"]["skills"]["chain"] = {"accuracy": 0.62, "n": 40, "ci95": [0.47, 0.75]}
    values["retention"]["lora"]["chain"]["vs_expert"] = 0.62 / 0.70
    found = [finding for finding in findings(Results(values)) if "may be chance" in finding.text]
    assert [finding.mark for finding in found] == ["•"]


def test_an_expert_that_is_no_better_is_pointed_out() -> None:
    values = evaluation()
    values["arms"]["base"]["skills"]["chain"]["accuracy"] = 0.71
    assert any("no better at chain than the base" in finding.text for finding in findings(Results(values)))


def test_only_the_skill_that_the_expert_was_trained_on_tells_of_its_scales() -> None:
    values = evaluation()
    for arm in values["arms"].values():  # the expert is worse than the base at another skill
        arm["skills"]["lookup"] = {"accuracy": 0.9 - 0.1 * (arm is not values["arms"]["base"]), "n": 50, "ci95": None}
    assert not any("mostly noise" in finding.text for finding in findings(Results(values)))
    values["expert"] = {"skill": "lookup", "taught": ["palora"]}
    told = [finding.text for finding in findings(Results(values)) if "mostly noise" in finding.text]
    assert len(told) == 1 and "no better at lookup" in told[0]


def test_kept_is_of_what_the_facts_were_taught_on() -> None:
    values = evaluation()
    values["expert"] = {"skill": "chain", "taught": ["palora", "lora"]}
    assert Results(values).reference("chain") == "expert" and Results(values).reference("other") == "base"
    values["expert"]["taught"] = []  # the expert is there, and the adapters go on the base
    assert Results(values).reference("chain") == "base"
    assert "kept 126% of the base's chain skill" in headline(Results(values))


def test_palora_comes_first_and_then_what_was_taught() -> None:
    assert Results(evaluation()).arms == ["palora", "lora", "random", "base", "expert"]


def test_without_an_expert_the_base_is_the_reference() -> None:
    values = evaluation()
    del values["arms"]["expert"]
    values["retention"]["palora"]["chain"] = {"vs_expert": None, "vs_base": 1.26}
    assert "kept 126% of the base's chain skill" in headline(Results(values))


def test_the_report_says_what_every_rule_protects():
    assert set(SAID) == set(RULES) - {"none"}
