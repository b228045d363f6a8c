"""Run a recipe: the stages in order, nothing else.

    expert -> protection -> injection (lora, more arms, palora) -> evaluation -> report

A run directory holds `recipe.yaml`, `expert/`, `protection/`, `adapter/`, `arms/<name>/`, `metrics.jsonl`,
`evaluation.json` and `report.html`. Run again with the same recipe, it continues where it was.
"""

import logging
from pathlib import Path
from typing import Any

from palora.common.errors import InputError
from palora.common.files import atomic_write_text, check_replaceable, check_writable
from palora.common.metrics import read_metrics, write_metrics
from palora.data.facts import read_facts
from palora.data.skills import SPLITS
from palora.front import stages
from palora.front.recipe import Recipe, dump_recipe

log = logging.getLogger("palora")


def run(recipe: Recipe, out: str | Path) -> dict[str, Any]:
    """Run every stage of a recipe that is not done yet.

    Args:
        out: the run directory.

    Returns: the content of `evaluation.json`.

    Raises: InputError before any work where the facts, a skill or `out` are wrong; PaloraError where the run fails.
    """
    out = Path(out)
    base = stages.Base(recipe.model, recipe.dtype, recipe.device, tuple(recipe.targets) if recipe.targets else None)
    _check(recipe, base, out)
    atomic_write_text(out / "recipe.yaml", _HEADER + dump_recipe(recipe))
    expert = out / "expert"
    stages.train_expert(base, recipe.expert, expert, recipe.skills[0], recipe.seed)

    sources = _sources(recipe)

    def protect(arm: str, folder: Path) -> None:
        settings, training = recipe.arm(arm)
        stages.protect(
            base,
            settings,
            folder,
            expert=expert,
            sources=sources if training.drift or arm == "palora" else sources.weighed(settings.keep),
            facts=recipe.facts,
            seed=recipe.seed,
            train_on=training.base,
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
        stages.inject(
            base,
            training,
            adapters[arm],
            recipe.facts,
            expert=expert,
            protected=protected,
            control=control,
            seed=recipe.seed,
            arm=arm,
            sources=sources,
        )

    rows = [row for folder in (expert, *adapters.values()) for row in read_metrics(folder / "metrics.jsonl")]
    write_metrics(out / "metrics.jsonl", rows)
    return stages.evaluate_arms(
        base,
        recipe.evaluate,
        out,
        adapters,
        recipe.skills,
        expert=expert,
        facts=recipe.facts,
        known_facts=recipe.known_facts,
        seed=recipe.seed,
    )


def _sources(recipe: Recipe) -> stages.Sources:
    """What is to be kept."""
    known = recipe.kept_facts or recipe.known_facts
    return stages.Sources(tuple(recipe.skills), known, recipe.text, recipe.prompts)


_HEADER = "# Written by palora: every setting of this run.\n"


def _check(recipe: Recipe, base: stages.Base, out: Path) -> None:
    """What can be told before any work is done. Raises InputError."""
    check_replaceable(out, "recipe.yaml")
    check_writable(out)
    written = out / "recipe.yaml"
    if written.exists() and not written.read_bytes().startswith(_HEADER.encode()):
        raise InputError(f"{written} was not written by palora and would be lost; choose another --out")
    for arm in recipe.trained_arms:
        try:
            stages.check_protection(recipe.arm(arm)[0])
        except InputError as error:
            raise InputError(f"{'protect' if arm == 'palora' else f'arms.{arm}.protect'}: {error}") from None
    base.check()
    for file in filter(None, (recipe.facts, recipe.known_facts, recipe.kept_facts)):
        read_facts(file)
    for file in filter(None, (recipe.text, recipe.prompts)):
        stages.read_lines(file)
    trained, *others = stages.get_skills(recipe.skills)
    for skill in (trained, *others):
        for split in SPLITS if skill is trained else ("train", "test"):
            skill.problems(split, 1, recipe.seed)
    held = _sources(recipe).weighed(recipe.inject.keep)
    if recipe.inject.added and not (held.known_facts or held.text or held.prompts):
        log.warning(
            "only the skill is kept: more of what else the model knows will be lost. Give prompts=FILE (questions of "
            "the new facts' kind, but not among them; no answers needed) or known_facts=FILE"
        )
