"""A small, fixed part of the bench: the shipped model, 60 new facts, plain LoRA and the default side by side. It fails
when the default stops protecting. About a minute on one core."""

import pytest

from palora.common.settings import PLAIN
from palora.data.facts import read_facts
from palora.data.skills import get_skill
from palora.front.stages import load_keep
from palora.language.models import load_model
from palora.results.evaluation import Questions, measure
from palora.testbed import demo_recipe
from palora.training.injection import Beside, inject
from palora.training.protection import protect

RECIPE = demo_recipe()
FACTS = 60


def learn(work, **changes):
    """Teach the first facts until 95% of them are recalled. Returns what the model did before, and does then."""
    model, tokenizer = load_model(RECIPE.model)
    chain = get_skill("chain")
    facts, known = read_facts(RECIPE.facts)[:FACTS], read_facts(RECIPE.known_facts)
    questions = Questions({"chain": (chain, chain.problems("test", 200, 0))}, facts, known)
    settings = RECIPE.inject.model_copy(update={"stop_at_recall": 0.95, "recall_every": 2} | changes)
    before = measure(model, tokenizer, questions, RECIPE.evaluate, "before")
    keep = load_keep(RECIPE.model_copy(update={"skills": ["chain"]}), RECIPE.protect.keep.examples)
    protection = protect(model, tokenizer, RECIPE.protect, keep)
    constraint = protection if settings.drift else None  # the control has neither
    beside = Beside(statistics=protection.statistics)
    tuned, _ = inject(model, tokenizer, facts, settings, work, constraint, beside)
    return before, measure(tuned, tokenizer, questions, RECIPE.evaluate, "after")


@pytest.mark.slow
def test_the_default_protects_where_plain_lora_forgets(tmp_path):
    before, palora = learn(tmp_path / "palora")
    _, lora = learn(tmp_path / "lora", **PLAIN, learning_rate=RECIPE.arm("lora")[1].learning_rate)
    kept = {name: arm["skills"]["chain"]["accuracy"] for name, arm in (("before", before), ("palora", palora))}
    assert before["locality"] == 1.0 and palora["recall"] >= 0.95 and lora["recall"] >= 0.95
    assert kept["palora"] >= 0.97 * kept["before"]
    assert palora["locality"] >= 0.93, "known facts that no method saw"
    assert palora["locality"] >= lora["locality"] + 0.08, "the same facts, learned as well"
