"""The bare loop of examples/ and the library are the same method: the same numbers on the same seed. They share nothing
but the data, so a step that is lost from either shows here."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import palora
from palora.common.metrics import read_metrics
from palora.common.settings import ExpertSettings, InjectSettings, ProtectSettings
from palora.language.models import fingerprints
from palora.language.scoring import ask_facts, share_correct
from palora.language.targets import find_targets
from palora.results.updates import Adapter

SEED = 0
FACTS = [palora.Fact(f"Where was {name} born?", city) for name, city in zip("ABCDEFGHIJ", "QRSTUVWXYZ", strict=True)]
PROBLEMS = [palora.Problem(prompt=f"{i}+{i}=", answer="0", solution="0" * (1 + i % 3)) for i in range(60)]
SPLITS = {"train": PROBLEMS[:36], "validation": PROBLEMS[36:56], "test": PROBLEMS[56:]}
SKILL = palora.Skill(  # to begin with an even character code: something a model of random weights can be taught
    name="even",
    max_new_tokens=3,
    problems=lambda split, n, seed: SPLITS[split][:n],
    score=lambda completion, problem: bool(completion) and ord(completion[0]) % 2 == 0,
)
HARD = "reward, hard"
WAYS = {HARD: ("reward", "svf", {"k": 12}), "next token, soft": ("next_token", "covariance", {"strength": 3.0})}


@pytest.fixture(scope="module")
def bare_loop():
    path = Path(__file__).parent.parent / "examples" / "bare_loop.py"
    spec = importlib.util.spec_from_file_location("bare_loop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_bare(bare_loop, folder, way):
    objective, _, budget = WAYS[way]
    return bare_loop.main(
        *(folder, SKILL, FACTS, SEED),
        **{"objective": objective, "steps": 8, "problems": 16, "rollouts": 12, "expert_lr": 0.2, "expert_clip": 0.5},
        **{"every": 3, "validation": 20, "epochs": 20, "batch": 4, "lr": 0.01, "clip": 1.0, "weight_decay": 0.1},
        **{"r": 4, "alpha": 8, **budget},
    )


def run_library(folder, work, way):
    objective, rule, budget = WAYS[way]
    expert_settings = ExpertSettings(
        **{
            "objective": objective,
            "iterations": 8,
            "batch_size": 16,
            "rollout_batch_size": 12,
            "micro_batch_size": 12,
            "learning_rate": 0.2,
        },
        **{"max_grad_norm": 0.5, "validate_every": 3, "validation_size": 20, "temperature": 1.0, "baseline": True},
    )
    inject_settings = InjectSettings(
        **{"epochs": 20, "batch_size": 4, "learning_rate": 0.01, "max_grad_norm": 1.0, "weight_decay": 0.1},
        **{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "checkpoint_every": 1000},
        **{"drift": 0.0, "stop_at_recall": None},
    )
    model, tokenizer = palora.load_model(folder, "float32", "cpu")
    expert = palora.train_expert(model, tokenizer, SKILL, expert_settings, work, str(folder), seed=SEED)
    expert_rows = read_metrics(work / "metrics.jsonl")
    expert.apply(model)  # in place: from here on it is the expert
    made = replace(expert, record={**expert.record, "expert_fingerprints": fingerprints(find_targets(model), model)})
    protection = palora.protect(
        *(model, tokenizer, ProtectSettings(rule=rule, **budget)), palora.Keep([SKILL]), expert=made, seed=SEED
    )
    adapted, _ = palora.inject(model, tokenizer, FACTS, inject_settings, work, protection, seed=SEED)
    adapted.save_pretrained(work / "adapter")
    return SimpleNamespace(
        expert=expert,
        expert_losses=[row["loss"] for row in expert_rows if "loss" in row],
        validation=[row["validation_accuracy"] for row in expert_rows if "validation_accuracy" in row],
        protection=protection,
        adapter=Adapter.load(work / "adapter"),
        losses=[row["loss"] for row in read_metrics(work / "metrics.jsonl") if "loss" in row],
        recall=share_correct(ask_facts(adapted, tokenizer, FACTS)),
    )


def differences(bare, library):
    """Of each kind of number the largest relative difference ‖a − b‖ / ‖b‖, over all matrices."""

    def relative(pairs):
        return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)

    def projector(basis, size):  # I − V Vᵀ: it knows neither the signs of singular vectors nor their order
        return torch.eye(size) if basis is None else torch.eye(size) - basis @ basis.T

    names = list(bare.scales)
    assert set(names) == set(library.expert.scales) == set(library.protection) == set(library.adapter.A)
    subspaces, adapter = [library.protection[n] for n in names], library.adapter
    (P_L, P_R), (A, B) = (zip(*(of[n] for n in names), strict=True) for of in (bare.projectors, bare.adapter))
    return {
        "scales": relative((bare.scales[n], library.expert.scales[n]) for n in names),
        "expert_losses": relative([(torch.tensor(bare.expert_losses), torch.tensor(library.expert_losses))]),
        "P_L": relative((P, projector(s.output, len(P))) for P, s in zip(P_L, subspaces, strict=True)),
        "P_R": relative((P, projector(s.input, len(P))) for P, s in zip(P_R, subspaces, strict=True)),
        "losses": relative([(torch.tensor(bare.losses), torch.tensor(library.losses))]),
        "A'": relative(zip(A, (adapter.A[n] for n in names), strict=True)),
        "B'": relative(zip(B, (adapter.B[n] for n in names), strict=True)),
    }


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers(bare_loop, model_folder, tmp_path, way):
    bare, library = run_bare(bare_loop, model_folder, way), run_library(model_folder, tmp_path, way)
    assert bare.validation == library.validation
    assert max(bare.validation) > bare.validation[0], "otherwise the scales are those of the base, and say nothing"
    assert len(bare.losses) == 60
    assert bare.recall == library.recall > 0
    found = differences(bare, library)
    assert max(found.values()) < 1e-5, found


def without_renormalisation(bare_loop, patch):
    patch.setattr(bare_loop.SVF, "z", lambda layer: 2 * torch.sigmoid(layer.p))


def without_input_projector(bare_loop, patch):
    patch.setattr(bare_loop.Injected, "folded", lambda layer: (layer.A, layer.P_L @ layer.B))


def without_output_projector(bare_loop, patch):
    patch.setattr(bare_loop.Injected, "folded", lambda layer: (layer.A @ layer.P_R, layer.B))


def library_without_input_projector(bare_loop, patch):
    patch.setattr(palora.ProtectedSubspace, "project_input", lambda subspace, A: A)


def library_without_output_projector(bare_loop, patch):
    patch.setattr(palora.ProtectedSubspace, "project_output", lambda subspace, B: B)


def library_in_another_order(bare_loop, patch):
    sampler = "accelerate.data_loader.SeedableRandomSampler.__iter__"
    patch.setattr(sampler, lambda self: iter(range(len(self.data_source))))


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (without_renormalisation, "scales"),
        (without_input_projector, "A'"),
        (without_output_projector, "B'"),
        (library_without_input_projector, "A'"),
        (library_without_output_projector, "B'"),
        (library_in_another_order, "losses"),
    ],
)
def test_a_lost_step_shows(bare_loop, model_folder, tmp_path, monkeypatch, broken, seen):
    broken(bare_loop, monkeypatch)
    bare, library = run_bare(bare_loop, model_folder, HARD), run_library(model_folder, tmp_path, HARD)
    found = differences(bare, library)
    assert found[seen] > 0.01, found
