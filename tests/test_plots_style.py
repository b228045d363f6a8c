"""Colours and markers."""

from palora.results.plots.style import arm_styles


def test_arms_keep_their_colours_and_differ_by_marker() -> None:
    styles = arm_styles(["random", "palora", "svf", "base", "expert", "lora"])
    assert styles["palora"].slot == "palora" and styles["lora"].label == "plain LoRA"
    assert len({style.marker for style in styles.values()}) == len({s.slot for s in styles.values()}) == len(styles)
