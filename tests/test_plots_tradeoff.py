"""Pictures of one thing against another."""

from palora.results.plots.style import arm_styles
from palora.results.plots.tradeoff import Point, tradeoff, window


def test_labels_of_crowded_arms_do_not_overlap() -> None:
    arms = ["base", "expert", "lora", "palora", "svf", "random"]
    places = [(0, 0.8), (0, 1), (0.98, 0.35), (0.97, 0.99), (0.975, 0.33), (0.965, 0.41)]
    points = [Point(arm, recall, kept) for arm, (recall, kept) in zip(arms, places, strict=True)]
    figure = tradeoff(points, arm_styles(arms), ylabel="chain skill kept")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in (*arms, "plain LoRA")]
    assert len(boxes) == len(arms)
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


def test_the_picture_is_of_where_the_arms_are() -> None:
    points = [Point("palora", 0.98, 0.97, (0.96, 0.99), (0.94, 0.99)), Point("lora", 0.97, 0.90, None, (0.87, 0.93))]
    figure = tradeoff(
        points, arm_styles(["palora", "lora", "base", "expert"]), ylabel="kept", levels={"base": 0.2, "expert": 1.0}
    )
    axes = figure.axes[0]
    assert axes.get_xlim()[0] > 0.85 and axes.get_ylim()[0] > 0.8, "and not at 0"
    texts = [text.get_text() for text in axes.texts]
    assert "expert" in texts and "base" not in texts, "a level far off is not drawn"
    assert max(axes.get_xticks()) <= 1, "nobody learns more than all"


def test_an_interval_that_says_nothing_does_not_make_the_others_a_dot() -> None:
    low, high = window([0.95, 0.99], [(0.94, 0.96), (0.3, 1.6)], 0.1)
    assert low > 0.85 and high < 1.1
    assert window([0.95], [(0.93, 0.97)], 0.1)[0] < 0.93, "others are whole"
