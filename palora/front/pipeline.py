"""Run a recipe: the stages in order, nothing else.

    [expert ->] words -> protection -> injection (lora, more arms, palora) -> evaluation -> report

A run directory holds `recipe.yaml`, what the model itself wrote (`teach.jsonl`, …; see `words.py`), `protection/`,
`adapter/`, `arms/<name>/`, `metrics.jsonl`, `evaluation.json` and `report.html`, and `expert/` where the recipe asks
for one. Then the facts are taught on the expert (`expert/model`), all trained arms are under `arms/`, and `adapter/` is
expert and facts together, for the model that the recipe names. Run again with the same recipe, a run continues.
"""

import logging
from pathlib import Path
from typing import Any

from palora.algebra.rules import EXPERT_RULES
from palora.common.errors import InputError
from palora.common.files import atomic_write_text, read_json
from palora.common.folders import alone, check_replaceable, check_writable
from palora.common.metrics import read_metrics, write_metrics
from palora.common.progress import Counted, waiting
from palora.common.threads import say_threads
from palora.data.facts import read_facts
from palora.data.skills import SPLITS
from palora.front import stages
from palora.front.recipe import Plan, Recipe, dump_recipe
from palora.front.words import wanted, write_words
from palora.language.models import check_source, chosen_device, load_tokenizer
from palora.language.prompts import check_facts, set_chat
from palora.language.words import same_words, taught_by
from palora.results.export import combine_if_it_fits
from palora.results.harness import check_harness
from palora.results.inspection import learned
from palora.results.model_card import model_card
from palora.results.updates import MARKER as ADAPTER
from palora.results.updates import read_record
from palora.training.protection import check_protection
from palora.training.reporting import loggers
from palora.training.svf import MODEL

log = logging.getLogger("palora")


def run(recipe: Recipe, out: str | Path) -> dict[str, Any]:
    """Run every stage of a recipe that is not done yet.

    Args:
        recipe: what is asked for.
        out: the run directory. Where it holds a part of the same run, that part is not done again.

    Returns:
        The content of `evaluation.json`: what was measured of every arm, under `arms`.

    Raises:
        InputError: the facts, a skill or `out` are wrong. It comes before any work.
        PaloraError: the run fails (a full disk, a loss that is no longer a number).
    """
    out = Path(out)
    say_threads(chosen_device(recipe.device))
    with waiting("Looking through the recipe and its files"):
        check(recipe, out)
    with alone(out):
        return _run(recipe, out)


def _run(recipe: Recipe, out: Path) -> dict[str, Any]:
    atomic_write_text(out / "recipe.yaml", _HEADER + dump_recipe(recipe))
    models = stages.Models()
    expert = out / "expert" if recipe.expert else None
    taught: Plan = recipe
    want = wanted(recipe)
    stage = Counted(bool(expert) + want.anything + 1 + len(recipe.trained_arms) + 1)
    if expert:
        stage.begins(f"train the expert of {recipe.skills[0]}")
        stages.train_expert(recipe, expert, models)
        taught = recipe.model_copy(update={"model": str(expert / MODEL)})

    if want.anything:
        stage.begins("the model writes what it is taught and asked (own words, questions, known facts)")
    taught = write_words(taught, out, models, want)
    recipe = recipe.model_copy(update={"known_facts": taught.known_facts})
    taught = taught.model_copy(update={"known_facts": None})  # they are measured, and never kept

    def arm(name: str) -> Plan:
        rule, training = recipe.arm(name)
        facts = taught.facts if same_words(training, recipe.inject) else recipe.facts
        return taught.model_copy(update={"protect": rule, "inject": training, "facts": facts})

    def protect(name: str, folder: Path) -> None:
        plan = arm(name)
        plan = plan if plan.inject.drift or name == "palora" else stages.for_rule(plan)
        stages.protect(plan, folder, expert if plan.protect.rule in EXPERT_RULES else None, models)

    stage.begins("find what is to be protected, from what the model reads")
    protect("palora", out / "protection")
    adapters: dict[str, Path] = {}
    for name in recipe.trained_arms:
        stage.begins(f"teach the facts ({name})")
        home = out if name == "palora" and not expert else out / "arms" / name
        control = arm(name).protect.rule == "none"  # measured against palora's protection
        protected = out / "protection"
        if name != "palora" and not control:
            protected = home / "protection"
            protect(name, protected)
        adapters[name] = home / "adapter"
        stages.inject(arm(name), adapters[name], protected, control and name != "palora", name, models)
        log.info("%s learned: %s", name, learned(read_record(adapters[name])))

    files = [folder / "metrics.jsonl" for folder in (expert, *adapters.values()) if folder]
    write_metrics(out / "metrics.jsonl", [row for file in files for row in read_metrics(file)])
    stage.begins("ask every arm the same questions")
    result = stages.evaluate_arms(recipe, out, adapters, expert, models)
    if expert:
        models.drop()
        with waiting("Joining expert and facts in one adapter"):
            combine_if_it_fits(adapters["palora"], out / "adapter", expert)
    for folder in {*adapters.values(), out / "adapter"}:
        if (folder / ADAPTER).exists():  # the card, now that it is known what was learned and lost
            atomic_write_text(folder / "README.md", model_card(read_record(folder), result))
    return result


def how_to_use(out: Path) -> str:
    """The last line of a run: where the result is, what it goes on, and how it is loaded."""
    adapter = out / "adapter"
    if (adapter / ADAPTER).exists():
        model = read_json(adapter / ADAPTER, "model")["model"]
        return f'Use it: PeftModel.from_pretrained(model, "{adapter}") with model {model}; no palora needed'
    pair = out / "arms" / "palora" / "adapter", out / "expert" / MODEL
    return f'Use it: PeftModel.from_pretrained(model, "{pair[0]}") with the expert {pair[1]} as the model, and no other'


_HEADER = "# Written by palora: every setting of this run.\n"


def check(recipe: Recipe, out: Path) -> None:
    """What can be told before any work is done. Raises InputError."""
    check_replaceable(out, "recipe.yaml")
    check_writable(out)
    written = out / "recipe.yaml"
    if written.exists() and not written.read_bytes().startswith(_HEADER.encode()):
        raise InputError(f"{written} was not written by palora and would be lost; choose another --out")
    for arm in recipe.trained_arms:
        where, rule = "protect" if arm == "palora" else f"arms.{arm}.protect", recipe.arm(arm)[0]
        try:
            check_protection(rule)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if rule.rule in EXPERT_RULES and recipe.expert is None:
            raise InputError(
                f"{where}: the rule {rule.rule} reads an expert's scales: give the recipe an `expert:` section"
            )
    check_harness(recipe.evaluate)
    if recipe.expert:
        stages.check_expert(recipe)
    check_source(recipe.model, recipe.dtype, recipe.device)
    tokenizer = load_tokenizer(recipe.model)
    set_chat(tokenizer, recipe.chat_template_kwargs, recipe.system_message)
    chat = bool(tokenizer.chat_template)
    for arm in recipe.trained_arms:
        taught_by(recipe.arm(arm)[1], chat)
        loggers(recipe.arm(arm)[1].report_to)
    for given in (recipe.facts, recipe.known_facts, recipe.kept_facts):
        if given is not None:
            check_facts(tokenizer, read_facts(given))
    for file in filter(None, (recipe.text, recipe.prompts)):
        stages.read_lines(file)
    trained, *others = stages.get_skills(recipe.skills)
    for skill in (trained, *others):
        for split in SPLITS if skill is trained and recipe.expert else ("train", "test"):
            skill.problems(split, 1, recipe.seed)
    held = [kind for kind in ("known_facts", "text", "prompts") if getattr(recipe.inject.keep, kind)]
    files = {**recipe.model_dump(include={"text", "prompts"}), "known_facts": recipe.kept_facts or recipe.known_facts}
    by_itself = wanted(recipe)
    if recipe.inject.added and not by_itself.prompts and not any(files[kind] for kind in held):
        log.warning(
            "only the skill is kept: more of what else the model knows will be lost. Give prompts=FILE (questions of "
            "the new facts' kind, but not among them; no answers needed) or known_facts=FILE"
        )
