"""Pictures of one thing against another."""

from palora.results.plots.style import arm_styles
from palora.results.plots.tradeoff import Point, tradeoff


def test_labels_of_crowded_arms_do_not_overlap() -> None:
    arms = ["base", "expert", "lora", "palora", "svf", "random"]
    places = [(0, 0.8), (0, 1), (0.98, 0.35), (0.97, 0.99), (0.975, 0.33), (0.965, 0.41)]
    points = [Point(arm, recall, kept) for arm, (recall, kept) in zip(arms, places, strict=True)]
    figure = tradeoff(points, arm_styles(arms), skill="chain")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in (*arms, "plain LoRA")]
    assert len(boxes) == len(arms)
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
