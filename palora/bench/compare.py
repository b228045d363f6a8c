"""`palora compare`: methods side by side, fairly.

    experts (one a seed) ─> protections (one a method and seed) ─> cells ─> scaled cells ─> compare.json, .md, .html

A *cell* is one method on one fact load at one learning rate with one seed. Every method has its own sweep of learning
rates; all share expert, facts, batches and budget, and are compared at matched recall: at the moments when recall first
passes each milestone, within one training. The rate of a method is chosen on validation problems, what is reported is
measured on test problems. Stopped anywhere and started again with the same command, a comparison continues.
"""

import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from palora.bench.cells import (
    Cell,
    base_of,
    cell_file,
    is_done,
    prepare_expert,
    prepare_probe,
    prepare_protection,
    prepare_statistics,
    probe_folder,
    reference_key,
    run_reference,
    run_scaled,
    run_training,
    scaled_key,
    shared_inputs,
    training_key,
)
from palora.bench.compare_report import write_pages
from palora.bench.comparison import Comparison
from palora.bench.summary import choose_rates, summarise
from palora.bench.workers import Job, Workers
from palora.common.errors import InputError
from palora.common.files import atomic_write_text, check_replaceable, check_writable, read_json, write_json
from palora.common.versions import versions
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.front import stages

log = logging.getLogger("palora")


def compare(c: Comparison, out: str | Path, workers: int = 1) -> dict[str, Any]:
    """Run every cell that is not done yet, and write `compare.json`, `compare.md` and `compare.html`.

    Args:
        workers: processes at work at once, with one thread each. The numbers do not depend on it.

    Returns: the content of `compare.json`.

    Raises: InputError before any work where recipe and files do not go together; PaloraError where a cell fails.
    """
    out = Path(out)
    check(c, out)
    atomic_write_text(out / "comparison.yaml", yaml.safe_dump(c.model_dump(mode="json"), sort_keys=False))
    shared = shared_inputs(c)
    references = {seed: reference_key(c, shared, seed) for seed in c.seeds}
    keys = {cell: training_key(c, shared, cell) for cell in plan(c)}

    def undone(cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if not is_done(c, out, cell, keys[cell])]

    def found(cells: Sequence[Cell]) -> list[dict[str, Any]]:
        return [_run(out, cell, keys[cell]) for cell in cells]

    sweep = [cell for cell in keys if cell.seed in c.swept or len(c.methods[cell.method].learning_rates) == 1]
    after = len({(cell.method, cell.load) for cell in keys if cell not in sweep}) * (len(c.seeds) - len(c.swept))
    log.info("%d of %d cells are done", len(keys) - len(undone([*keys])), len(sweep) + after)

    with Workers(workers) as crew:

        def train(cells: Sequence[Cell], unmeasured: Sequence[int] = ()) -> None:
            """What the cells need that is not there, then the cells."""
            missing = undone(cells)
            seeds = sorted({*unmeasured, *(cell.seed for cell in missing)})
            crew.run([Job(f"expert, seed {s}", prepare_expert, (c, out, s)) for s in seeds])
            probes = {
                folder: (cell.method, cell.seed)
                for cell in missing
                if (folder := probe_folder(c, out, cell.method, cell.seed))
            }
            crew.run([Job(f"probe of {m}, seed {s}", prepare_probe, (c, out, m, s)) for m, s in probes.values()])
            bases = sorted({(c.base(cell.method), cell.seed) for cell in missing})
            crew.run([Job(f"statistics, seed {s}", prepare_statistics, (c, out, base, s)) for base, s in bases])
            ruled = sorted({(cell.method, cell.seed) for cell in missing if c.methods[cell.method].rule != "none"})
            crew.run([Job(f"protection {m}, seed {s}", prepare_protection, (c, out, m, s)) for m, s in ruled])
            jobs = [Job(f"base and expert, seed {s}", run_reference, (c, out, references[s], s)) for s in unmeasured]
            crew.run([*(Job(str(cell), run_training, (c, out, keys[cell], cell)) for cell in missing), *jobs])

        train(sweep, [seed for seed in c.seeds if not cell_file(out, references[seed]).exists()])
        measured = [read_json(cell_file(out, key)) for key in references.values()]
        chosen = choose_rates(c, found(sweep), measured)
        rest = [
            cell for cell in keys if cell not in sweep and cell.learning_rate == chosen[str(cell.load)][cell.method]
        ]
        train(rest)
        runs = found([*sweep, *rest])
        scaled = plan_scaled(c, runs, chosen)
        missing = [s for s in scaled if not cell_file(out, s.key).exists()]
        crew.run([Job(f"{s.cell}, scaled", run_scaled, (c, out, s.key, s.cell, s.source, s.norms)) for s in missing])
    runs += [_run(out, s.cell, s.key) for s in scaled]
    result = summarise(c, runs, measured, chosen)
    machines = " and ".join(sorted({cell["machine"] for cell in (*runs, *measured)}))
    result |= {"comparison": c.model_dump(mode="json"), "versions": versions(), "machine": machines}
    write_json(out / "compare.json", result)
    write_pages(result, out)
    return result


def plan(c: Comparison) -> list[Cell]:
    """Every training of a comparison, seed by seed. Of the seeds that are not swept only the chosen rates are run."""
    return [
        Cell(name, load, rate, seed)
        for seed in c.seeds
        for load in c.loads
        for name, method in c.methods.items()
        for rate in method.learning_rates
    ]


class ScaledCell(NamedTuple):
    """The best run of one method (`source`, a key), at the norms of the best run of another, by milestone."""

    key: str
    cell: Cell
    source: str
    norms: dict[str, float]


def plan_scaled(c: Comparison, runs: Sequence[dict[str, Any]], chosen: dict[str, dict[str, float]]) -> list[ScaledCell]:
    """The scaled cells of a comparison, at every milestone that both runs have passed."""
    best = {
        (run["method"], run["load"], run["seed"]): run
        for run in runs
        if run["learning_rate"] == chosen[str(run["load"])][run["method"]]
    }
    found = []
    for name, method in c.methods.items():
        for load, seed in product(c.loads, c.seeds) if method.scaled else ():
            of, to = (best[m, load, seed] for m in (method.scaled.of, method.scaled.to))  # type: ignore[union-attr]
            norms = {m: moment["norm"] for m, moment in to["moments"].items() if m in of["moments"]}
            cell = Cell(name, load, of["learning_rate"], seed)
            found.append(ScaledCell(scaled_key(of["key"], norms), cell, of["key"], norms))
    return found


def check(c: Comparison, out: Path) -> None:
    """What can be told before any work is done. Raises InputError."""
    check_replaceable(out, "comparison.yaml")
    check_writable(out)
    base_of(c).check()
    for name, method in c.methods.items():
        if method.protect:
            try:
                stages.check_protection(method.protect)
            except InputError as error:
                raise InputError(f"methods.{name}.protect: {error}") from None
    facts = len(read_facts(c.facts))
    if facts < max(c.loads):
        raise InputError(f"{c.facts} holds {facts} facts, and a load is {max(c.loads)}; lower it, or give more facts")
    known = read_facts(c.known_facts) if c.known_facts else []
    kept = read_facts(c.kept_facts) if c.kept_facts else []
    if shared_facts := {fact.question for fact in known} & {fact.question for fact in kept}:
        raise InputError(
            f"{c.kept_facts} and {c.known_facts} share {sorted(shared_facts)[0]!r}: a kept fact proves nothing"
        )
    for file in filter(None, (c.text, c.prompts)):
        stages.read_lines(file)
    for skill in stages.get_skills(c.skills):
        skill.problems("test", 1, c.seeds[0])
    probed = {c.probed(name)[0] for name, method in c.methods.items() if method.probe}
    for skill in (*stages.get_skills(c.keep_skills), *map(get_skill, sorted(probed))):
        for split in ("train", "validation"):
            skill.problems(split, 1, c.seeds[0])


def _run(out: Path, cell: Cell, key: str) -> dict[str, Any]:
    return {**vars(cell), "key": key, **read_json(cell_file(out, key), "moments")}
