"""The bare loop of examples/ and the library are the same method: the same numbers on the same seed."""

import importlib.util
from pathlib import Path

import pytest
import torch

import palora
from palora.metrics import read_metrics
from palora.recipe import ExpertSettings, InjectSettings
from palora.updates import Adapter

SEED = 3
FACTS = [palora.Fact(f"Where was {name} born?", city) for name, city in zip("ABCDEFGHIJ", "QRSTUVWXYZ", strict=True)]
EVEN = [palora.Problem(prompt=f"{i}+{i}=", answer=str(2 * i), solution="0" * (1 + i % 3)) for i in range(60)]
PARTS = {"train": EVEN[:36], "validation": EVEN[36:56], "test": EVEN[56:]}
SKILL = palora.Skill(  # to begin with an even character code: something a model of random weights can be taught
    name="even",
    max_new_tokens=3,
    problems=lambda split, n, seed: PARTS[split][:n],
    score=lambda completion, problem: bool(completion) and ord(completion[0]) % 2 == 0,
)
WAYS = [("reward", {"k": 12}), ("next_token", {"strength": 3.0})]


@pytest.fixture(scope="module")
def bare_loop():
    path = Path(__file__).parent.parent / "examples" / "bare_loop.py"
    spec = importlib.util.spec_from_file_location("bare_loop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(bare_loop, folder, objective, budget):
    return bare_loop.main(
        folder,
        SKILL,
        FACTS,
        seed=SEED,
        **{"objective": objective, "steps": 8, "problems": 16, "rollouts": 12, "expert_lr": 0.2, "expert_clip": 0.5},
        **{"every": 3, "validation": 20, "epochs": 5, "batch": 4, "lr": 0.01, "clip": 1.0, "weight_decay": 0.1},
        **{"r": 4, "alpha": 8, **budget},
    )


def by_library(folder, work, objective, budget):
    rule = "svf" if "k" in budget else "covariance"
    expert_settings = ExpertSettings(
        **{"objective": objective, "iterations": 8, "batch_size": 16, "micro_batch_size": 12, "learning_rate": 0.2},
        **{"max_grad_norm": 0.5, "validate_every": 3, "validation_size": 20, "temperature": 1.0, "baseline": True},
    )
    inject_settings = InjectSettings(
        **{"epochs": 5, "batch_size": 4, "learning_rate": 0.01, "max_grad_norm": 1.0, "weight_decay": 0.1},
        **{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "checkpoint_every": 1000},
    )
    model, tokenizer = palora.load_model(folder, "float32", "cpu")
    expert = palora.train_expert(model, tokenizer, SKILL, expert_settings, work, str(folder), seed=SEED)
    (work / "metrics.jsonl").rename(work / "expert.jsonl")
    protection, _ = palora.protect(
        *(model, tokenizer, rule, palora.Budget(**budget)), expert=expert, keep=palora.Keep([SKILL]), seed=SEED
    )
    adapted, _ = palora.inject(model, tokenizer, FACTS, inject_settings, work, protection, seed=SEED)
    adapted.save_pretrained(work / "adapter")
    return expert, protection, work


def relative(found, expected):
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def dense(basis, size):
    """I − V Vᵀ (size, size) of a protected basis V, or I without one: free of signs and of the order of columns."""
    return torch.eye(size) if basis is None else torch.eye(size) - basis @ basis.T


@pytest.mark.parametrize(("objective", "budget"), WAYS)
def test_the_same_numbers(bare_loop, model_folder, tmp_path, objective, budget):
    import time

    t = time.time()
    bare = by_hand(bare_loop, model_folder, objective, budget)
    print("bare", time.time() - t)
    t = time.time()
    expert, protection, work = by_library(model_folder, tmp_path, objective, budget)
    print("lib", time.time() - t)
    print(bare.validation, expert.record["validation_accuracy"], bare.recall)
    rows = read_metrics(work / "expert.jsonl")
    print(
        max(abs(a - b) for a, b in zip(bare.expert_losses, [r["loss"] for r in rows if "loss" in r], strict=True)),
        bare.expert_losses,
    )
    adapter = Adapter.load(work / "adapter")
    for name, z in expert.scales.items():
        P_L, P_R = bare.projectors[name]
        print(
            name,
            relative(bare.scales[name], z),
            (z - 1).abs().max(),
            relative(P_L, dense(protection[name].output, len(P_L))),
            relative(P_R, dense(protection[name].input, len(P_R))),
        )
    losses = [r["loss"] for r in read_metrics(work / "metrics.jsonl") if "loss" in r]
    print(losses, bare.losses)
    print(vars(adapter).keys())
