"""Where a skill lives in the singular spectrum of a model's matrices: W = U diag(s) Vᵀ, component i is (u_i, s_i, v_i).

Five views of the same components, derived in docs/spectrum.md:

    removal     W + U diag(s · (z − 1)) Vᵀ with z = 0 (or a factor) on a band, else 1: what is lost with the band?
    gradient    dL/dz_i = s_i u_iᵀ (dL/dW) v_i: what does the loss on worked solutions ask of a scale?
    scales      z_i of an expert: what did training on the skill do with it?
    overlap     v_iᵀ C v_i / tr C: how much of the skill's input energy (C = Σ x xᵀ) enters through it?
    alignment   ‖U_kᵀ ΔW V_k‖² / ‖ΔW‖²: how much of an update lies in a subspace?

A removal has a drift too: how far it moves the outputs, sqrt(Σ (s_i (z_i − 1))² o_i / Σ s_i² o_i) for the overlaps o.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palora.algebra.decomposition import Decomposition
from palora.algebra.scales import expert_delta
from palora.algebra.statistics import InputStatistics
from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.bench.settings import SpectrumSettings
from palora.common.files import read_json, write_json
from palora.common.module_names import split_module
from palora.common.progress import progress_bar
from palora.data.facts import Fact
from palora.data.skills import Problem, Skill
from palora.language.collect import collect, shared_inputs
from palora.language.keep import skill_examples
from palora.language.prompts import Example, batches, encode_example
from palora.language.scoring import Answer, ask_facts, solve, wilson
from palora.language.targets import find_targets, is_transposed, weight
from palora.results.updates import Adapter
from palora.training.expert import sequence_log_probability
from palora.training.svf import Expert, decompose_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARKER = "spectrum.json"
BANDS = ("top", "middle", "bottom", "random")
ALL = "all"  # the part that is every targeted matrix


@dataclass(frozen=True)
class Band:
    """Some components of each matrix of a part of the model.

    Args:
        kind: top, middle, bottom, random, slice (from `start`), or expert (those it moved most).
        fraction: its width, of the r components of a matrix.
        part: `all`, a layer, or a kind of matrix.
        start: where a slice begins, as a fraction of the spectrum.
        draw: which one of several random bands.
    """

    kind: str
    fraction: float
    part: str = ALL
    start: float = 0.0
    draw: int = 0

    def indices(self, rank: int, importance: Tensor | None, generator: torch.Generator) -> Tensor:
        """The components (k,) of a matrix with `rank` of them.

        Args:
            importance: (r,), what the kind `expert` goes by.
            generator: seeded, for `random`.
        """
        count = max(1, round(self.fraction * rank))
        if self.kind == "random":
            return torch.randperm(rank, generator=generator)[:count].sort().values
        if self.kind == "expert":
            assert importance is not None, "bands of the kind expert are only made where there is one"
            return importance.argsort(descending=True, stable=True)[:count].sort().values
        if self.kind == "slice":
            return torch.arange(round(self.start * rank), round((self.start + self.fraction) * rank))
        start = {"top": 0, "middle": (rank - count) // 2, "bottom": rank - count}[self.kind]
        return torch.arange(start, start + count)


def parts(names: Sequence[str]) -> dict[str, list[str]]:
    """The parts of a model that bands are removed from: all matrices, each layer, each kind of matrix."""
    found: dict[str, list[str]] = {ALL: list(names)}
    for name in names:
        layer = split_module(name)[0]
        if layer is not None:
            found.setdefault(f"layer {layer}", []).append(name)
    for name in names:
        found.setdefault(split_module(name)[1], []).append(name)
    return {part: members for part, members in found.items() if part == ALL or len(members) < len(names)}


def plan(names: Sequence[str], settings: SpectrumSettings, with_expert: bool) -> list[Band]:
    """Every band that is measured: widths and slices on the whole model, one width on each of its parts."""
    kinds = (*BANDS, "expert") if with_expert else BANDS
    whole = [
        Band(kind, fraction, draw=draw)
        for fraction in settings.fractions
        for kind in kinds
        for draw in range(settings.draws if kind == "random" else 1)
    ]
    width = 1 / settings.slices
    whole += [Band("slice", width, start=i * width) for i in range(settings.slices)]
    return whole + [Band(kind, settings.part_fraction, part) for part in parts(names) if part != ALL for kind in kinds]


# --- algebra --------------------------------------------------------------------------------------


def scale_gradient(d: Decomposition, gradient: Tensor) -> Tensor:
    """dL/dz_i = s_i u_iᵀ (dL/dW) v_i, (r,), from dL/dW (m, n): the gradient of L at W(z) = U diag(s · z) Vᵀ, z = 1."""
    return d.s * ((d.U.T @ gradient.float()) * d.Vh).sum(1)


def overlap(d: Decomposition, inputs: InputStatistics) -> Tensor:
    """o_i = v_iᵀ C v_i / tr C, (r,), for an input covariance C ≈ G Gᵀ + ρ I: the share of the inputs' energy that
    enters through each component. They add up to 1 where W has no null space (m ≥ n)."""
    G = inputs.factor.to(d.Vh)
    return ((d.Vh @ G).square().sum(1) + inputs.tail) / inputs.trace


def removal_drift(d: Decomposition, z: Tensor, overlaps: Tensor) -> float:
    """sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)) of ΔW = U diag(s (z − 1)) Vᵀ, from the overlaps o (r,) with C alone:
    sqrt(Σ (s_i (z_i − 1))² o_i / Σ s_i² o_i), because the u_i are orthonormal."""
    energy = d.s.to(overlaps).square() * overlaps
    return float(((z.to(overlaps) - 1).square() * energy).sum().div(energy.sum()).sqrt())


def alignment(delta: Tensor, subspace: ProtectedSubspace) -> float:
    """‖Uᵀ ΔW V‖² / ‖ΔW‖² (Frobenius) for ΔW (m, n): the share of the update inside the subspace on both sides at once.
    A missing side counts as the whole space; 0 for no update. A soft V weighs each direction by its protection."""
    inside = delta if subspace.input is None else delta @ subspace.input
    inside = inside if subspace.output is None else subspace.output.T @ inside
    return float(inside.square().sum() / delta.square().sum().clamp_min(1e-30))


def chance_alignment(shape: torch.Size, subspace: ProtectedSubspace) -> float:
    """What `alignment` is on average for a ΔW (m, n) of independent random entries: ‖U‖² ‖V‖² / (m n)."""
    m, n = shape
    inside = n if subspace.input is None else float(subspace.input.square().sum())
    return inside * (m if subspace.output is None else float(subspace.output.square().sum())) / (m * n)


# --- the model ------------------------------------------------------------------------------------


@contextmanager
def rescaled(
    modules: Mapping[str, nn.Module], decompositions: Mapping[str, Decomposition], scales: Mapping[str, Tensor]
) -> Iterator[None]:
    """While open, the weight of every matrix in `scales` is W(z); afterwards, however the block ends, it is the same as
    before to the bit.

    Args:
        scales: z (r,) by module path; matrices that are not named stay as they are.
    """
    before = {name: weight(modules[name]).clone() for name in scales}
    try:
        for name, z in scales.items():
            W, d = weight(modules[name]), decompositions[name]
            W.copy_(before[name].float() + expert_delta(d, z.to(d.s)))
        yield
    finally:
        for name, W in before.items():
            weight(modules[name]).copy_(W)


def scale_gradients(
    model: "PreTrainedModel",
    modules: Mapping[str, nn.Module],
    decompositions: Mapping[str, Decomposition],
    examples: Sequence[Example],
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The gradient of the mean loss of the answers' tokens in every scale, and its standard error over the batches.

    Returns: (dL/dz (r,), its error (r,)) by module path; an error of 0 where there is one batch only.
    """
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    stored: list[Any] = [module.weight for module in modules.values()]
    per_batch: dict[str, list[Tensor]] = {name: [] for name in modules}
    tokens: list[int] = []
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in stored:
            parameter.requires_grad_(True)
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            with torch.enable_grad():
                gradients = torch.autograd.grad(-sequence_log_probability(model, part).sum(), stored)
            for (name, module), G in zip(modules.items(), gradients, strict=True):
                per_batch[name].append(scale_gradient(decompositions[name], G.T if is_transposed(module) else G).cpu())
            tokens.append(sum(len(e.answer) for e in part))
            if progress:
                progress(len(part))
    finally:
        for parameter, needed in trainable.items():
            parameter.requires_grad_(needed)
    T = torch.tensor(tokens, dtype=torch.float32)[:, None]
    result = {}
    for name, rows in per_batch.items():
        g = torch.stack(rows)  # (batches, r), each the gradient of a sum over tokens
        mean = g.sum(0) / T.sum()
        spread = (g - T * mean).square().sum(0) * len(g) / max(1, len(g) - 1)
        result[name] = (mean, spread.sqrt() / T.sum())
    return result


@torch.no_grad()
def perplexity(model: "PreTrainedModel", examples: Sequence[Example], batch_size: int = 64) -> float:
    """exp(mean loss of a token of the answers), each given what stands before it. Infinite where exp overflows."""
    total = 0.0
    for group in batches([len(e.prompt) + len(e.answer) for e in examples], batch_size):
        total -= float(sequence_log_probability(model, [examples[i] for i in group]).double().sum())
    mean = total / sum(len(e.answer) for e in examples)
    return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Beside:
    """What a spectrum is looked at with besides: known facts (asked after every removal), passages of text (for their
    perplexity), an expert's scales, and an adapter's update under its protection."""

    known_facts: Sequence[Fact] = ()
    text: Sequence[str] = ()
    expert: Expert | None = None
    adapter: Adapter | None = None
    protection: ProtectedSubspaces | None = None


@torch.no_grad()
def measure_spectrum(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    skill: Skill,
    settings: SpectrumSettings,
    beside: Beside,
    targets: list[str] | None = None,
    seed: int = 0,
    work: Path | None = None,
    identity: str = "",
) -> dict[str, Any]:
    """All five views of a skill in a model; the model comes back as it was.

    Args:
        targets: endings of the targeted matrices, by default the expert's, or the MLP matrices.
        work: a folder where finished measurements are kept, so that an interrupted run continues.
        identity: of everything that is asked and of whom; measurements of another one are done again.

    Returns: the content of `spectrum.json` (docs/spectrum.md).

    Raises: InputError where model, expert and adapter do not belong together, or the skill has no right answer.
    """
    expert, adapter = beside.expert, beside.adapter
    modules = expert.targets(model, "the model", targets) if expert else find_targets(model, targets)
    if adapter is not None:
        adapter.check(dict(model.named_modules()))
    decompositions = dict(decompose_targets(model, modules))
    kept = {"skill": skill_examples(model, tokenizer, skill, settings.examples)}
    if beside.known_facts:
        known = beside.known_facts[: settings.examples]
        kept["known_facts"] = [encode_example(tokenizer, f.question, f.answer) for f in known]
    inputs = shared_inputs(model, modules)
    overlaps = {kind: _overlaps(model, modules, inputs, decompositions, texts, kind) for kind, texts in kept.items()}
    with progress_bar("Gradient of the scales", len(kept["skill"])) as advance:
        gradients = scale_gradients(model, modules, decompositions, kept["skill"], settings.batch_size, advance)

    problems = skill.problems("test", settings.problems, seed)
    texts = _texts(tokenizer, kept, problems, beside.text)
    exam = _Exam(model, tokenizer, skill, problems, beside.known_facts, texts, settings)
    log = _Measured(work / "measured.json" if work else None, identity)
    bands = plan(list(modules), settings, expert is not None)
    removals = []
    with progress_bar("Removing bands", len(bands) + 1) as advance:
        base = log.get("base", exam.sit)
        advance(1)
        for band in bands:
            z = band_scales(band, modules, decompositions, settings.scale, expert, seed)
            with rescaled(modules, decompositions, z):
                measured = log.get(repr(band), exam.sit)
            drifts = [removal_drift(decompositions[n], z[n], overlaps["skill"][n]) if n in z else 0.0 for n in modules]
            removals.append({**asdict(band), **measured, "drift": sum(drifts) / len(drifts)})
            advance(1)
    return {
        "kind": "spectrum",
        "skill": skill.name,
        "settings": settings.model_dump(),
        "seed": seed,
        "base": base,
        "removals": removals,
        "matrices": {
            name: {
                "singular_values": _rounded(d.s),
                "gradient": _rounded(gradients[name][0]),
                "gradient_error": _rounded(gradients[name][1]),
                "overlap": {kind: _rounded(of[name]) for kind, of in overlaps.items()},
                "scales": _rounded(expert.scales[name]) if expert else None,
                "alignment": _alignment(adapter, beside.protection, name, d, settings.fractions),
            }
            for name, d in decompositions.items()
        },
    }


def _texts(
    tokenizer: "PreTrainedTokenizerBase",
    kept: Mapping[str, Sequence[Example]],
    problems: Sequence[Problem],
    text: Sequence[str],
) -> dict[str, Sequence[Example]]:
    """What perplexities are measured on: the test problems where they have solutions, the known facts, the text."""
    texts = dict(kept)
    if all(p.solution is not None for p in problems):
        texts["skill"] = [encode_example(tokenizer, p.prompt, p.solution or "") for p in problems]
    if text:
        rows = [tokenizer(passage, truncation=True, max_length=512)["input_ids"] for passage in text]
        texts["text"] = [Example(row[:1], row[1:]) for row in rows if len(row) > 1]
    return texts


def band_scales(
    band: Band,
    modules: Mapping[str, nn.Module],
    decompositions: Mapping[str, Decomposition],
    scale: float,
    expert: Expert | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """z (r,) of every matrix in the band's part: `scale` on the band, 1 elsewhere."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + band.draw)
    scales = {}
    for name in parts(list(modules))[band.part]:
        z = torch.ones(decompositions[name].rank)
        importance = (expert.scales[name] - 1).abs() if expert else None
        z[band.indices(len(z), importance, generator)] = scale
        scales[name] = z
    return scales


@dataclass(frozen=True)
class _Exam:
    """What is asked after every removal: questions, answered freely, and texts, for their perplexity."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    skill: Skill
    problems: Sequence[Problem]
    known_facts: Sequence[Fact]
    texts: Mapping[str, Sequence[Example]]
    settings: SpectrumSettings

    def sit(self) -> dict[str, Any]:
        """Accuracy on the skill and on the known facts, and the perplexities, as JSON."""
        size, limit = self.settings.batch_size, self.settings.max_answer_tokens
        solved = solve(self.model, self.tokenizer, self.skill, self.problems, size)
        asked = ask_facts(self.model, self.tokenizer, self.known_facts, None, limit, size) if self.known_facts else []
        found = {kind: perplexity(self.model, examples, size) for kind, examples in self.texts.items()}
        return {
            "skill": _share(solved),
            "known_facts": _share(asked) if asked else None,
            "perplexity": {kind: value if math.isfinite(value) else None for kind, value in found.items()},
        }


@dataclass
class _Measured:
    """The measurements that are done, in a file as soon as they are, where there is a `path`."""

    path: Path | None
    identity: str

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        done: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            stored = read_json(self.path, "identity", "done")
            done = stored["done"] if stored["identity"] == self.identity else {}
        if key not in done:
            done[key] = measure()
            if self.path is not None:
                write_json(self.path, {"identity": self.identity, "done": done})
        found: dict[str, Any] = done[key]
        return found


def _overlaps(
    model: "PreTrainedModel",
    modules: Mapping[str, nn.Module],
    inputs: Mapping[str, str],
    decompositions: Mapping[str, Decomposition],
    examples: Sequence[Example],
    kind: str,
) -> dict[str, Tensor]:
    found = collect(model, modules, inputs, examples, kind.replace("_", " "))
    return {name: overlap(decompositions[name], found[inputs[name]]).cpu() for name in modules}


def _alignment(
    adapter: Adapter | None,
    protection: ProtectedSubspaces | None,
    name: str,
    d: Decomposition,
    fractions: Sequence[float],
) -> dict[str, Any] | None:
    """The alignment of one matrix's update with its dominant components, one a fraction, and with its protection."""
    if adapter is None or name not in adapter.A:
        return None
    delta = adapter.delta(name).to(d.s.device)
    counts = [max(1, round(f * d.rank)) for f in fractions]
    dominant = [ProtectedSubspace(d.Vh[:k].T, d.U[:, :k]) for k in counts]
    result: dict[str, Any] = {
        "dominant": [alignment(delta, s) for s in dominant],
        "dominant_chance": [chance_alignment(delta.shape, s) for s in dominant],
        "protected": None,
        "protected_chance": None,
    }
    if protection is not None and name in protection:
        subspace = protection[name].to(delta.device)
        result["protected"] = alignment(delta, subspace)
        result["protected_chance"] = chance_alignment(delta.shape, subspace)
    return result


def _share(answers: Sequence[Answer]) -> dict[str, Any]:
    right = sum(a.correct for a in answers)
    return {"accuracy": right / len(answers), "n": len(answers), "ci95": list(wilson(right, len(answers)))}


def _rounded(values: Tensor) -> list[float]:
    """Five significant digits: a file that can be read."""
    return [float(f"{x:.5g}") for x in values.tolist()]
