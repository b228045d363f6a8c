"""What may be added to the loss of stage 2, so that what is kept weighs in while the facts are learned:

    drift      λ / N · mean over the matrices of tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)     needs only the input covariances C
    replay     ρ · the next-token loss on rows of what is kept
    distil     κ · KL(start ‖ now) on the same rows: the model as it was before stage 2 is its own teacher

The loss of the facts is a mean over the answer tokens of their N rows, so λ stands beside N times that: more facts
weigh more against what is kept, as more evidence does against a prior. With λ / N fixed at 100, 200 facts were learned
and 1,000 stopped at 92%.

The last two show the model rows that it can already answer. None of them is a constraint; all can stand beside one.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palora.algebra.statistics import InputStatistics
from palora.common.errors import InputError
from palora.common.ranks import processes
from palora.language.keep import Kept
from palora.language.logits import answer_logits, by_slices
from palora.language.prompts import Example, pad
from palora.language.targets import weight as matrix
from palora.training.lora import factors
from palora.training.sharding import share

Term = Callable[[Any, int], Tensor]  # (the model in training, the step) -> what is added to the loss


class Drift:
    """λ · the mean over the matrices of drift² = tr(ΔW C ΔWᵀ) / tr(W C Wᵀ), of a LoRA model in training.

    With ΔW = c B A it is c² tr(Bᵀ B · A C Aᵀ) / tr(W C Wᵀ): products of r columns, never a matrix of W's size.

    Args:
        statistics: of the inputs that count, at every taught matrix.
        modules: each taught matrix's module, before training; read one at a time, as a quantised one is copied.
        weight: λ; may be changed while training.

    Raises: InputError without statistics of a taught matrix.
    """

    def __init__(
        self, statistics: Mapping[str, InputStatistics], modules: Mapping[str, nn.Module], weight: float = 0.0
    ) -> None:
        if not statistics or not set(modules) <= set(statistics):
            raise InputError("inject.drift needs the statistics of what is kept: make the protection with --skill")
        on = {name: next(module.parameters()).device for name, module in modules.items()}
        self.statistics = {name: statistics[name].to(device) for name, device in on.items()}
        self.energies = {name: self.statistics[name].energy(matrix(own)) for name, own in modules.items()}
        self.weight = weight

    def squares(self, model: nn.Module) -> Tensor:
        """drift² of every matrix, differentiable, (matrices,)."""
        found = factors(model, list(self.statistics))
        return torch.stack(
            [
                scaling**2 * ((B.T.float() @ B.float()) * self.statistics[name].moment(A)).sum() / self.energies[name]
                for name, (A, B, scaling) in found.items()
            ]
        )

    def __call__(self, model: nn.Module, step: int) -> Tensor:
        return self.weight * self.squares(model).mean()

    @torch.no_grad()
    def by_matrix(self, model: nn.Module) -> dict[str, float]:
        """The drift of every matrix now."""
        drifts = self.squares(model).clamp_min(0).sqrt().tolist()
        return {name: round(value, 6) for name, value in zip(self.statistics, drifts, strict=True)}


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """Σ KL(before ‖ now) of logits (places, vocabulary), in nats, differentiable."""

    def of(before: Tensor, now: Tensor) -> Tensor:
        log_p, log_q = before.float().log_softmax(-1), now.float().log_softmax(-1)
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    return torch.stack(by_slices(of, before, now)).sum()


@torch.no_grad()
def kl_from_base(model: Any, examples: Sequence[Example]) -> float:
    """KL(base ‖ now) of a PEFT model, the mean over the answers' tokens, in nats."""
    total, tokens = 0.0, 0
    for example in examples:
        row = pad([example], next(model.parameters()).device)
        now = answer_logits(model, *row)
        with model.disable_adapter():
            before = answer_logits(model, *row)
        total += float(divergence(before, now))
        tokens += len(now)
    return total / max(tokens, 1)


class Rehearsal:
    """Replay and distillation: a batch of kept rows beside every batch of facts.

    The rows of a step are drawn anew from the things to keep, by their weights; they depend on the seed and the step
    only, so that a resumed training sees the same ones.

    Args:
        replay, distil: ρ and κ, one of them over 0.
        kept: the things to keep, each with its weight.
        batch_size: rows a step.

    Raises: InputError where nothing is kept.
    """

    def __init__(
        self, replay: float, distil: float, kept: Sequence[tuple[float, Kept]], batch_size: int, seed: int
    ) -> None:
        self.kept = [(weight, thing) for weight, thing in kept if weight > 0 and thing.examples]
        if not self.kept:
            raise InputError("replay and distil need something to keep: give a skill, known facts or text")
        self.replay, self.distil, self.batch_size, self.seed = replay, distil, batch_size, seed

    def rows(self, step: int) -> list[Example]:
        """The kept rows of a step."""
        rng = random.Random(f"{self.seed}/{step}")
        drawn = rng.choices(self.kept, [weight for weight, _ in self.kept], k=self.batch_size)
        return [rng.choice(thing.examples) for _, thing in drawn]

    def __call__(self, model: Any, step: int) -> Tensor:
        rows = self.rows(step)
        own = share(rows)
        ids, _, answers = batch = pad(own, next(model.parameters()).device)
        now = answer_logits(model, *batch)
        loss = torch.zeros((), device=now.device)
        if self.replay:
            loss = loss + self.replay * F.cross_entropy(now.float(), ids[:, 1:][answers])
        if self.distil:
            with torch.no_grad(), model.disable_adapter():
                before = answer_logits(model, *batch)
            loss = loss + self.distil * divergence(before, now) / len(now)
        # The losses of several processes are averaged: that of each weighs as many tokens as its rows have.
        parts = 1 if len(own) == len(rows) else processes()
        every = sum(len(row.answer) or len(row.prompt) - 1 for row in rows)
        return loss * (parts * len(now) / every)
