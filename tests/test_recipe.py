"""The one configuration: shipped recipes load, overrides work, mistakes are named."""

import re
from pathlib import Path

import pytest
import yaml

from palora.algebra.rules import Budget
from palora.common.errors import InputError
from palora.common.settings import ExpertSettings
from palora.front.options import options, plan_of
from palora.front.recipe import Plan, Recipe, dump_recipe, load_recipe, parse_recipe
from palora.testbed import demo_recipe
from palora.training.protection import check_protection

MODEL = next(options(Plan, only=["model"]))
ROOT = Path(__file__).parents[1]
MINIMAL = {"model": "m", "skills": ["chain"], "facts": "f.jsonl"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_goes_together(path):
    recipe = load_recipe(path)
    for arm in recipe.trained_arms:
        check_protection(recipe.arm(arm)[0])
    assert load_recipe_text(dump_recipe(recipe)) == recipe


def load_recipe_text(text):
    return parse_recipe(yaml.safe_load(text))


def test_the_default_recipe_names_every_key():
    """A key that is added to the schema must be documented there."""
    shown = yaml.safe_load((ROOT / "recipes" / "default.yaml").read_text())
    assert set(shown) == set(Recipe.model_fields)
    for section in ("protect", "inject", "evaluate"):
        assert set(shown[section]) == set(Recipe.model_fields[section].annotation.model_fields), section
    assert shown["expert"] is None, "an expert only where it is asked for; the paper's recipe shows its keys"
    paper = yaml.safe_load((ROOT / "recipes" / "paper.yaml").read_text())
    assert set(paper["expert"]) == set(ExpertSettings.model_fields)


def test_the_recommended_defaults_are_the_same_everywhere():
    """In the schema, so in the commands, and in the default recipe."""
    shown, bare = load_recipe(ROOT / "recipes" / "default.yaml"), parse_recipe(MINIMAL)
    for section in ("expert", "protect", "inject", "evaluate"):
        assert getattr(shown, section) == getattr(bare, section), section
    preset = plan_of(None, {MODEL: "m"}, "paper")
    paper = load_recipe(ROOT / "recipes" / "paper.yaml")
    for section in ("expert", "protect", "inject"):
        assert getattr(preset, section) == getattr(paper, section), section


def test_the_default_recipe_takes_another_rule():
    def changed(*overrides):
        protect = load_recipe(ROOT / "recipes" / "default.yaml", list(overrides)).protect
        return protect.rule, *check_protection(protect)

    assert changed() == ("covariance", Budget(strength=1), "input")
    assert changed("protect.rule=none") == ("none", Budget(), "both")
    assert changed("protect.rule=svf", "protect.k=64") == ("svf", Budget(k=64), "both")


def test_the_paper_recipe_is_the_published_one():
    recipe = load_recipe(ROOT / "recipes" / "paper.yaml")
    expert, protect, inject = recipe.expert, recipe.protect, recipe.inject
    assert (expert.learning_rate, expert.max_grad_norm, expert.batch_size, expert.iterations) == (2e-3, 1e-3, 256, 200)
    assert (expert.objective, expert.temperature, expert.baseline) == ("reward", 0.0, False)
    assert (protect.rule, protect.k) == ("svf", 64)
    assert (inject.learning_rate, inject.weight_decay, inject.epochs, inject.batch_size) == (2e-4, 0.01, 10, 8)
    assert (inject.r, inject.lora_alpha, inject.lora_dropout) == (16, 32, 0.05)


def test_demo_recipe_points_at_what_is_shipped():
    recipe = demo_recipe(seed=3)
    assert recipe.seed == 3 and "svf" in recipe.arms
    for file in (recipe.facts, recipe.known_facts, recipe.kept_facts, recipe.prompts):
        assert Path(file).exists()
    assert (Path(recipe.model) / "model.safetensors").stat().st_size <= 8 * 2**20


def test_an_arm_changes_one_weight_of_what_is_kept():
    arms = {"other": {"inject": {"drift": 1, "keep": {"prompts": 0}}}}
    recipe = parse_recipe(MINIMAL | {"inject": {"keep": {"known_facts": 0}}, "arms": arms})
    assert recipe.inject.keep.weights == {"skills": 1, "known_facts": 0, "text": 1, "prompts": 1}
    assert recipe.arm("other")[1].keep.weights == {"skills": 1, "known_facts": 0, "text": 1, "prompts": 0}


def test_overrides(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(MINIMAL))
    recipe = load_recipe(
        tmp_path / "r.yaml",
        ["inject.r=8", "inject.learning_rate=1e-3", "arms.svf.protect.rule=svf", "arms.svf.protect.k=4"],
    )
    assert recipe.inject.r == 8 and recipe.inject.learning_rate == 1e-3
    assert recipe.arm("svf")[0].k == 4 and recipe.arm("svf")[1].r == 8
    assert recipe.trained_arms == ["lora", "svf", "palora"]


def test_other_arms_have_nothing_in_the_loss_unless_they_say_so():
    inject = {"drift": 100, "distil": 1, "lose_at_most": 0.1, "r": 4}
    arms = {"more": {"protect": {"rule": "sigma", "k": 2}, "inject": {"drift": 3}}}
    recipe = parse_recipe(MINIMAL | {"inject": inject, "arms": arms})
    assert recipe.inject.added == {"drift": 100, "distil": 1} and recipe.inject.rehearses
    for arm, added in (("lora", {}), ("more", {"drift": 3})):
        settings = recipe.arm(arm)[1]
        assert settings.added == added and settings.lose_at_most is None and settings.r == 4


def test_files_beside_the_recipe_are_found(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(MINIMAL))
    (tmp_path / "f.jsonl").write_text("")
    assert load_recipe(tmp_path / "r.yaml").facts == str(tmp_path / "f.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inject": {"rank": 8}}, r"inject\.rank: no such key"),
        ({"inject": {"r": 0}}, r"inject\.r: .*greater than or equal to 1"),
        ({"expert": {"objective": "rl"}}, r"expert\.objective: .*'reward' or 'next_token'"),
        ({"skills": []}, "skills: .*at least 1"),
        ({"facts": None}, "facts: "),
        ({"arms": {"palora": {}}}, "arms.palora is always there"),
        ({"arms": {"x": {"inject": {"rank": 1}}}}, r"rank"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_recipe(MINIMAL | change)
    assert "\n" not in str(caught.value)


def test_a_recipe_extends_another(tmp_path):
    """Mappings are merged, everything else is replaced, and paths are beside the file that names them."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "f.jsonl").touch()
    (tmp_path / "base" / "first.yaml").write_text(yaml.safe_dump(MINIMAL | {"inject": {"r": 4, "epochs": 3}}))
    (tmp_path / "second.yaml").write_text("extends: base/first.yaml\nskills: [minmax]\ninject: {epochs: 7}\n")
    (tmp_path / "third.yaml").write_text("extends: second.yaml\nseed: 5\n")
    recipe = load_recipe(tmp_path / "third.yaml", ["inject.r=2"])
    assert (recipe.model, recipe.skills, recipe.seed) == ("m", ["minmax"], 5)
    assert (recipe.inject.r, recipe.inject.epochs) == (2, 7)
    assert Path(recipe.facts).samefile(tmp_path / "base" / "f.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: self.yaml", "extends itself"),
        ("extends: gone.yaml", "gone.yaml: no such recipe"),
        ("extends: [a, b]", "must be the path of a recipe"),
    ],
)
def test_what_cannot_be_extended(tmp_path, text, message):
    (tmp_path / "self.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "self.yaml")


# Facts with columns of their own, and several files


def test_facts_name_their_columns(tmp_path):
    (tmp_path / "f.csv").write_text("Frage;Antwort\nWer?;Ada\n")
    (tmp_path / "t.yaml").write_text("{}")
    (tmp_path / "r.yaml").write_text(
        "model: m\nskills: [chain]\nfacts: {file: f.csv, question: Frage, answer: Antwort, templates: t.yaml}\n"
        "kept_facts: [f.csv, {file: f.csv, answer: Antwort}, other.jsonl]\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    here = str(tmp_path / "f.csv")
    templates = str(tmp_path / "t.yaml")
    assert recipe.facts == {"file": here, "templates": templates, "question": "Frage", "answer": "Antwort"}
    assert recipe.kept_facts == [here, {"file": here, "answer": "Antwort"}, "other.jsonl"]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    plain = load_recipe(tmp_path / "r.yaml", ["facts=f.csv", "facts.question=Frage"])
    assert plain.facts == {"file": "f.csv", "question": "Frage"}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"question": "Frage"}, "facts: name the file of these columns"),
        ({"file": "f.csv", "frage": "Frage"}, "facts: there is no 'frage'; there are file, templates, question"),
        ({"file": "f.csv", "question": 1}, "facts: question must be a name, not 1"),
        ([], "facts: name at least one file"),
        (5, "facts: 5 names no facts; write a path, or"),
        (None, "facts: is missing"),
    ],
)
def test_facts_that_name_nothing(facts, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse_recipe(MINIMAL | {"facts": facts})


def test_a_skill_with_its_scorer_is_taken_from_beside_the_recipe(tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}")
    (tmp_path / "r.yaml").write_text("model: m\nskills: ['mine.jsonl#number', chain]\nfacts: f.jsonl\n")
    assert load_recipe(tmp_path / "r.yaml").skills == [f"{tmp_path / 'mine.jsonl'}#number", "chain"]
