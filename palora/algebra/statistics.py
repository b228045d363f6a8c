"""What goes into a matrix: the input covariance C = Σ x xᵀ (n × n) over the tokens of some text, and what follows.

    coverage = tr(Vᵀ C V) / tr(C)                      the share of those inputs' energy inside a protected subspace
    drift    = sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ))         how far an update moves the output on those inputs, relatively

C is kept as a few columns and one number: its leading directions, and the rest of its energy, taken as spread evenly:

    C ≈ G Gᵀ + ρ I,         G (n, q),       tr C = ‖G‖² + n ρ,       tr(M C Mᵀ) = ‖M G‖² + ρ ‖M‖²

With orthonormal eigenvectors E and eigenvalues λ of C, G = E diag(sqrt(λ − ρ)) and ρ is the mean of the eigenvalues
that G leaves out: exact where q = n (then ρ = 0). Several things to keep are a weighted sum, Σ wᵢ Cᵢ: their columns
side by side, scaled by sqrt(wᵢ), and Σ wᵢ ρᵢ. Nothing is factorised again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from palora.common.errors import InputError

KINDS = ("skills", "known_facts", "text", "prompts")  # of things to keep
MAX_EXACT = 1024  # inputs up to which C itself is summed: 8 MB in float64
SKETCH = 384  # columns of the sketch of a wider C, a quarter of the forward pass's time on a 0.5B model …
DIRECTIONS = 256  # … of which the leading ones are kept: the last ones of a sketch are the least sure
MAX_NORM = 10.0  # an input longer than this many times the median of its batch counts as one of that length
BLOCK = 4096  # rows that are multiplied at once in float32, and then added up in float64


@dataclass(frozen=True)
class InputStatistics:
    """C ≈ G Gᵀ + ρ I of one input: `factor` G (n, q), float32, and `tail` ρ ≥ 0.

    The columns of G are `orthogonal`, longest first, of one thing; not of a mixture."""

    factor: Tensor
    tail: float = 0.0
    orthogonal: bool = True

    @cached_property
    def trace(self) -> float:
        """tr C = ‖G‖² + n ρ; 1 for normalised statistics."""
        return float(self.factor.double().square().sum()) + len(self.factor) * self.tail

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Orthonormal eigenvectors E (n, q) of C and their eigenvalues (q,), descending; all others are ρ.

        Those of a mixture come from the small matrix Gᵀ G = R diag(μ) Rᵀ (q, q), in float64: E = G R diag(μ)^-½.
        """
        G = self.factor
        if self.orthogonal:
            sizes = G.norm(dim=0)
            return G / sizes.clamp_min(1e-30), sizes.square() + self.tail
        wide = G.double()
        mu, R = torch.linalg.eigh(wide.T @ wide)
        mu, R = mu.flip(0), R.flip(1)
        used = mu > 1e-12 * mu[0]
        E = wide @ (R[:, used] / mu[used].sqrt())
        return E.float(), (mu[used] + self.tail).float()

    def energy(self, M: Tensor) -> float:
        """tr(M C Mᵀ) for M (a, n): the energy of these inputs that M passes on."""
        M = M.float()
        kept = float((M @ self.factor.to(M.device)).square().sum())
        return kept + (self.tail * float(M.square().sum()) if self.tail else 0.0)

    def moment(self, A: Tensor) -> Tensor:
        """A C Aᵀ (r, r) for A (r, n), differentiable; the statistics must be on A's device."""
        A = A.float()
        AG = A @ self.factor
        return AG @ AG.T + self.tail * (A @ A.T)

    def coverage(self, basis: Tensor | None) -> float:
        """tr(Vᵀ C V) / tr(C) for an input basis V (n, k); 0 without one."""
        return 0.0 if basis is None else self.energy(basis.T) / self.trace

    def drift(self, delta: Tensor, W: Tensor) -> float:
        """sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)) for ΔW and W (m, n)."""
        return (self.energy(delta) / self.energy(W)) ** 0.5

    def to(self, device: torch.device | str) -> "InputStatistics":
        """The same statistics on another device."""
        return replace(self, factor=self.factor.to(device))


def mixed(parts: Sequence[tuple[float, InputStatistics]]) -> InputStatistics:
    """Σ wᵢ Cᵢ / Σ wᵢ of several things to keep, by relative weights over 0: the columns side by side."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(w for w, _ in parts)
    columns = torch.cat([own.factor * (w / total) ** 0.5 for w, own in parts], dim=1)
    return InputStatistics(columns, sum(w / total * own.tail for w, own in parts), orthogonal=False)


class Covariance:
    """C = Σ x xᵀ of a stream of rows x, in one pass and little memory.

    Up to 1,024 inputs C itself is summed. A wider one never is: Y = C Ω (n, q) is, for a fixed random Ω (n, q), and in
    the end C ≈ Y (Ωᵀ Y)⁻¹ Yᵀ (Nyström; Tropp et al., arXiv 1706.05736). Products are float32 in blocks of rows, sums
    float64: the soft rule multiplies the rounding of the largest eigenvalue by g·n, and with inputs of a real model its
    result is within 1e-6 of float64's at n = 896, g = 1 (5e-6 at g = 10).
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu", sketch: int = SKETCH) -> None:
        self.energy = 0.0  # Σ ‖x‖², which no sketch has to guess
        self.random: Tensor | None = None
        width = inputs
        if inputs > MAX_EXACT:
            width = min(sketch, inputs)
            self.random = _random(inputs, width).to(device)
        self.sum = torch.zeros(inputs, width, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Count the rows (tokens, n); those longer than `MAX_NORM` times the median are shortened to that."""
        rows = shortened(rows.float())
        self.energy += float(rows.norm(dim=1).double().square().sum())
        for block in rows.split(BLOCK):
            self.sum += block.T @ (block if self.random is None else block @ self.random)

    def statistics(self, directions: int = DIRECTIONS) -> InputStatistics:
        """The leading directions of C / tr C and its tail; all n of them where C itself was summed.

        Raises: InputError where the rows were not finite, or all of them 0.
        """
        if not torch.isfinite(self.sum).all() or not self.energy > 0:
            raise InputError("not finite, or nothing but zeros: the model is damaged or overflows in its dtype")
        total = self.sum / self.energy
        if self.random is None:
            return factorise(total, len(total))
        eigenvalues, vectors = self._nystrom(total, self.random.double())
        return _leading(eigenvalues, vectors, 1.0, directions)

    @staticmethod
    def _nystrom(Y: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues (q,) and eigenvectors (n, q) of Y (Ωᵀ Y)⁺ Yᵀ. What is below a millionth of the largest eigenvalue
        of Ωᵀ Y is the rounding of float32, and is left to the tail."""
        small = random.T @ Y
        mu, R = torch.linalg.eigh((small + small.T) / 2)
        used = mu > 1e-6 * mu[-1]
        half = Y @ (R[:, used] / mu[used].sqrt())  # C ≈ half halfᵀ
        eigenvalues, S = torch.linalg.eigh(half.T @ half)
        return eigenvalues, half @ (S / eigenvalues.clamp_min(1e-30).sqrt())


@lru_cache(maxsize=4)
def _random(n: int, q: int) -> Tensor:
    """Ω (n, q), orthonormal, the same for every input of that width."""
    return torch.linalg.qr(torch.randn(n, q, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q.float()


def shortened(rows: Tensor) -> Tensor:
    """Rows (tokens, n) with those of more than `MAX_NORM` times the median norm cut to it.

    A few tokens of a pretrained model have inputs a hundred times as long as the others ("massive activations"). With
    one in 200 of them C is nearly theirs alone: a coverage of 0.98 while 55% of the ordinary inputs' energy passes.
    """
    norms = rows.norm(dim=1, keepdim=True)
    limit = MAX_NORM * norms.median() if len(rows) else norms
    return rows * (limit / norms.clamp_min(1e-30)).clamp_max(1.0) if bool((norms > limit).any()) else rows


def factorise(covariance: Tensor, directions: int = MAX_EXACT) -> InputStatistics:
    """A covariance (n, n) as its leading eigenvectors and its tail, in float64."""
    C = covariance.double()
    eigenvalues, vectors = torch.linalg.eigh(C)
    return _leading(eigenvalues, vectors, float(C.trace()), directions)


def _leading(eigenvalues: Tensor, vectors: Tensor, trace: float, directions: int) -> InputStatistics:
    """G and ρ from eigenvalues (q,) and eigenvectors (n, q), in any order, of a C whose trace is known."""
    order = eigenvalues.argsort(descending=True)[:directions]
    kept, n = eigenvalues[order].clamp_min(0), len(vectors)
    tail = max(0.0, trace - float(kept.sum())) / (n - len(order)) if n > len(order) else 0.0
    factor = vectors[:, order] * (kept - tail).clamp_min(0).sqrt()
    return InputStatistics(factor.float(), tail)


# --- of everything that is to be kept --------------------------------------------------------------


@dataclass(frozen=True)
class KeptInputs:
    """The inputs of one thing to keep: its kind, its name, and the statistics by the first matrix that reads each."""

    kind: str
    name: str
    of: Mapping[str, InputStatistics]


def weighed(things: Sequence[Any], weights: Mapping[str, float]) -> list[tuple[float, Any]]:
    """The things to keep that weigh anything, each with its share of its kind's weight."""
    count = Counter(thing.kind for thing in things)
    return [(w / count[thing.kind], thing) for thing in things if (w := weights.get(thing.kind, 0.0)) > 0]


@dataclass(frozen=True)
class Statistics:
    """The inputs of everything that is to be kept, one list: never a mixture. `inputs` says which input each targeted
    matrix reads: gate and up the same one."""

    things: tuple[KeptInputs, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.things)

    @property
    def kinds(self) -> list[str]:
        """Which kinds of things there are."""
        return list(dict.fromkeys(thing.kind for thing in self.things))

    def weighed(self, weights: Mapping[str, float], names: Iterable[str] | None = None) -> dict[str, InputStatistics]:
        """Σ wᵢ Cᵢ / Σ wᵢ for every matrix (of `names`): a kind's weight is shared by its things.

        Raises: InputError where no kind that is there weighs anything.
        """
        used = weighed(self.things, weights)
        if not used:
            raise InputError("nothing that is to be kept weighs anything: give a skill, known facts, text or prompts")
        sums: dict[str, InputStatistics] = {}
        found = {}
        for name in self.inputs if names is None else names:
            key = self.inputs[name]
            if key not in sums:
                sums[key] = mixed([(w, thing.of[key]) for w, thing in used])
            found[name] = sums[key]
        return found

    def skills(self, names: Iterable[str] | None = None) -> dict[str, InputStatistics]:
        """The statistics of the skills alone, which coverage and drift are reported on; empty without one."""
        return self.weighed({"skills": 1.0}, names) if "skills" in self.kinds else {}

    def tensors(self) -> dict[str, Tensor]:
        """For saving: `<kind>/<name>/<input>.factor` (n, q) and `.tail` ()."""
        found = {}
        for thing in self.things:
            for key, own in thing.of.items():
                found[f"{thing.kind}/{thing.name}/{key}.factor"] = own.factor
                found[f"{thing.kind}/{thing.name}/{key}.tail"] = torch.tensor(own.tail, dtype=torch.float64)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], inputs: Mapping[str, str]) -> "Statistics":
        """The inverse of `tensors`."""
        things: dict[tuple[str, str], dict[str, InputStatistics]] = {}
        for label, factor in tensors.items():
            if label.endswith(".factor"):
                kind, _, rest = label.removesuffix(".factor").partition("/")
                name, _, key = rest.rpartition("/")
                tail = float(tensors[label.removesuffix(".factor") + ".tail"])
                things.setdefault((kind, name), {})[key] = InputStatistics(factor, tail)
        ordered = sorted(
            things.items(), key=lambda item: KINDS.index(item[0][0]) if item[0][0] in KINDS else len(KINDS)
        )
        return cls(tuple(KeptInputs(kind, name, of) for (kind, name), of in ordered), dict(inputs))
