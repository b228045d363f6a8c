"""Pictures along the components of a matrix."""

import numpy as np

from palora.results.plots.components import spectrum
from palora.results.plots.figure import to_html


def test_a_large_matrix_stays_a_small_picture() -> None:
    rng = np.random.default_rng(0)
    figure = spectrum(rng.normal(0, 0.1, 4096), range(0, 4096, 64), ylabel="z − 1")
    assert len(to_html(figure, "large")) < 40_000
