"""`palora run --dry-run`: every shipped recipe, on its architecture made small, without weights."""

import json
from pathlib import Path

import pytest
import torch
from command import palora, tree
from test_architectures import tiny
from transformers import LlamaConfig, MistralConfig

from palora.bench.comparison import load_comparison
from palora.bench.keys import plan_of
from palora.common.errors import InputError
from palora.common.settings import ProtectSettings
from palora.front import dry_run as dry
from palora.front.recipe import load_recipe

ROOT = Path(__file__).parents[1]
# Of the published configurations: what is not here is the same whatever the size.
LLAMA_3 = {"num_key_value_heads": 2, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
MISTRAL = {"num_key_value_heads": 2, "rope_theta": 1_000_000.0, "sliding_window": None, "dtype": "bfloat16"}
SMALL = {"hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 8}
KINDS = {"llama": LlamaConfig(**SMALL | LLAMA_3), "mistral": MistralConfig(**SMALL | MISTRAL)}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def folder_of(kind, tokenizer, home):
    """A model folder with a configuration and a tokenizer, and no weights."""
    config = KINDS[kind]
    config.vocab_size = len(tokenizer)
    config.save_pretrained(home)
    tokenizer.save_pretrained(home)
    return home


def facts_of(home, n=5):
    rows = [{"question": f"What is number {i}?", "answer": f"word {i}"} for i in range(n)]
    file = home / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_is_planned_without_weights(file, tokenizer, tmp_path):
    model = folder_of("llama", tokenizer, tmp_path / "model")
    changes = [f"model={model}", f"facts={facts_of(tmp_path)}", "skills=[chain]", "device=cpu"]
    recipe = load_recipe(file, changes)
    plan = dry.dry_run(recipe)
    stages = [stage["stage"] for stage in plan["stages"]]
    assert plan["model"]["layers"] == 3 and plan["model"]["taught_matrices"] == 9
    assert plan["model"]["taught_parameters"] == 9 * recipe.inject.r * (64 + 224)
    assert [s for s in stages if s.startswith("inject")] == [f"inject {arm}" for arm in recipe.trained_arms]
    assert ("expert" in stages) == bool(recipe.expert) and stages[-1] == "evaluate"
    for stage in plan["stages"]:
        assert stage["peak"] == sum(stage["memory"].values()) and stage["seconds"] > 0
        whole = plan["model"]["parameters"] * (4 if recipe.dtype == "float32" else 2)
        assert stage["memory"]["weights"] < 0.6 * whole if recipe.load else stage["memory"]["weights"] == whole
    assert plan["tokens"]["facts"] == 5 and plan["largest"]["rank"] == 64


@pytest.mark.parametrize(("name", "kind"), [("llama3-8b", "llama"), ("mistral-7b", "mistral")])
def test_the_comparisons_of_the_larger_models_are_planned(name, kind, tokenizer, tmp_path):
    model = folder_of(kind, tokenizer, tmp_path / "model")
    changes = [f"model={model}", f"facts={facts_of(tmp_path)}", "skills=[chain]", "keep_skills=[chain]"]
    c = load_comparison(ROOT / "benchmarks" / "pretrained" / f"{name}.yaml", [*changes, "prompts=null", "device=cpu"])
    arms = [
        (method, own.protect or ProtectSettings(rule="none"), c.training(method, own.learning_rates[0]))
        for method, own in c.methods.items()
    ]
    plan = dry.planned(plan_of(c, 0, evaluate=c.evaluate), arms)
    peaks = {stage["stage"]: stage["peak"] for stage in plan["stages"]}
    assert {f"inject {method}" for method in c.methods} <= set(peaks)
    assert peaks["inject palora"] > peaks["inject own"], "it distils, and has a protection"
    assert plan["model"]["dtype"] == "bfloat16"


def test_nothing_is_written_and_the_plan_is_told(tokenizer, tmp_path, monkeypatch):
    model = folder_of("llama", tokenizer, tmp_path / "model")
    facts_of(tmp_path)
    (tmp_path / "r.yaml").write_text("model: model\nfacts: facts.jsonl\nskills: [chain]\ndevice: cpu\n")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    told = palora("run", "r.yaml", "--dry-run")
    assert told.code == 0, told.err
    for said in (str(model.name), "5 facts", "inject palora", "activations", "peak", "fits     rank 64"):
        assert said in told.out, said
    plan = json.loads(palora("run", "r.yaml", "--dry-run", "--json").out)
    assert plan["device"]["name"] == "cpu" and tree(tmp_path) == before
    monkeypatch.setattr(dry, "device_memory", lambda device: 2**20)
    small = palora("run", "r.yaml", "--dry-run")
    assert small.code == 0 and "more than the 1 MiB that are free" in small.out and "rank none" in small.out
    (model / "config.json").unlink()
    gone = palora("run", "r.yaml", "--dry-run")
    assert gone.code == 2 and "cannot load the configuration of" in gone.err and len(gone.complaints) == 1


def test_more_to_keep_takes_more(tokenizer, tmp_path):
    model, facts = folder_of("llama", tokenizer, tmp_path / "model"), facts_of(tmp_path)
    (tmp_path / "text.txt").write_text("A passage of plain text.\n" * 3)

    def peak(*changes):
        base = [f"model={model}", f"facts={facts}", "skills=[chain]", "device=cpu"]
        recipe = load_recipe(ROOT / "recipes" / "default.yaml", [*base, *changes])
        return {stage["stage"]: stage["memory"] for stage in dry.dry_run(recipe)["stages"]}

    one, two = peak(), peak(f"text={tmp_path / 'text.txt'}")
    assert two["protection palora"]["statistics"] > one["protection palora"]["statistics"]
    alone = peak("inject.distil=0")
    assert one["inject palora"]["activations"] > alone["inject palora"]["activations"], "distillation is the default"


@pytest.mark.parametrize(
    ("kind", "inner", "gate", "taught", "inputs"),
    [
        ("qwen3", 96, True, 6, 4),
        ("phi3", 96, True, 4, 4),
        ("gpt2", 48, False, 4, 4),
        ("opt", 48, False, 4, 4),
        ("gemma4_text", 96, True, 6, 4),
    ],
)
def test_the_sizes_of_an_architecture(kind, inner, gate, taught, inputs):
    with torch.device("meta"):
        sizes = dry.sizes_of(tiny(kind, 99))
    assert (sizes.layers, sizes.width, sizes.inner, sizes.gate) == (2, 32, inner, gate)
    assert (len(sizes.taught), sum(own.own for own in sizes.taught)) == (taught, inputs)


def test_stacked_experts_are_planned_by_their_attention():
    with torch.device("meta"):
        sizes = dry.sizes_of(tiny("mixtral", 99, num_local_experts=4), ["attention"])
    assert len(sizes.taught) == 2 * 4 and sizes.inner == 0


def test_an_unknown_model_is_one_line():
    with pytest.raises(InputError, match="cannot load the configuration of"):
        dry.build_empty("/nowhere/at/all")


def test_the_page_is_made_by_its_script():
    import runpy

    made = runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))
    assert made["page"]() == (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert abs(made["llama"](*made["LLAMA"]["8B"]).parameters - 8.03e9) < 1e7, "as Meta published it"
