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

from palora.decomposition import Decomposition, decompose_targets
from palora.errors import InputError
from palora.facts import Fact
from palora.keep import Keep
from palora.models import find_targets, fingerprints, target_endings, weight
from palora.progress import progress_bar
from palora.prompts import encode_example
from palora.rules import EXPERT_RULES, KEEP_RULES, RULES, SOFT_RULES, Budget, Evidence, Sides, check_rule
from palora.statistics import KEPT, Covariances, InputStatistics, collect, groups, mix, to_tensors
from palora.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.svf import Expert

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

    Returns: the subspaces with their record, and the input statistics to store beside them: the skills', on which drift
    is measured, and those of everything kept where that is more.

    Raises: InputError where rule, budget, expert and model do not go together.
    """
    sides = check_rule(rule, budget, sides)
    if rule in EXPERT_RULES and expert is None:
        raise InputError(f"the rule {rule} needs an expert: give --expert, or choose sigma, random or activation")
    if rule in KEEP_RULES and keep is None:
        raise InputError(f"the rule {rule} needs something to keep: give --skill, --known-facts or --text")
    modules = expert.targets(model, model_name, targets) if expert else find_targets(model, targets)
    prints = fingerprints(modules, model)
    decompositions: dict[str, Decomposition] = {}
    if expert is not None or rule not in KEEP_RULES | {"none"}:
        with progress_bar("Decomposing", len(modules)) as advance:
            decompositions = decompose_targets(modules, advance)
    if expert is not None and base == "expert":
        expert.apply(model, model_name, decompositions)

    statistics, skill_only = _statistics(model, tokenizer, modules, keep) if keep else ({}, {})
    fact_statistics = _fact_statistics(model, tokenizer, modules, facts, keep)
    generator = torch.Generator().manual_seed(seed)
    moved = {n: _movement(d, expert.scales[n]) for n, d in decompositions.items()} if expert else {}
    subspaces: dict[str, ProtectedSubspace] = {}
    described: dict[str, Any] = {}
    for name in modules:
        evidence = Evidence(
            decomposition=decompositions.get(name),
            scales=expert.scales[name] if expert else None,
            statistics=statistics.get(name),
            generator=generator,
            W=weight(modules[name]),
            emphasis=moved[name] / (mean(moved.values()) or 1.0) if moved else 1.0,
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
    stored = to_tensors(skill_only) | (to_tensors(statistics, KEPT) if statistics is not skill_only else {})
    return ProtectedSubspaces(subspaces, record), stored


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
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", modules: dict[str, nn.Module], keep: Keep
) -> tuple[dict[str, InputStatistics], dict[str, InputStatistics]]:
    """The mixed statistics of everything to keep, and those of the skills alone: the same where there is nothing else,
    empty without a skill."""
    kept = keep.tokenised(model, tokenizer)
    same = len(kept) == len(keep.skills) and keep.weights["skills"] > 0
    mixed: dict[str, InputStatistics] = {}
    skills_only: dict[str, InputStatistics] = {}
    for group in groups(modules):
        found: list[tuple[float, Covariances]] = []
        for label, share, examples in kept:
            with progress_bar(f"Statistics of {label}", len(examples)) as advance:
                found.append((share, collect(model, group, examples, progress=advance)))
        mixed |= mix([(share, covariances) for share, covariances in found if share > 0])
        if keep.skills and not same:
            skills_only |= mix([(1.0, covariances) for _, covariances in found[: len(keep.skills)]])
    return mixed, mixed if same else skills_only


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
    found: dict[str, InputStatistics] = {}
    for group in groups(modules):
        with progress_bar("Statistics of the facts", len(examples)) as advance:
            found |= mix([(1.0, collect(model, group, examples, progress=advance))])
    return found


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
