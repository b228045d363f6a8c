"""Numbers in words."""

import pytest

from palora.common.wording import duration, percent, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.974, "97%"), (0.996, "99.6%"), (0.9999, "> 99.9%"), (1.0, "100%"), (0.0, "0%"), (0.0004, "< 0.1%")],
)
def test_percent_never_rounds_to_all_or_nothing(value: float, text: str) -> None:
    assert percent(value) == text


def test_number_formats() -> None:
    assert [significant(value) for value in (0, 3.14159, 0.0561, 3e-7, 12345.6)] == [
        "0",
        "3.14",
        "0.0561",
        "3.0 × 10⁻⁷",
        "12,346",
    ]
    assert [duration(value) for value in (1.23, 40.1, 75.2, 3725)] == ["1.2 s", "40 s", "1 min 15 s", "1 h 02 min"]
