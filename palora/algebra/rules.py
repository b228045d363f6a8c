"""The protection rules: which subspace of each matrix an update may not touch.

A rule is one small function from the evidence about one matrix W (m × n) to its protected bases. Component rules order
the singular components of W by an importance, and protect the first of them:

    svf            abs(z_eff − 1)         what the expert moved (PALoRA, arXiv 2605.24549)
    sigma          s²                     the top singular values (OPLoRA, arXiv 2510.13003)
    random         uniform                the control that tells whether the choice matters

Input rules look at the inputs of W, C = Σ x xᵀ over the text that is to be kept, and protect the input side only:

    activation     leading eigenvectors of C (the geometry of LoRA-Null and AlphaEdit)
    covariance     all of them, softly: A' = A (I + g·n·C / tr C)⁻¹ with one strength g (ours). What C's leading
                   directions leave out is attenuated alike, by 1 / (1 + g·n·ρ / tr C)

`none` protects nothing: plain LoRA.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from palora.algebra.decomposition import Decomposition
from palora.algebra.statistics import InputStatistics
from palora.algebra.subspace import ProtectedSubspace
from palora.common.errors import InputError

Sides = Literal["both", "input", "output"]


@dataclass(frozen=True)
class Budget:
    """How much to protect in each matrix: one of the four.

    Args:
        k: a number of directions.
        fraction: of the rank r = min(m, n) (component rules) or of the n inputs (`activation`), in (0, 1].
        share: of the total importance (for `activation`: of the energy of the inputs), in (0, 1].
        strength: g of the soft rules, > 0; `check_rule` gives them 1 where none of the four is given.
    """

    k: int | None = None
    fraction: float | None = None
    share: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise InputError(f"give one of k, fraction, share and strength, not {' and '.join(given)}")
        for name in ("fraction", "share"):
            value = given.get(name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} must be over 0 and at most 1, not {value}")
        if self.k is not None and self.k < 1:
            raise InputError(f"k must be at least 1, not {self.k}")
        if self.strength is not None and not 0 < self.strength < math.inf:
            raise InputError(f"strength must be over 0 and finite, not {self.strength}")

    def count(self, importance: Tensor, size: int | None = None, total: float | None = None) -> int:
        """How many of the most important directions the budget buys.

        Args:
            importance: of each direction at hand, (r,), in any order.
            size: how many directions there are in all, for `fraction`; r by default.
            total: the importance of all of them, for `share`; the sum by default.

        Raises: InputError where the budget asks for more directions than are at hand.
        """
        r = importance.numel()
        if self.k is not None:
            k = self.k
        elif self.fraction is not None:
            k = max(1, round(self.fraction * (size or r)))
        elif self.share is not None:
            cumulative = importance.sort(descending=True).values.double().cumsum(0)
            reached = float(cumulative[-1])
            whole = total if total is not None and total > reached * (1 + 1e-4) else reached  # all but rounding
            k = int((cumulative < self.share * whole * (1 - 1e-7)).sum()) + 1
        else:
            raise InputError("this rule needs k, fraction or share")
        if k > r:
            if self.share is not None:
                raise InputError(f"a share of {self.share} takes more than the {r} directions at hand; choose less")
            raise InputError(f"k = {k} is larger than the rank {r}; choose at most {r}")
        return k


@dataclass(frozen=True)
class Evidence:
    """What a rule may look at, for one matrix.

    Args:
        decomposition: of W, or None where no rule or expert needs it.
        scales: the expert's effective scales z_eff (r,), or None without an expert.
        statistics: the inputs that are to be kept, or None where none were collected.
        generator: seeded, for `random`.
    """

    decomposition: Decomposition | None
    scales: Tensor | None
    statistics: InputStatistics | None
    generator: torch.Generator


@dataclass(frozen=True)
class Selection:
    """What a rule chose: the bases, the protected components (indices into the spectrum, None for input rules) and the
    score of every direction: its importance, or for the soft rule its weight w in [0, 1)."""

    subspace: ProtectedSubspace
    indices: Tensor | None
    scores: Tensor | None


Rule = Callable[[Evidence, Budget, Sides], Selection]


def _components(importance: Callable[[Evidence], Tensor]) -> Rule:
    """The rule that protects the singular components with the highest `importance` (r,)."""

    def rule(evidence: Evidence, budget: Budget, sides: Sides) -> Selection:
        scores = importance(evidence)
        indices = scores.argsort(descending=True, stable=True)[: budget.count(scores)].sort().values
        d = _decomposed(evidence)
        subspace = ProtectedSubspace(
            input=d.Vh[indices].T.contiguous() if sides in ("both", "input") else None,
            output=d.U[:, indices].contiguous() if sides in ("both", "output") else None,
        )
        return Selection(subspace, indices, scores)

    return rule


def _given(value: Any, what: str) -> Any:
    if value is None:
        raise InputError(f"this rule needs {what}")
    return value


def _decomposed(evidence: Evidence) -> Decomposition:
    return _given(evidence.decomposition, "the decomposition of the matrix")


def _scales(evidence: Evidence) -> Tensor:
    return _given(evidence.scales, "an expert: give --expert, or choose another rule")


def _kept(evidence: Evidence) -> InputStatistics:
    return _given(evidence.statistics, "something to keep: give --skill, --known-facts, --text or --prompts")


def activation(evidence: Evidence, budget: Budget, sides: Sides) -> Selection:
    """V = the leading eigenvectors of C."""
    kept = _kept(evidence)
    E, eigenvalues = kept.spectrum
    used = eigenvalues[eigenvalues > 1e-7 * kept.trace]
    k = budget.count(used, size=len(kept.factor), total=kept.trace)
    return Selection(ProtectedSubspace(input=E[:, :k].contiguous()), None, eigenvalues)


def covariance(evidence: Evidence, budget: Budget, sides: Sides) -> Selection:
    """c = 1 / (1 + g·ℓ) for the mean ℓ = n·ρ / tr C of the directions that are left out; on a leading direction, of
    relative eigenvalue l = n·λ / tr C, c (1 − w) = 1 / (1 + g·l). V = E diag(sqrt(w))."""
    kept = _kept(evidence)
    if budget.strength is None:
        raise InputError("this rule takes --strength, not k, fraction or share")
    E, eigenvalues = kept.spectrum
    gain = budget.strength * len(kept.factor) / kept.trace
    c = 1 / (1 + gain * kept.tail)
    w = 1 - 1 / (c * (1 + gain * eigenvalues))
    seen = w > 1e-6  # directions the text never uses are free anyway: do not store them
    subspace = ProtectedSubspace(input=(E * w.clamp_min(0).sqrt())[:, seen].contiguous(), scale=c)
    return Selection(subspace, None, gain * eigenvalues / (1 + gain * eigenvalues))


def none(evidence: Evidence, budget: Budget, sides: Sides) -> Selection:
    """Nothing is protected."""
    return Selection(ProtectedSubspace(), None, None)


RULES: dict[str, Rule] = {
    "svf": _components(lambda e: (_scales(e) - 1).abs()),
    "sigma": _components(lambda e: _decomposed(e).s.square()),
    "random": _components(lambda e: torch.rand(_decomposed(e).rank, generator=e.generator)),
    "activation": activation,
    "covariance": covariance,
    "none": none,
}
COMPONENT_RULES = frozenset({"svf", "sigma", "random"})  # these look at the singular components of W
EXPERT_RULES = frozenset({"svf"})  # these of them need an expert
INPUT_RULES = frozenset({"activation", "covariance"})  # these need something to keep, and have no output side
SOFT_RULES = frozenset({"covariance"})
DEFAULT_STRENGTH = 1.0  # of these; see docs/design.md


def check_rule(rule: str, budget: Budget, sides: Sides | None) -> tuple[Budget, Sides]:
    """Check that a rule, a budget and sides go together, before any work is done.

    Returns: the budget and the sides, with the rule's defaults where none were given: strength 1 for the soft rules;
    `input` for rules that look at inputs, `both` for the others.

    Raises: InputError.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    if sides not in (None, "both", "input", "output"):
        raise InputError(f"unknown sides {sides!r}; choose both, input or output")
    given = [name for name, value in vars(budget).items() if value is not None]
    if rule == "none" and given:
        raise InputError(f"the rule none protects nothing and takes no {given[0]}")
    if rule in SOFT_RULES and given not in ([], ["strength"]):
        raise InputError(f"the rule {rule} takes a strength, not {given[0]}")
    if rule not in SOFT_RULES and rule != "none":
        if budget.strength is not None:
            raise InputError(f"the rule {rule} takes k, fraction or share; strength belongs to the soft rules")
        if not given:
            raise InputError(f"the rule {rule} needs k, fraction or share")
    if rule == "random" and budget.share is not None:
        raise InputError("random components have no share of an importance; give k or fraction")
    if rule in INPUT_RULES and sides in ("both", "output"):
        raise InputError(f"the rule {rule} protects the input side only; use sides input")
    if rule in SOFT_RULES and not given:
        budget = Budget(strength=DEFAULT_STRENGTH)
    return budget, sides or ("input" if rule in INPUT_RULES else "both")
