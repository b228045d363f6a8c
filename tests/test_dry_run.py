"""`palora run --dry-run`: every shipped recipe, on its architecture made small, without weights."""

import json
from pathlib import Path

import pytest
import torch
from command import palora, tree
from test_architectures import tiny

from palora.bench.comparison import load_comparison
from palora.bench.keys import plan_of
from palora.common.errors import InputError
from palora.common.settings import ProtectSettings
from palora.front import dry_run as dry
from palora.front.recipe import load_recipe

ROOT = Path(__file__).parents[1]
# As published, in the names of their config.json; and what makes each of them small.
WIDE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
WIDE |= {"num_key_value_heads": 8, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
PUBLISHED = {
    "llama": WIDE
    | {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
    | {"rope_theta": 500000.0, "rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 8192}}
    | {"attention_bias": False, "mlp_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]},
    "mistral": WIDE
    | {"model_type": "mistral", "vocab_size": 32768, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
    | {"rope_theta": 1000000.0, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2},
    "qwen3": WIDE
    | {"model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6}
    | {"rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False}
    | {"intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128, "max_window_layers": 36}
    | {"attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645},
}
PARAMETERS = {"llama": 8_030_261_248, "mistral": 7_248_023_552, "qwen3": 8_190_735_360}  # as their pages say
SMALL = {"hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 8}
SMALL |= {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 1}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def folder_of(kind, tokenizer, home, whole=False):
    """A model folder with a configuration (small, or as published) and a tokenizer, and no weights."""
    home.mkdir(exist_ok=True)
    small = {} if whole else SMALL | {"vocab_size": len(tokenizer)} | ({"head_dim": 8} if kind == "qwen3" else {})
    tokenizer.save_pretrained(home)
    (home / "config.json").write_text(json.dumps(PUBLISHED[kind] | small))
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


@pytest.fixture
def skills(tmp_path, monkeypatch):
    """The skills of the recipe 8b, each with rows of our own."""
    monkeypatch.setenv("PALORA_ALLOW_CODE", "1")
    labels = {"text": ["trout", "whale"], "label": ["A", "B"]}
    row = {"id": "x", "question": "Which of these is a mammal?", "choices": labels, "answerKey": "B"}
    for split in ("train", "test"):
        (tmp_path / f"arc_easy_{split}.jsonl").write_text(json.dumps(row) + "\n")
    data = ROOT / "tests" / "data"
    return {"gsm8k": data, "mbpp": data, "arc_easy": tmp_path}


@pytest.mark.parametrize("whole", [False, True], ids=["small", "as published"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_one_recipe_is_for_every_model_of_8b(kind, whole, skills, tokenizer, tmp_path, monkeypatch):
    """Mathematics, code and science of Llama 3.1, Mistral and Qwen3: by its name, with another model."""
    monkeypatch.setattr(dry, "matmul_speed", lambda *of: 1e12)  # of 4,096 and up: not every machine holds that
    model = folder_of(kind, tokenizer, tmp_path / "model", whole)
    changes = [f"model={model}", f"facts={facts_of(tmp_path)}", "device=cpu"]
    assert load_recipe("8b", changes).skills == list(skills)
    found = load_recipe("8b", [*changes, f"skills=[{', '.join(f'{name}:{home}' for name, home in skills.items())}]"])
    plan = dry.dry_run(found)
    layers = PUBLISHED[kind]["num_hidden_layers"] if whole else 3
    assert plan["model"]["layers"] == layers and plan["model"]["taught_matrices"] == 3 * layers
    assert plan["model"]["dtype"] == "bfloat16" and plan["tokens"]["kept_rows"] == 6, "of all three skills"
    assert [stage["stage"] for stage in plan["stages"]][-1] == "evaluate"
    if whole:
        assert plan["model"]["parameters"] == PARAMETERS[kind]
        assert max(stage["peak"] for stage in plan["stages"]) < 0.9 * 80e9, "which the recipe says"


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
