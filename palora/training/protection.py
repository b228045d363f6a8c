"""Between the stages: find the protected subspace of every targeted matrix, by a rule and what is to be kept.

What to keep is a list: skills (their problems and worked solutions), known facts, plain text. Each gives an input
covariance of trace 1 per matrix, and their weighted sum is what the input rules protect. Before anything is trained,
the coverage tells what a protection is worth: the share of the skill's input energy inside it, and of the new facts'
(a good one covers the skill and not the facts).
"""

import logging
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palora.algebra.decomposition import Decomposition, decompose_targets
from palora.algebra.rules import EXPERT_RULES, KEEP_RULES, RULES, SOFT_RULES, Budget, Evidence, Sides, check_rule
from palora.algebra.statistics import Covariances, InputStatistics, collect, groups, input_statistics, mix, to_tensors
from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.progress import progress_bar
from palora.data.facts import Fact
from palora.language.keep import Keep, Kept
from palora.language.models import fingerprints
from palora.language.prompts import encode_example
from palora.language.targets import find_targets, target_endings, weight
from palora.training.svf import Expert

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")


def protect(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rule: str,
    budget: Budget,
    sides: Sides | None = None,
    expert: Expert | None = None,
    keep: Keep | None = None,
    facts: Sequence[Fact] = (),
    targets: list[str] | None = None,
    model_name: str = "the model",
    seed: int = 0,
    base: str = "expert",
) -> tuple[ProtectedSubspaces, dict[str, Tensor]]:
    """Find the protected subspaces.

    Args:
        model: the original model; with an expert and `base` expert it leaves as the expert (W <- W(z)).
        rule, budget, sides: see `rules.py`.
        keep: what the input statistics are collected from; without it only component rules work, and there is no
            coverage and no drift.
        facts: the new facts, for their coverage only.
        targets: endings of the targeted matrices (the expert's, if there is one); by default those, or the MLP's.
        base: the weights that stage 2 trains on, whose inputs are kept: expert (where there is one) or original.

    Returns: the subspaces with their record, and the input statistics of each kind of things to keep, to store beside
    them: drift is measured on the skills', and the loss of stage 2 may weigh all of them.

    Raises: InputError where rule, budget, expert and model do not go together.
    """
    budget, sides = check_rule(rule, budget, sides)
    if rule in EXPERT_RULES and expert is None:
        raise InputError(f"the rule {rule} needs an expert: give --expert, or choose sigma, random or activation")
    if rule in KEEP_RULES and keep is None:
        raise InputError(f"the rule {rule} needs something to keep: give --skill, --known-facts, --text or --prompts")
    modules = expert.targets(model, model_name, targets) if expert else find_targets(model, targets)
    prints = fingerprints(modules, model)
    decompositions: dict[str, Decomposition] = {}
    components: dict[str, Decomposition] = {}  # those that the expert scales
    moved: dict[str, float] = {}
    with progress_bar("Decomposing", len(modules)) as advance:
        if expert is not None:
            components = expert.decompositions(modules, advance)
            moved = {name: _movement(components[name], expert.scales[name]) for name in modules}
        if expert is not None and (rule in EXPERT_RULES or not expert.basis):
            decompositions = components
        elif rule not in KEEP_RULES | {"none"}:  # of W itself
            decompositions = decompose_targets(modules, advance)
    if expert is not None and base == "expert":
        expert.apply(model, model_name, components)

    weighed = rule in KEEP_RULES
    statistics, kinds = _statistics(model, tokenizer, modules, keep, weighed) if keep else ({}, {})
    skill_only = kinds.get("skills", {})
    fact_statistics = _fact_statistics(model, tokenizer, modules, facts, keep)
    generator = torch.Generator().manual_seed(seed)
    average = mean(moved.values()) if moved else 0.0
    subspaces: dict[str, ProtectedSubspace] = {}
    described: dict[str, Any] = {}
    for name in modules:
        evidence = Evidence(
            decomposition=decompositions.get(name),
            scales=expert.scales[name] if expert else None,
            statistics=statistics.get(name),
            generator=generator,
            W=weight(modules[name]),
            emphasis=moved[name] / (average or 1.0) if moved else 1.0,
        )
        try:
            chosen = RULES[rule](evidence, budget, sides)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        subspace = subspaces[name] = chosen.subspace.to("cpu")
        described[name] = {
            "k_input": 0 if subspace.input is None else subspace.input.shape[1],
            "k_output": 0 if subspace.output is None else subspace.output.shape[1],
            "rank": min(weight(modules[name]).shape),
            "indices": None if chosen.indices is None else chosen.indices.tolist(),
            "scores": None if chosen.scores is None else [round(x, 7) for x in chosen.scores.tolist()],
            "coverage": {
                "skill": _coverage(skill_only.get(name), subspace),
                "facts": _coverage(fact_statistics.get(name), subspace),
            },
        }
    record = {
        "kind": "protection",
        "model": model_name,
        "rule": rule,
        "sides": sides,
        "hard": rule not in SOFT_RULES,
        "budget": {key: value for key, value in vars(budget).items() if value is not None},
        "keep": keep.describe() if keep else None,
        "expert": expert.record.get("skill") if expert else None,
        "seed": seed,
        "target_modules": target_endings(model, list(modules)),
        "fingerprints": prints,
        "coverage": {kind: _mean([m["coverage"][kind] for m in described.values()]) for kind in ("skill", "facts")},
        "modules": described,
    }
    return ProtectedSubspaces(subspaces, record), to_tensors(kinds)


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


def _statistics(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    modules: dict[str, nn.Module],
    keep: Keep,
    weighed: bool,
) -> tuple[dict[str, InputStatistics], dict[str, dict[str, InputStatistics]]]:
    """The statistics of everything to keep by its weights, for the rule (empty unless `weighed`), and of each kind."""
    kept = keep.tokenised(model, tokenizer)
    if weighed and not any(thing.weight > 0 for thing in kept):
        raise InputError("nothing is to be kept: every weight under keep is 0")
    mixed: dict[str, InputStatistics] = {}
    kinds: dict[str, dict[str, InputStatistics]] = {thing.kind: {} for thing in kept}
    only = {thing.kind for thing in kept if thing.weight > 0}
    for group in groups(modules):
        found: list[tuple[Kept, Covariances]] = []
        for thing in kept:
            with progress_bar(f"Statistics of {thing.label}", len(thing.examples)) as advance:
                found.append((thing, collect(model, group, thing.examples, progress=advance)))
        for kind, statistics in kinds.items():
            statistics |= mix([(1.0, covariances) for thing, covariances in found if thing.kind == kind])
        if len(only) == 1:  # the same mixture: do not factorise it twice
            mixed |= {name: kinds[next(iter(only))][name] for name in group}
        elif weighed:
            mixed |= mix([(thing.weight, covariances) for thing, covariances in found if thing.weight > 0])
    return mixed, kinds


def _fact_statistics(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    modules: dict[str, nn.Module],
    facts: Sequence[Fact],
    keep: Keep | None,
) -> dict[str, InputStatistics]:
    if not facts:
        return {}
    limit = keep.examples if keep else Keep().examples
    examples = [encode_example(tokenizer, f.question, f.answer) for f in facts[:limit]]
    return input_statistics(model, modules, examples, "the facts")


def _movement(d: Decomposition, z: Tensor) -> float:
    """‖s (z − 1)‖ / ‖s‖: how far the expert moved a matrix, relatively."""
    s = d.s.cpu()
    return float((s * (z.cpu() - 1)).norm() / s.norm())


def _coverage(statistics: InputStatistics | None, subspace: ProtectedSubspace) -> float | None:
    if statistics is None:
        return None
    return round(statistics.coverage(subspace.input), 6)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(mean(known), 6) if known else None
