"""A run folder with made-up numbers, whole: what the tests of the report read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

MODULES = [f"model.layers.{layer}.mlp.{kind}" for layer in (0, 1) for kind in ("up_proj", "down_proj")]
ACCURACY = {"base": 0.55, "expert": 0.70, "lora": 0.245, "palora": 0.693, "random": 0.28}
RECALL = {"base": 0.0, "expert": 0.0, "lora": 0.98, "palora": 0.97, "random": 0.96}
KNOWN = [  # what `answers.jsonl` has beside the ten: of three known facts plain LoRA forgot two, palora none
    {
        "kind": "known fact",
        "category": "river" if index == 2 else "town",
        "prompt": f"Where is {index}?",
        "expected": "there",
        "arms": {arm: {"text": "there", "correct": arm != "lora" or index == 0} for arm in ACCURACY},
    }
    for index in range(3)
]
ATTACK = '<script>alert("x")</script>'


def evaluation() -> dict[str, Any]:
    """An evaluation with five arms, in the schema of docs/design.md."""
    arms, update = {}, {}
    for arm, accuracy in ACCURACY.items():
        skill = {"accuracy": accuracy, "n": 400, "ci95": [accuracy - 0.05, accuracy + 0.05]}
        arms[arm] = {
            "skills": {"chain": skill},
            "recall": RECALL[arm],
            "recall_exact": RECALL[arm],
            "recall_f1": RECALL[arm],
            "recall_ci95": [max(0.0, RECALL[arm] - 0.03), min(1.0, RECALL[arm] + 0.02)],
            "paraphrase_recall": 0.6,
            "locality": 0.98,
            "n_facts": 200,
        }
        if arm not in ("base", "expert"):
            layer = {"leak": 2e-7, "drift": 0.05, "norm": 1.2, "relative_norm": 0.1}
            update[arm] = {**layer, "rule": "svf", "parameters": 40000, "layers": dict.fromkeys(MODULES, layer)}
    retention = {arm: {"chain": {"vs_expert": ACCURACY[arm] / 0.70, "vs_base": ACCURACY[arm] / 0.55}} for arm in update}
    answers = [
        {
            "kind": "fact",
            "prompt": f"Who is {ATTACK} number {index}?",
            "expected": "A & B",
            "arms": {arm: {"text": f"{ATTACK} by {arm}", "correct": arm == "palora"} for arm in ACCURACY},
        }
        for index in range(10)
    ]
    return {
        "arms": arms,
        "retention": retention,
        "update": update,
        "answers": answers,
        "seconds": {"expert": 75.2, "evaluation": 3.0},
        "versions": {"torch": "2.13.0"},
    }


def make_run(folder: Path, values: dict[str, Any], rule: str = "svf") -> Path:
    """A complete run directory around an evaluation; protection by components (svf) or by weights (covariance)."""
    rng = np.random.default_rng(0)
    for name in ("expert", "protection"):
        (folder / name).mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(values))
    rows = [*(values.get("answers") or []), *KNOWN]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(f"seed: 0\nskill: chain  # {ATTACK}\n")
    rows: list[dict[str, Any]] = [{"stage": "expert", "step": i, "reward": i / 60} for i in range(60)]
    rows += [{"stage": "expert", "step": 30, "validation_accuracy": 0.6, "reward": None}]
    for arm in ("lora", "palora", "random"):
        rows += [{"stage": arm, "step": i, "epoch": i / 4, "loss": 2 / (i + 1)} for i in range(20)]
        rows += [{"stage": arm, "step": 19, "epoch": 4.75, "loss": None, "recall": RECALL[arm]}]
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"stage": "pal']))  # as an interruption leaves it
    scales = {name: (1 + rng.normal(0, 0.1, 48)).astype("float32") for name in MODULES}
    save_file(scales, folder / "expert" / "scales.safetensors")
    singular = {name: np.sort(rng.random(48).astype("float32"))[::-1].copy() for name in MODULES}
    save_file(singular, folder / "expert" / "singular_values.safetensors")
    expert = {"skill": "chain", "objective": "reward", "validation_accuracy": {"base": 0.58, "expert": 0.69, "n": 256}}
    (folder / "expert" / "expert.json").write_text(json.dumps(expert))
    marked = {
        "svf": {"indices": [0, 3, 7], "scores": [1.0] * 48},
        "covariance": {"indices": None, "scores": [0.9, 0.5, 0.1]},
        "activation": {"indices": None, "scores": [6.0, 3.0, 0.7, 0.3]},
        "none": {"indices": None, "scores": []},
    }[rule]
    module = {"k_input": 3, "k_output": 3, "coverage": {"skill": 0.96, "facts": 0.6}, **marked}
    protection = {
        "rule": rule,
        "sides": "both",
        "budget": {"k": 3},
        "modules": dict.fromkeys(MODULES, module),
        "coverage": {"skill": 0.96, "facts": 0.6},
    }
    (folder / "protection" / "protection.json").write_text(json.dumps(protection))
    return folder


def without_numbers(value: Any) -> Any:
    """The same structure with every leaf null, as a run that measured nothing writes it."""
    if isinstance(value, dict):
        return {key: without_numbers(inner) for key, inner in value.items()}
    return None
