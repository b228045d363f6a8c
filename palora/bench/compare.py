"""`palora compare`: methods side by side, fairly.

    experts (one a seed) ─> protections (one a method and seed) ─> cells ─> scaled cells ─> compare.json, .md, .html

A *cell* is one method on one fact load at one learning rate with one seed. Every method has its own sweep of learning
rates; all share expert, facts, batches and budget, and are compared at matched recall: at the moments when recall first
passes each milestone, within one training. The rate of a method is chosen on validation problems, what is reported is
measured on test problems. Stopped anywhere and started again with the same command, a comparison continues.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from palora.bench.cells import cell_file, is_done, run_reference, run_scaled, run_training
from palora.bench.compare_report import write_pages
from palora.bench.comparison import BY_MODEL, Comparison
from palora.bench.keys import Cell, reference_key, scaled_key, shared_inputs, training_key
from palora.bench.prepared import (
    prepare_expert,
    prepare_probe,
    prepare_prompts,
    prepare_protection,
    prepare_statistics,
    prepare_words,
    probe_folder,
    prompts_file,
    words_folder,
)
from palora.bench.summary import choose_rates, summarise
from palora.bench.workers import Job, Workers
from palora.common.errors import InputError
from palora.common.files import atomic_write_text, read_json, write_json
from palora.common.folders import alone, check_replaceable, check_writable
from palora.common.plain_yaml import dump_yaml
from palora.common.versions import versions
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.front import stages
from palora.language.models import check_source, has_chat_template
from palora.training.protection import check_protection

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
    with alone(out):
        return _compare(c, out, workers)


def _compare(c: Comparison, out: Path, workers: int) -> dict[str, Any]:
    recipe = c
    atomic_write_text(out / "comparison.yaml", dump_yaml(c.model_dump(mode="json")))
    with Workers(workers) as crew:
        if c.prompts == BY_MODEL:
            crew.run([Job("prompts", prepare_prompts, (c, out))])
            c = c.model_copy(update={"prompts": prompts_file(out)})
        grid = Grid(c, out, crew)
        sweep, later = grid.sweep()
        grid.train(sweep, [seed for seed in c.seeds if not cell_file(out, grid.references[seed]).exists()])
        measured = [read_json(cell_file(out, key)) for key in grid.references.values()]
        chosen = choose_rates(c, grid.found(sweep), measured)
        rest = [cell for cell in later if cell.learning_rate == chosen[str(cell.load)][cell.method]]
        grid.train(rest)
        runs = grid.found([*sweep, *rest])
        runs += grid.scale(plan_scaled(c, runs, chosen))
    result = summarise(c, runs, measured, chosen)
    machines = " and ".join(sorted({cell["machine"] for cell in (*runs, *measured)}))
    result |= {"comparison": recipe.model_dump(mode="json"), "versions": versions(), "machine": machines}
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


class Grid:
    """The cells of a comparison in its folder, and the crew that works on them: what is done is not done again."""

    def __init__(self, c: Comparison, out: Path, crew: Workers) -> None:
        self.c, self.out, self.crew = c, out, crew
        shared = shared_inputs(c)
        self.references = {seed: reference_key(shared, seed) for seed in c.seeds}
        self.keys = {cell: training_key(c, shared, cell) for cell in plan(c)}

    def sweep(self) -> tuple[list[Cell], list[Cell]]:
        """The cells that are trained in any case, and those of which only the chosen rates will be."""
        c = self.c
        first = [cell for cell in self.keys if cell.seed in c.swept or len(c.methods[cell.method].learning_rates) == 1]
        later = [cell for cell in self.keys if cell not in first]
        chosen = len({(cell.method, cell.load) for cell in later}) * (len(c.seeds) - len(c.swept))
        done = len(self.keys) - len(self._undone([*self.keys]))
        log.info("%d of %d cells are done", done, len(first) + chosen)
        return first, later

    def train(self, cells: Sequence[Cell], unmeasured: Sequence[int] = ()) -> None:
        """What the cells need that is not there, then the cells.

        Args:
            unmeasured: the seeds whose base and expert are to be measured.
        """
        missing = self._undone(cells)
        self._prepare(missing, sorted({*unmeasured, *(cell.seed for cell in missing)}))
        jobs = [self._job(str(cell), run_training, self.keys[cell], cell) for cell in missing]
        references = [self._job(f"base and expert, seed {s}", run_reference, self.references[s], s) for s in unmeasured]
        self.crew.run([*jobs, *references])

    def _prepare(self, cells: Sequence[Cell], seeds: Sequence[int]) -> None:
        """Experts, probes, statistics and protections of the cells: each kind needs those before it."""
        c, out = self.c, self.out
        self.crew.run([self._job(f"expert, seed {s}", prepare_expert, s) for s in seeds if c.expert])
        spoken = {words_folder(c, out, cell.method): cell.method for cell in cells}
        spoken.pop(None, None)
        self.crew.run([self._job(f"own words of {m}", prepare_words, m) for m in spoken.values()])
        probes = {probe_folder(c, out, cell.method, cell.seed): (cell.method, cell.seed) for cell in cells}
        probes.pop(None, None)
        self.crew.run([self._job(f"probe of {m}, seed {s}", prepare_probe, m, s) for m, s in probes.values()])
        bases = sorted({(c.base(cell.method), cell.seed) for cell in cells})
        self.crew.run([self._job(f"statistics, seed {s}", prepare_statistics, base, s) for base, s in bases])
        ruled = sorted({(cell.method, cell.seed) for cell in cells if c.methods[cell.method].rule != "none"})
        self.crew.run([self._job(f"protection {m}, seed {s}", prepare_protection, m, s) for m, s in ruled])

    def scale(self, cells: Sequence[ScaledCell]) -> list[dict[str, Any]]:
        """The scaled cells, and what came of them."""
        missing = [s for s in cells if not cell_file(self.out, s.key).exists()]
        self.crew.run([self._job(f"{s.cell}, scaled", run_scaled, s.key, s.cell, s.source, s.norms) for s in missing])
        return [self._run(s.cell, s.key) for s in cells]

    def found(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """What came of the cells."""
        return [self._run(cell, self.keys[cell]) for cell in cells]

    def _undone(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if not is_done(self.c, self.out, cell, self.keys[cell])]

    def _run(self, cell: Cell, key: str) -> dict[str, Any]:
        return {**vars(cell), "key": key, **read_json(cell_file(self.out, key), "moments")}

    def _job(self, label: str, work: Callable[..., str | None], *arguments: Any) -> Job:
        return Job(label, work, (self.c, self.out, *arguments))


def check(c: Comparison, out: Path) -> None:
    """What can be told before any work is done. Raises InputError."""
    check_replaceable(out, "comparison.yaml")
    check_writable(out)
    check_source(c.model, c.dtype, c.device)
    for name, method in c.methods.items():
        if method.protect:
            try:
                check_protection(method.protect)
            except InputError as error:
                raise InputError(f"methods.{name}.protect: {error}") from None
    _check_facts(c)
    for file in filter(None, (c.text, None if c.prompts == BY_MODEL else c.prompts)):
        stages.read_lines(file)
    if not has_chat_template(c.model):
        for wanted, what in ((c.prompts == BY_MODEL, "prompts: model"), *((c.words(m), m) for m in c.methods)):
            if wanted:
                raise InputError(f"{what}: {c.model} has no chat template; use targets_by: bare, and a file of prompts")
    for skill in stages.get_skills(c.skills):
        skill.problems("test", 1, c.seeds[0])
    probed = {c.probed(name)[0] for name, method in c.methods.items() if method.probe}
    for skill in (*stages.get_skills(c.keep_skills), *map(get_skill, sorted(probed))):
        for split in ("train", "validation"):
            skill.problems(split, 1, c.seeds[0])


def _check_facts(c: Comparison) -> None:
    facts = len(read_facts(c.facts))
    if facts < max(c.loads):
        raise InputError(f"{c.facts} holds {facts} facts, and a load is {max(c.loads)}; lower it, or give more facts")
    known = read_facts(c.known_facts) if c.known_facts else []
    kept = read_facts(c.kept_facts) if c.kept_facts else []
    if both := {fact.question for fact in known} & {fact.question for fact in kept}:
        raise InputError(f"{c.kept_facts} and {c.known_facts} share {sorted(both)[0]!r}: a kept fact proves nothing")
