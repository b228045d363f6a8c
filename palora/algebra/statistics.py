"""What goes into a matrix: the input covariance C = Σ x xᵀ (n × n) over the tokens of some text, and what follows.

    coverage = tr(Vᵀ C V) / tr(C)                      the share of those inputs' energy inside a protected subspace
    drift    = sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ))         how far an update moves the output on those inputs, relatively

C is kept as a factor F (n × q), its leading eigenvectors E scaled by the square roots of their eigenvalues, in
descending order, and the rest of the energy is taken as spread evenly over the other directions:

    C ≈ F Fᵀ + ρ (I − E Eᵀ),        ρ = (tr C − ‖F‖²) / (n − q)

so tr(M C Mᵀ) = ‖M F‖² + ρ (‖M‖² − ‖M E‖²) for any M. Exact where q = n. A rule that protects leading directions takes
leading columns of E.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from palora.common.errors import InputError
from palora.common.progress import progress_bar
from palora.language.prompts import Example, batches, pad
from palora.language.targets import weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

MAX_DIRECTIONS = 1024  # columns kept of F; a full basis of 14,336 inputs would be 0.8 GB a matrix
MAX_EXACT = 4096  # wider covariances are factorised by subspace iteration: 14,336 takes minutes by eigh
MAX_BYTES = 8 * 2**30  # of covariances in memory at once; a larger model takes several passes over the text


@dataclass(frozen=True)
class InputStatistics:
    """The input covariance of one matrix: `factor` F (n, q) with descending column norms, and `trace` = tr C (1 for
    normalised statistics), which also counts the energy that F leaves out."""

    factor: Tensor
    trace: float

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The leading eigenvalues of C, (q,), descending."""
        return self.factor.square().sum(0)

    @property
    def directions(self) -> Tensor:
        """The leading orthonormal eigenvectors of C, (n, q)."""
        return self.factor / self.factor.norm(dim=0).clamp_min(1e-30)

    @cached_property
    def rest(self) -> float:
        """ρ: the energy of each direction outside the factor, on average."""
        n, q = self.factor.shape
        return max(0.0, self.trace - float(self.eigenvalues.double().sum())) / (n - q) if n > q else 0.0

    def energy(self, M: Tensor) -> float:
        """tr(M C Mᵀ) for M (a, n): the energy of these inputs that M passes on."""
        M, F = M.float(), self.factor.to(M.device)
        kept = float((M @ F).square().sum())
        if self.rest == 0:
            return kept
        E = self.directions.to(M.device)
        return kept + self.rest * max(0.0, float(M.square().sum() - (M @ E).square().sum()))

    def moment(self, A: Tensor) -> Tensor:
        """A C Aᵀ (r, r) for A (r, n), differentiable; the statistics must be on A's device."""
        A, AF = A.float(), A.float() @ self.factor
        if self.rest == 0:
            return AF @ AF.T
        AE = AF / self.eigenvalues.sqrt().clamp_min(1e-30)  # A times the directions, without a second (n, q) matrix
        return AF @ AF.T + self.rest * (A @ A.T - AE @ AE.T)

    def to(self, device: torch.device | str) -> "InputStatistics":
        """The same statistics on another device."""
        return replace(self, factor=self.factor.to(device))

    def coverage(self, basis: Tensor | None) -> float:
        """tr(Vᵀ C V) / tr(C) for an input basis V (n, k); 0 without one."""
        return 0.0 if basis is None else self.energy(basis.T) / self.trace

    def drift(self, delta: Tensor, W: Tensor) -> float:
        """sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)) for ΔW and W (m, n)."""
        return (self.energy(delta) / self.energy(W)) ** 0.5


Covariances = dict[str, Tensor]


def groups(targets: dict[str, nn.Module], max_bytes: int = MAX_BYTES) -> list[dict[str, nn.Module]]:
    """The targets in groups whose covariances (float64, n × n) fit into `max_bytes`; one matrix at least a group."""
    result: list[dict[str, nn.Module]] = [{}]
    used = 0
    for name, module in targets.items():
        size = 8 * weight(module).shape[1] ** 2
        if result[-1] and used + size > max_bytes:
            result.append({})
            used = 0
        result[-1][name] = module
        used += size
    return result


@torch.no_grad()
def collect(
    model: "PreTrainedModel",
    targets: dict[str, nn.Module],
    examples: Sequence[Example],
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Covariances:
    """C = Σ x xᵀ / Σ ‖x‖² at every targeted matrix, over every token of `examples` (prompt and answer).

    Args:
        examples: tokenised texts; padding never enters the sums.
        progress: called with the number of examples each batch finished.

    Returns: for each module path a float64 matrix (n, n) of trace 1, on the module's device. In float32 the soft rule
    would multiply the rounding of the largest eigenvalue by g·n and attenuate directions that were never used (1.3e-4
    of P_R at n = 512, g = 10; 2.5e-3 at n = 2,048, g = 100).

    Raises: InputError without examples.
    """
    if not examples:
        raise InputError("no text to collect statistics from")
    sums: Covariances = {}
    state: dict[str, Tensor] = {}
    with _inputs(targets, sums, state):
        for group in batches([len(e.prompt) + len(e.answer) for e in examples], batch_size):
            ids, attended, _ = pad([examples[i] for i in group], model.device)
            state["mask"] = attended.bool()
            model(input_ids=ids, attention_mask=attended, use_cache=False)
            if progress:
                progress(len(group))
    for name, covariance in sums.items():
        if not torch.isfinite(covariance).all():
            raise InputError(f"the inputs of {name} are not finite: the model is damaged or overflows in its dtype")
    return {name: covariance.div_(covariance.trace()) for name, covariance in sums.items()}


def input_statistics(
    model: "PreTrainedModel", targets: dict[str, nn.Module], examples: Sequence[Example], label: str
) -> dict[str, InputStatistics]:
    """The statistics of one thing at every targeted matrix, in as many passes as memory asks for (`groups`).

    Args:
        label: what the bar calls it.
    """
    found: dict[str, InputStatistics] = {}
    for group in groups(targets):
        with progress_bar(f"Statistics of {label}", len(examples)) as advance:
            found |= mix([(1.0, collect(model, group, examples, progress=advance))])
    return found


@contextmanager
def _inputs(targets: dict[str, nn.Module], sums: Covariances, state: dict[str, Tensor]) -> "Iterator[None]":
    """While open, every targeted module adds the outer products of its unmasked inputs to `sums`."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0][state["mask"]].double()
            if name not in sums:
                sums[name] = torch.zeros(x.shape[-1], x.shape[-1], dtype=x.dtype, device=x.device)
            sums[name].addmm_(x.T, x)

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in targets.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mix(parts: Sequence[tuple[float, Covariances]]) -> dict[str, InputStatistics]:
    """Σ weight_i C_i over several things to keep, each of trace 1, as leading eigenvectors.

    Args:
        parts: (weight, covariances) of each thing; weights are relative.
    """
    total = sum(w for w, _ in parts)
    mixed = {}
    with progress_bar("Leading directions", len(parts[0][1]), transient=True) as advance:
        for name in parts[0][1]:
            mixed[name] = factorise(sum(((w / total) * c[name] for w, c in parts), torch.zeros(())))
            advance(1)
    return mixed


def factorise(covariance: Tensor, max_directions: int = MAX_DIRECTIONS) -> InputStatistics:
    """The leading eigenvectors of C (n, n), scaled by the square roots of their eigenvalues. Exact up to n = 4,096; of
    wider ones the leading subspace is found by randomised subspace iteration (Halko et al., arXiv 0909.4061, 4.4)."""
    C = covariance.double()
    if len(C) > MAX_EXACT:
        tried = min(len(C), max_directions + max_directions // 8 + 8)  # more than kept: the last ones converge slowly
        Q = torch.randn(len(C), tried, generator=torch.Generator().manual_seed(0), dtype=C.dtype).to(C.device)
        for _ in range(6):
            Q = torch.linalg.qr(C @ Q).Q
        eigenvalues, small = torch.linalg.eigh(Q.T @ C @ Q)
        vectors = Q @ small
    else:
        eigenvalues, vectors = torch.linalg.eigh(C)
    order = torch.argsort(eigenvalues, descending=True)[:max_directions]
    scaled = vectors[:, order] * eigenvalues[order].clamp_min(0).sqrt()
    return InputStatistics(scaled.float(), float(covariance.trace()))


def combine(
    kinds: Mapping[str, Mapping[str, InputStatistics]], weights: Mapping[str, float]
) -> dict[str, InputStatistics]:
    """Statistics of several kinds of things to keep as one, by relative weights: Σ wᵢ Cᵢ / Σ wᵢ, from the factors.

    Args:
        kinds: the statistics by matrix, for each kind that there is.

    Raises: InputError where no kind that is there weighs anything.
    """
    used = {kind: weights.get(kind, 0.0) for kind in kinds if weights.get(kind, 0.0) > 0}
    if not used:
        raise InputError("nothing that is to be kept weighs anything: give a skill, known facts, text or prompts")
    if len(used) == 1:
        return dict(kinds[next(iter(used))])
    total = sum(used.values())
    combined = {}
    for name in kinds[next(iter(used))]:
        parts = [(w / total, kinds[kind][name]) for kind, w in used.items()]
        stacked = torch.cat([own.factor.double() * w**0.5 for w, own in parts], dim=1)
        left, sizes, _ = torch.linalg.svd(stacked, full_matrices=False)
        factor = (left * sizes)[:, :MAX_DIRECTIONS].float()
        combined[name] = InputStatistics(factor, sum(w * own.trace for w, own in parts))
    return combined


def to_tensors(kinds: Mapping[str, Mapping[str, InputStatistics]]) -> dict[str, Tensor]:
    """For saving: `<kind>/<module>.factor` (n, q) and `<kind>/<module>.trace` ()."""
    named = {f"{kind}/{name}": own for kind, statistics in kinds.items() for name, own in statistics.items()}
    factors = {f"{name}.factor": own.factor for name, own in named.items()}
    return factors | {f"{name}.trace": torch.tensor(own.trace) for name, own in named.items()}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, InputStatistics]]:
    """The inverse of `to_tensors`: the statistics of each kind (skills, known_facts, text, prompts) that was kept."""
    kinds: dict[str, dict[str, InputStatistics]] = {}
    for key, factor in tensors.items():
        if key.endswith(".factor"):
            label = key.removesuffix(".factor")
            kind, _, name = label.partition("/")
            kinds.setdefault(kind, {})[name] = InputStatistics(factor, float(tensors[f"{label}.trace"]))
    return kinds
