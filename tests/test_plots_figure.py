"""What a drawing becomes on a page."""

import re

import numpy as np
import pytest

from palora.results.plots import figure
from palora.results.plots.components import spectrum


def test_a_huge_drawing_becomes_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "SVG_LIMIT", 1000)
    drawing = figure.to_html(spectrum(np.ones(5), [1], ylabel="z"), 'a "quoted" text')
    assert drawing.startswith('<img class="plot" alt="a &quot;quoted&quot; text" src="data:image/png;base64,')


def test_small_tick_labels_keep_their_digits() -> None:
    from matplotlib.figure import Figure

    drawing = Figure()
    axes = drawing.subplots()
    axes.plot([0, 1], [0.001, 0.004])
    axes.set_yticks([0.0025], ["0.0025"])
    page = figure.to_html(drawing, "small numbers")
    assert "0.0025" in page, "only coordinates are shortened"
    assert not re.search(r'd="[^"]*\d\.\d{3}', page)
