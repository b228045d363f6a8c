"""Colours and markers."""

from palora.algebra.rules import RULES
from palora.results.plots.style import _RULES, arm_styles


def test_arms_keep_their_colours_and_differ_by_marker() -> None:
    styles = arm_styles(["random", "palora", "svf", "base", "expert", "lora"])
    assert styles["palora"].slot == "palora" and styles["lora"].label == "plain LoRA"
    assert len({style.marker for style in styles.values()}) == len({s.slot for s in styles.values()}) == len(styles)


def test_many_arms_differ_by_colour_or_marker() -> None:
    looks = {(style.slot, style.marker) for style in arm_styles([f"arm-{n}" for n in range(24)]).values()}
    assert len(looks) == 24


def test_an_arm_of_a_rules_name_looks_the_same_on_every_page() -> None:
    assert set(_RULES) == set(RULES) - {"none"}
    for rule in _RULES:
        assert arm_styles([rule])[rule] == arm_styles(["base", "other", *reversed(_RULES)])[rule]
