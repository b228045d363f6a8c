"""Run a recipe: the stages in order, nothing else.

    expert -> protection -> injection (lora, more arms, palora) -> evaluation -> report

A run directory holds `recipe.yaml`, `expert/`, `protection/`, `adapter/`, `arms/<name>/`, `metrics.jsonl`,
`evaluation.json` and `report.html`. Run again with the same recipe, it continues where it was.
"""

from pathlib import Path
from typing import Any

from palora import stages
from palora.errors import InputError
from palora.facts import read_facts
from palora.files import atomic_write_text
from palora.metrics import read_metrics, write_metrics
from palora.recipe import Recipe, dump_recipe
from palora.skills import get_skill


def run(recipe: Recipe, out: str | Path) -> dict[str, Any]:
    """Run every stage of a recipe that is not done yet.

    Args:
        out: the run directory.

    Returns: the content of `evaluation.json`.

    Raises: InputError before any work where the facts, a skill or `out` are wrong; PaloraError where the run fails.
    """
    out = Path(out)
    if out.is_file():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "recipe.yaml").exists():
        raise InputError(f"{out} has other files in it (no recipe.yaml); choose a new or empty folder for --out")
    for file in filter(None, (recipe.facts, recipe.known_facts)):
        read_facts(file)
    for skill in recipe.skills:
        get_skill(skill)
    atomic_write_text(out / "recipe.yaml", dump_recipe(recipe))

    base = stages.Base(recipe.model, recipe.dtype, recipe.device, tuple(recipe.targets) if recipe.targets else None)
    expert = out / "expert"
    stages.train_expert(base, recipe.expert, expert, recipe.skills[0], recipe.seed)

    def protect(arm: str, folder: Path) -> None:
        stages.protect(
            *(base, recipe.arm(arm)[0], folder, expert, recipe.skills),
            *(recipe.known_facts, recipe.text, recipe.facts, recipe.seed),
        )

    protect("palora", out / "protection")
    adapters: dict[str, Path] = {}
    for arm in recipe.trained_arms:
        settings, training = recipe.arm(arm)
        home = out if arm == "palora" else out / "arms" / arm
        control = settings.rule == "none"  # measured against palora's protection
        if arm != "palora" and not control:
            protect(arm, home / "protection")
        protected = out / "protection" if control else home / "protection"
        adapters[arm] = home / "adapter"
        stages.inject(base, training, adapters[arm], recipe.facts, expert, protected, control, recipe.seed, arm)

    rows = [row for folder in (expert, *adapters.values()) for row in read_metrics(folder / "metrics.jsonl")]
    write_metrics(out / "metrics.jsonl", rows)
    return stages.evaluate_arms(
        *(base, recipe.evaluate, out, adapters, recipe.skills),
        *(expert, recipe.facts, recipe.known_facts, recipe.seed),
    )
