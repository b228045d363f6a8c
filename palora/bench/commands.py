"""`palora compare` and `palora spectrum`, as the command line takes them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from palora.bench.settings import SpectrumSettings
from palora.common.wording import json_text, printable
from palora.front.options import command, options, plan_of, settings_of
from palora.front.recipe import Plan

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def compare(
    file: Annotated[Path, typer.Argument(help="A YAML comparison; see benchmarks/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: key=value, e.g. seeds=[0,1].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write. Default: runs/<file>.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Cells at work at once, one thread each.")] = 1,
    as_json: Json = False,
) -> None:
    """Train and measure methods side by side at matched recall, each with learning rates of its own, over seeds. Writes
    compare.json, compare.md and compare.html. Run it again and it continues; only=[a,b] runs some of the methods."""
    from palora.bench.comparison import load_comparison

    loaded = load_comparison(file, overrides)
    from palora.bench.compare import compare as run_comparison

    out = out or Path("runs") / file.stem
    result = run_comparison(loaded, out, workers)
    if as_json:
        print(json_text(result))
        return
    print(printable((out / "compare.md").read_text(encoding="utf-8")))
    print(printable(f"Page: {out / 'compare.html'}"))


def _spectrum(
    given: Any,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    expert: Annotated[
        Path | None, typer.Option("--expert", help="An expert folder, for its scales; --model is what it was made of.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="An adapter, for where its update lies.")] = None,
    protection: Annotated[
        Path | None, typer.Option("--protection", help="A protection folder. Default: the adapter's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where a skill lives in the singular spectrum. Writes spectrum.json and spectrum.html."""
    own = {option: value for option, value in given.items() if option.key in SpectrumSettings.model_fields}
    settings = settings_of(SpectrumSettings, own)
    plan = plan_of(None, {o: v for o, v in given.items() if o not in own}, needs=("model", "skills"))
    from palora.bench.spectrum_stage import spectrum as run_spectrum

    result = run_spectrum(plan, settings, out, expert, adapter, protection)
    if as_json:
        print(json_text(result))
        return
    from palora.bench.spectrum_report import spectrum_table

    spectrum_table(result)
    print(printable(f"Page: {out / 'spectrum.html'}"))


_spectrum.__name__ = "spectrum"
_PLAN = ("model", "skills", "known_facts", "text", "dtype", "device", "targets", "seed")
spectrum = command(_spectrum, [*options(Plan, only=_PLAN), *options(SpectrumSettings)])
