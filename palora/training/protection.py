"""Between the stages: find the protected subspace of every targeted matrix, by a rule and what is to be kept.

Everything that is to be kept gives statistics of its own, one list (`algebra/statistics.py`); the input rules look at
their sum by weights. Before anything is trained, the coverage tells what a protection is worth: the share of the
skill's input energy inside it, and of the new facts' (a good one covers the skill and not the facts).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from palora.algebra.decomposition import Decomposition
from palora.algebra.rules import (
    COMPONENT_RULES,
    EXPERT_RULES,
    INPUT_RULES,
    RULES,
    SOFT_RULES,
    Budget,
    Evidence,
    Selection,
    Sides,
    check_rule,
)
from palora.algebra.statistics import InputStatistics, KeptInputs, Statistics
from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.module_names import module_label
from palora.common.settings import ProtectSettings
from palora.common.wording import percent
from palora.data.facts import Fact
from palora.language.collect import collect, covered, shared_inputs
from palora.language.keep import Keep
from palora.language.models import fingerprints
from palora.language.prompts import encode_example
from palora.language.targets import find_targets, target_endings, weight
from palora.training.svf import Expert, components, decompose_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")


def protect(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: ProtectSettings,
    keep: Keep | None = None,
    facts: Sequence[Fact] = (),
    expert: Expert | None = None,
    targets: list[str] | None = None,
    model_name: str = "the model",
    seed: int = 0,
) -> ProtectedSubspaces:
    """Find the protected subspaces of a model; it comes back unchanged.

    Args:
        model: the one that will be taught.
        tokenizer: its tokenizer, as `load_model` sets it.
        settings: the rule (`algebra/rules.py` has the source of each), how much, on which sides, and what each kind of
            things to keep weighs.
        keep: what the input statistics are collected from; without it only component rules work, and there is no
            coverage and no drift.
        facts: the new facts, for their coverage only.
        expert: whose scales the rule reads; `model` is then the expert, or the original that it was made of.
        targets: endings of the targeted matrices (the expert's, if there is one); by default those, or the MLP's.
        model_name: what the record calls the model.
        seed: of the rule `random`.

    Returns:
        The subspaces with their record, and the statistics of everything that is to be kept. `record["coverage"]` is
        the share, 0 to 1, of the skill's and of the facts' input energy that they hold.

    Raises:
        InputError: rule, budget, expert and model do not go together.
    """
    budget, sides = check_protection(settings)
    rule = settings.rule
    if rule in EXPERT_RULES and expert is None:
        raise InputError(f"the rule {rule} needs an expert: give --expert, or choose sigma, random or activation")
    if rule in EXPERT_RULES and expert is not None and expert.moved < 1e-6:
        raise InputError(
            "the expert moved no component: on its validation problems nothing was better than the untouched model, so "
            f"the rule {rule} has nothing to go by; train it longer or otherwise, or choose covariance or sigma"
        )
    if rule in INPUT_RULES and keep is None:
        raise InputError(f"the rule {rule} needs something to keep: give --skill, --known-facts, --text or --prompts")
    modules = expert.marked(model, model_name, targets) if expert else find_targets(model, targets)
    inputs = shared_inputs(model, modules) if keep else {}
    statistics = _of_kept(model, tokenizer, modules, inputs, keep)
    weights = settings.keep.weights
    if rule in INPUT_RULES and not any(weights[kind] for kind in statistics.kinds):
        raise InputError("nothing is to be kept: every weight under keep is 0")
    weighed = statistics.weighed(weights) if rule in INPUT_RULES else {}
    skills = statistics.skills()
    decomposed: Iterator[tuple[str, Decomposition]] = iter(())
    if rule in EXPERT_RULES and expert is not None:
        decomposed = components(expert, model, modules)
    elif rule in COMPONENT_RULES:
        decomposed = decompose_targets(model, modules)

    generator = torch.Generator().manual_seed(seed)
    chosen: dict[str, Selection] = {}
    for name in modules:
        same = inputs.get(name, name)
        if rule in INPUT_RULES and same in chosen:  # gate and up read one input
            chosen[name] = chosen[same]
            continue
        _, d = next(decomposed, (name, None))
        evidence = Evidence(d, expert.scales[name] if expert else None, weighed.get(name), generator)
        try:
            chosen[name] = RULES[rule](evidence, budget, sides)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    subspaces = {name: own.subspace.to("cpu") for name, own in chosen.items()}
    new: dict[str, float] = {}
    if facts:
        examples = [encode_example(tokenizer, f.question, f.answer) for f in facts[: settings.keep.examples]]
        bases = {name: own.input for name, own in subspaces.items()}
        new = covered(model, modules, bases, examples, "the facts")
    described = {
        name: _described(chosen[name], min(weight(module).shape), _coverage(name, subspaces[name], skills, new))
        for name, module in modules.items()
    }
    record = {
        "kind": "protection",
        "model": model_name,
        "rule": rule,
        "sides": sides,
        "hard": rule not in SOFT_RULES,
        "budget": {key: value for key, value in vars(budget).items() if value is not None},
        "keep": {**keep.describe(), "weights": weights} if keep else None,
        "expert": expert.record.get("skill") if expert else None,
        "seed": seed,
        "target_modules": target_endings(model, list(modules)),
        "fingerprints": fingerprints(modules, model),
        "coverage": {kind: _mean([m["coverage"][kind] for m in described.values()]) for kind in ("skill", "facts")},
        "modules": described,
    }
    return ProtectedSubspaces(subspaces, record, statistics)


def check_protection(settings: ProtectSettings) -> tuple[Budget, Sides]:
    """The budget and the sides of a protection, with the rule's defaults. Raises InputError where they do not go
    together."""
    budget = Budget(settings.k, settings.fraction, settings.share, settings.strength)
    return check_rule(settings.rule, budget, settings.sides)


def coverage_told(record: Mapping[str, Any]) -> str | None:
    """The coverage, and whether it is good (`coverage_warning` says what is wrong where not); None where it was not
    measured. A protection is to hold the skill's inputs, and to leave the facts' free."""
    skill, facts = record["coverage"]["skill"], record["coverage"]["facts"]
    if record["rule"] == "none" or skill is None:
        return None
    told = f"the protection covers {percent(skill, 1)} of the skill's input energy"
    told += "" if facts is None else f", {percent(facts, 1)} of the facts'"
    return told if coverage_warning(record) else f"{told}: good"


def coverage_warning(record: Mapping[str, Any]) -> str | None:
    """A sentence for a protection that cannot help much: it covers too little of the skill, or the facts as much."""
    skill, facts = record["coverage"]["skill"], record["coverage"]["facts"]
    if record["rule"] == "none" or skill is None:
        return None
    if record["sides"] != "output" and skill < 0.5:
        return f"the protection covers only {skill:.0%} of the skill's input energy: expect it to protect little"
    if facts is not None and facts >= skill:
        return f"the protection covers the facts' inputs ({facts:.0%}) as much as the skill's ({skill:.0%})"
    return None


def _of_kept(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    modules: dict[str, nn.Module],
    inputs: Mapping[str, str],
    keep: Keep | None,
) -> Statistics:
    """The statistics of everything that is to be kept, thing by thing."""
    if keep is None:
        return Statistics()
    things = []
    for kind, name, examples in keep.tokenised(model, tokenizer):
        of = {key: own.to("cpu") for key, own in collect(model, modules, inputs, examples, name).items()}
        _warn_of_one_direction(name, of)
        things.append(KeptInputs(kind, name, of))
    return Statistics(tuple(things), inputs)


def _warn_of_one_direction(name: str, of: Mapping[str, InputStatistics]) -> None:
    """Say where nearly all energy lies in one direction: a coverage of that is no coverage of the rest."""
    shares = {key: float(own.factor[:, 0].square().sum()) + own.tail for key, own in of.items()}
    hollow = {key: share for key, share in shares.items() if share > 0.5}
    if hollow:
        worst = max(hollow, key=lambda key: hollow[key])
        log.warning(
            "one direction holds over half of the input energy of %s in %d of %d inputs (%.0f%% in %s): coverage and "
            "drift there are mostly of that one",
            *(name, len(hollow), len(of), 100 * hollow[worst], module_label(worst)),
        )


def _described(chosen: Selection, rank: int, coverage: Mapping[str, float | None]) -> dict[str, Any]:
    """What the record says of one matrix."""
    V, U, scores = chosen.subspace.input, chosen.subspace.output, chosen.scores
    return {
        **{"k_input": 0 if V is None else V.shape[1], "k_output": 0 if U is None else U.shape[1], "rank": rank},
        "indices": None if chosen.indices is None else chosen.indices.tolist(),
        "scores": None if scores is None else [round(x, 7) for x in scores.tolist()],
        "coverage": coverage,
    }


def _coverage(
    name: str, subspace: ProtectedSubspace, skills: Mapping[str, InputStatistics], facts: Mapping[str, float]
) -> dict[str, float | None]:
    """The share of input energy that is held back from an update: 1 − c (1 − tr(Vᵀ C V) / tr C)."""
    inside = {"skill": skills[name].coverage(subspace.input) if name in skills else None, "facts": facts.get(name)}
    return {kind: None if x is None else round(1 - subspace.scale * (1 - x), 6) for kind, x in inside.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(mean(known), 6) if known else None
