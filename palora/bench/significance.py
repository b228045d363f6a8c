"""Is a difference more than chance? Means, intervals and paired tests over a handful of seeds, exactly.

interval        mean ± t(0.975, n − 1) · s / √n
paired t        t = mean(d) / (s(d) / √n) for the differences d of the same seeds; assumes they are about normal
sign flip       the share of the 2ⁿ ways to flip the signs of d whose mean is at least as far from 0; assumes only
                symmetry, and can say nothing below 2 / 2ⁿ (0.0625 with 5 seeds)
Holm            p-values of several comparisons at once, corrected so that the chance of any false one stays below 5%
"""

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over seeds and its 95% interval (None with fewer than two values)."""

    mean: float
    ci95: tuple[float, float] | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of `values` with its t-interval; None without any."""
    n = len(values)
    if n < 2:
        return Estimate(values[0], None, 1) if n else None
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    mean = fmean(values)
    return Estimate(mean, (mean - half, mean + half), n)


def t_two_sided(t: float, df: int) -> float:
    """P(|T| ≥ |t|) of Student's t with `df` degrees of freedom: the finite sums of Abramowitz and Stegun, 26.7.3-4."""
    angle = math.atan(abs(t) / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range((df - odd) // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1.0 - inside)


def t_quantile(df: int, level: float = 0.95) -> float:
    """The t that holds `level` of Student's distribution between −t and t, by bisection."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - t_two_sided(middle, df) < level else (low, middle)
    return high


def paired_t(differences: Sequence[float]) -> float | None:
    """The two-sided p of the paired t-test; None below two differences, and where all are the same number but 0: what
    does not vary says nothing of how much it may."""
    n = len(differences)
    if n < 2:
        return None
    mean, spread = fmean(differences), stdev(differences)
    if spread <= 1e-12 * abs(mean):
        return 1.0 if mean == 0 else None
    return t_two_sided(mean / (spread / math.sqrt(n)), n - 1)


def sign_flip(differences: Sequence[float]) -> float | None:
    """The two-sided p of the exact sign-flip test; None without differences, or above 16 (65,536 flips)."""
    if not 0 < len(differences) <= 16:
        return None
    observed = abs(sum(differences)) * (1 - 1e-12)
    sums = [
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed for total in sums) / len(sums)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: the i-th smallest of m times (m − i + 1), never decreasing."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's: the correlation of the ranks, ties sharing theirs; None where one of them does not vary."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])
