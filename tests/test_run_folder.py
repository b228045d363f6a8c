"""Reading a run folder."""

from pathlib import Path

from example_run import evaluation, make_run

from palora.results.pages.run_folder import read_run


def test_read_run_skips_the_half_line_of_an_interruption(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", evaluation()))
    assert len(run.metrics) == 61 + 3 * 21
    assert run.missing == {}
