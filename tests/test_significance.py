"""Intervals and paired tests against tables and hand calculations."""

import numpy as np
import pytest

from palora.bench.significance import estimate, holm, paired_t, rank_correlation, sign_flip, t_quantile, t_two_sided


def test_t_against_the_printed_table():
    """Student's 97.5% quantiles, as every textbook prints them."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042}
    for df, t in table.items():
        assert t_quantile(df) == pytest.approx(t, abs=5e-4)
        assert t_two_sided(t, df) == pytest.approx(0.05, abs=5e-5)
    assert t_two_sided(3.747, 4) == pytest.approx(0.02, abs=5e-5)
    assert t_two_sided(0, 4) == 1


def test_an_interval_by_hand():
    """1 to 5: mean 3, s = sqrt(2.5), half = 2.776 · sqrt(2.5 / 5)."""
    mean, (low, high), n = estimate([1, 2, 3, 4, 5])
    assert (mean, n) == (3, 5)
    assert high - 3 == pytest.approx(2.776 * 0.5**0.5, abs=1e-3) and 3 - low == pytest.approx(high - 3)
    assert estimate([0.5]) == (0.5, None, 1)
    assert estimate([]) is None


def test_the_paired_t_test_by_hand():
    """d = 1, 2, 3, 4: mean 2.5, s = 1.29099, t = 2.5 / (1.29099 / 2) = 3.87298, df 3, two-sided p = 0.03047."""
    assert paired_t([1, 2, 3, 4]) == pytest.approx(0.03047, abs=1e-4)
    assert paired_t([-1, 1, -1, 1]) == 1
    assert paired_t([1]) is None
    assert paired_t([0, 0]) == 1
    assert paired_t([0.1 * 3, 0.3, 0.3]) is None, "equal but for rounding: no p of 0"


def test_the_sign_flip_test_by_hand():
    """Sums of ±1 ±2 ±3: 6, 4, 2, 0 and their negatives (0 twice). At least 6: 2 of 8. Of 1, 2, −3 every sum is."""
    assert sign_flip([1, 2, 3]) == 2 / 8
    assert sign_flip([1, -2, 3]) == 6 / 8  # |2|: all but the two zeros
    assert sign_flip([1, 2, -3]) == 1
    assert sign_flip([0.1] * 5) == 2 / 32, "the least that five seeds can say"


def test_holm_by_hand():
    """0.01 · 3, then 0.03 · 2, then 0.04 · 1, which may not be below the one before."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 9], [10, 20, 30, 31]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)  # ranks 0.5 0.5 2 against 0 1 2
    tied = np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1]
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(tied)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
