"""What a run costs, counted from sizes alone: bytes, and floating-point operations. Pure functions.

Letters as in the formulas below, of one model (`Sizes`):

    P parameters     L layers      h width      V vocabulary      a width of all queries      k width of all keys
    i outputs of the matrices that lead into an MLP, of a layer      W the weights that every token is multiplied with
    e bytes of a number: 4 in float32, 2 in bfloat16      r rank of the adapter      (m, n) shape of a taught matrix

Everything is the largest that is held at once, so of a step that rises and falls its peak. Counted for the Llama kind
of layer (two norms, attention, an MLP): other kinds differ by what they keep of a token. Attention is one kernel's,
which keeps no (tokens × tokens) matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

from palora.algebra.statistics import DIRECTIONS, MAX_EXACT, SKETCH
from palora.language.logits import SLICE

# Measured on a CPU (glibc, float32); of a GPU neither is known, and only what is counted stands here.
LIBRARIES = 460 * 2**20  # the process itself: Python, torch, transformers, a tokenizer
TRAINER = 120 * 2**20  # what training imports beside them: TRL, accelerate, datasets
HELD = 1.5  # what a step takes and gives back, with what the allocator keeps of it in pieces too small to use
TILES = {True: 6, False: 1}  # copies of a tile of logits: TRL folds it in place on a GPU, in plain torch on a CPU
ADAM = 16  # bytes of a trained number: itself, its gradient, and AdamW's two moments, in float32
TILE = (4096, 32768)  # tokens and words whose logits TRL has at once


@dataclass(frozen=True)
class Matrix:
    """A taught matrix (m, n); `own` is False where it reads the input of the one before it, as up does gate's."""

    m: int
    n: int
    own: bool = True


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model; see the letters above. `taught` are the matrices of all layers that a protection holds
    and an adapter teaches; `gate` whether the MLP multiplies two of its inner states."""

    parameters: int
    layers: int
    width: int
    vocabulary: int
    queries: int
    keys: int
    inner: int
    gate: bool
    multiplied: int
    taught: tuple[Matrix, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of as many tokens that go through the model at once."""

    rows: int
    tokens: int

    @property
    def size(self) -> int:
        """Tokens, padding too."""
        return self.rows * self.tokens


def weights(sizes: Sizes, e: int, bits: int | None = None) -> int:
    """P · e: the model. A checkpoint is read into it matrix by matrix. With 4 or 8 `bits` (`load: 4bit`) the linear
    layers but the one that makes words, Q numbers, take bits / 8 · Q, and in 4 bits a byte for each 64 of them; and the
    largest of them e a number, where it is in use."""
    if bits is None:
        return sizes.parameters * e
    Q = sizes.multiplied - sizes.vocabulary * sizes.width
    in_use = max(own.m * own.n for own in sizes.taught)
    return (sizes.parameters - Q + in_use) * e + Q * bits // 8 + (Q // 64 if bits == 4 else 0)


def adapter(sizes: Sizes, r: int) -> int:
    """Σ r (m + n) numbers: A (r, n) and B (m, r) of every taught matrix."""
    return sum(r * (own.m + own.n) for own in sizes.taught)


def trained(sizes: Sizes, r: int) -> int:
    """16 Σ r (m + n): the adapter, its gradient and AdamW's two moments, in float32."""
    return ADAM * adapter(sizes, r)


def columns(n: int, things: int = 1) -> int:
    """Directions that are kept of an input of n numbers: all n up to 1,024, else 256 of each of the `things`."""
    return n if n <= MAX_EXACT else min(n, DIRECTIONS * things)


def statistics(sizes: Sizes, things: int) -> int:
    """4 · things · Σ n · columns(n) over the inputs: what is known of everything that is to be kept, in float32."""
    return 4 * things * sum(own.n * columns(own.n) for own in sizes.taught if own.own)


def mixture(sizes: Sizes, things: int) -> int:
    """4 Σ n · (columns of all things side by side) over the inputs; of one thing nothing, it is the thing itself."""
    return statistics(sizes, things) if things > 1 else 0


def soft_bases(sizes: Sizes, things: int) -> int:
    """4 Σ n · columns(n) over the matrices: V of the soft rule, read from its file matrix by matrix."""
    return 4 * sum(own.n * columns(own.n, things) for own in sizes.taught)


def hard_bases(sizes: Sizes, k: int, sides: int) -> int:
    """4 k Σ (n, or m + n on both sides): V and U of k protected directions a matrix."""
    return 4 * k * sum(own.n + (own.m if sides == 2 else 0) for own in sizes.taught)


def sums(sizes: Sizes) -> int:
    """8 Σ n · (n up to 1,024, else 384): the running sums in float64 of one thing that is read."""
    return 8 * sum(own.n * (own.n if own.n <= MAX_EXACT else SKETCH) for own in sizes.taught if own.own)


def decompositions(sizes: Sizes) -> int:
    """4 Σ min(m, n) (m + n + 1): U, s and Vᵀ of every matrix in float32, as they lie on the disk."""
    return sum(map(decomposition, sizes.taught))


def decomposition(own: Matrix) -> int:
    """4 min(m, n) (m + n + 1): U, s and Vᵀ of one matrix in float32."""
    return 4 * min(own.m, own.n) * (own.m + own.n + 1)


def layer_state(sizes: Sizes, r: int, dropout: bool, e: int) -> float:
    """Bytes of a token that a layer keeps for the gradient:

    4 · 2 h                 the inputs of both norms, which are taken in float32
    e · 4 a                 queries, keys, values and the attention's output; keys are repeated for their queries
    e · (i, and i / 2 where there is a gate)        inner states before and after the nonlinearity
    e · Σ n                 the inputs of the taught matrices, each once; with dropout 2 Σ n, each by itself
    e · r                   A x of every taught matrix
    """
    inputs = sum((2 if dropout else own.own) * own.n for own in sizes.taught) / sizes.layers
    inner = sizes.inner * (1.5 if sizes.gate else 1)
    ranks = r * len(sizes.taught) / sizes.layers
    return 8 * sizes.width + e * (4 * sizes.queries + inner + inputs + ranks)


def activations(sizes: Sizes, batch: Batch, r: int, dropout: bool, e: int, checkpointing: bool = False) -> int:
    """L · tokens · `layer_state`; with gradient checkpointing L · tokens · e h, and one layer's state."""
    state = layer_state(sizes, r, dropout, e)
    kept = sizes.layers * e * sizes.width + state if checkpointing else sizes.layers * state
    return round(batch.size * kept)


def fact_logits(sizes: Sizes, batch: Batch, e: int, cpu: bool) -> int:
    """Tile of TRL's loss: e · (tokens up to 4,096) · (words up to 32,768), 6 times on a CPU; the logits are never
    whole."""
    return TILES[cpu] * e * min(batch.size, TILE[0]) * min(sizes.vocabulary, TILE[1])


def kept_logits(sizes: Sizes, answers: int, e: int) -> int:
    """V (4 e · answer tokens + 24 · slice): of distillation or replay, the logits of the answers now and before, the
    gradient of these, once more where rows are of other lengths; and of a slice of them six copies in float32."""
    return sizes.vocabulary * (4 * e * answers + 24 * min(SLICE, answers))


def cache(sizes: Sizes, batch: Batch, e: int) -> int:
    """2 e L k · tokens: keys and values of every token of the answers that are written at once."""
    return 2 * e * sizes.layers * sizes.keys * batch.size


def reading(sizes: Sizes, batch: Batch, e: int) -> int:
    """e · tokens · (3 h + 2 a + i, and i / 2 for a gate): the states of one layer, which no gradient needs later."""
    inner = sizes.inner * (1.5 if sizes.gate else 1)
    return round(e * batch.size * (3 * sizes.width + 2 * sizes.queries + inner))


def generation(sizes: Sizes, prompts: Batch, new: int, e: int) -> int:
    """Cache of prompts and `new` tokens + reading the prompts + 12 V · rows: the last logits, thrice in float32."""
    whole = Batch(prompts.rows, prompts.tokens + new)
    return cache(sizes, whole, e) + reading(sizes, prompts, e) + 12 * sizes.vocabulary * prompts.rows


def drift_columns(sizes: Sizes, things: int, cpu: bool) -> int:
    """What the drift term holds: on a CPU the `mixture`; on a GPU its columns and the skills' for every matrix, moved
    there one by one: 4 (things + 1) Σ n · columns(n)."""
    return mixture(sizes, things) if cpu else 4 * (things + 1) * sum(own.n * columns(own.n) for own in sizes.taught)


def autocast_copies(sizes: Sizes, e: int, bf16: bool) -> int:
    """2 W where float32 weights are multiplied in bfloat16: the rounded copies that the gradient needs."""
    return 2 * sizes.multiplied if bf16 and e == 4 else 0


def scaled(sizes: Sizes, e: int) -> int:
    """e Σ m n: W(z) of every scaled matrix, beside W."""
    return sum(e * own.m * own.n for own in sizes.taught)


def factors(sizes: Sizes, e: int) -> int:
    """e Σ min(m, n) (m + n): U and Vᵀ of every scaled matrix, in the dtype of the model."""
    return sum(e * min(own.m, own.n) * (own.m + own.n) for own in sizes.taught)


def gradient_of_scales(sizes: Sizes, batch: Batch, e: int) -> int:
    """tokens · r (2 e + 12) of the matrix with the largest r = min(m, n): Uᵀ g and Vᵀ x, and in float32 these and
    their product."""
    return batch.size * max(min(own.m, own.n) for own in sizes.taught) * (2 * e + 12)


# --- operations, and what fits ---------------------------------------------------------------------


def forward_flops(sizes: Sizes, batch: Batch) -> int:
    """2 tokens · (W + L a · tokens of a row): every weight once a token, and the attention over the tokens before."""
    return 2 * batch.size * (sizes.multiplied + sizes.layers * sizes.queries * batch.tokens)


def step_flops(sizes: Sizes, facts: Batch, kept: Batch | None, checkpointing: bool = False) -> int:
    """Forward and backward of the facts (2 forwards: no gradient of a frozen weight is made), with gradient
    checkpointing 3; of the kept rows as many, and one more by the model as it was."""
    times = 3 if checkpointing else 2
    found = times * forward_flops(sizes, facts)
    return found + ((times + 1) * forward_flops(sizes, kept) if kept else 0)


def generation_flops(sizes: Sizes, prompts: Batch, new: int) -> int:
    """Forward of every token of the prompts, and of `new` a row."""
    return forward_flops(sizes, prompts) + 2 * prompts.rows * new * (
        sizes.multiplied + sizes.layers * sizes.queries * (prompts.tokens + new)
    )


def largest(fits: Callable[[int], bool], at_most: int) -> int:
    """The largest number from 1 to `at_most` that `fits`, where a larger one never does if a smaller does not; 0 for
    none."""
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


# --- the peak of a stage, by parts -----------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a stage works: on a CPU or a GPU, with `e` bytes a number of the model, or its linear layers in `bits`."""

    cpu: bool
    e: int
    bits: int | None = None

    def parts(self, **parts: int) -> dict[str, int]:
        """Those that take anything, and the libraries on a CPU."""
        found = {"libraries": LIBRARIES if self.cpu else 0, **parts}
        return {name: round(size) for name, size in found.items() if size}

    def held(self, size: int) -> int:
        """A transient, with what the allocator keeps of it."""
        return round(size * (HELD if self.cpu else 1))

    def larger(self, acts: int, logits: int, answers: int) -> dict[str, int]:
        """The parts of a training step; or the answers that are written between steps, where they take more."""
        step = {"activations": self.held(acts), "logits": self.held(logits)}
        return step if sum(step.values()) >= self.held(answers) else {"answers": self.held(answers)}


@dataclass(frozen=True)
class Lesson:
    """What stage 2 does at once: rows of facts, rows of what is kept beside them (None: none) with the tokens of their
    answers, and the questions of a recall check (None: none), which are answered in `new` tokens."""

    facts: Batch
    kept: Batch | None = None
    answers: int = 0
    asked: Batch | None = None
    new: int = 32
    r: int = 32
    dropout: bool = False
    checkpointing: bool = False
    bf16: bool = False


def teaching(sizes: Sizes, place: Place, lesson: Lesson, bases: int, things: int, drift: bool) -> dict[str, int]:
    """Stage 2: what stays, and the larger of a training step and a recall check.

    Args:
        bases: bytes of the protection's bases.
        things: how many things the protection has statistics of; `drift`: whether the loss looks at them.
    """
    e = 2 if lesson.bf16 else place.e
    trainer = TRAINER if place.cpu else 0
    acts = activations(sizes, lesson.facts, lesson.r, lesson.dropout, e, lesson.checkpointing)
    logits = fact_logits(sizes, lesson.facts, e, place.cpu)
    if lesson.kept:
        acts += activations(sizes, lesson.kept, lesson.r, lesson.dropout, e, lesson.checkpointing)
        logits = max(logits, kept_logits(sizes, lesson.answers, e))
    check = generation(sizes, lesson.asked, lesson.new, place.e) if lesson.asked else 0
    return place.parts(
        weights=weights(sizes, place.e, place.bits) + autocast_copies(sizes, place.e, lesson.bf16),
        bases=bases,
        statistics=(statistics(sizes, things) if place.cpu else 0)
        + (drift_columns(sizes, things, place.cpu) if drift else 0),
        trainer=trainer,
        adapter=trained(sizes, lesson.r),
        **place.larger(acts, logits, check),
    )


def protecting(sizes: Sizes, place: Place, read: Batch, bases: int, things: int, components: bool) -> dict[str, int]:
    """Protection: the sums of one thing beside the finished statistics of all (on a CPU; on a GPU these leave), or the
    bases that come of them; where the rule looks at components those of one matrix, and the next while it comes."""
    known = statistics(sizes, things) if place.cpu else 0
    made = bases + mixture(sizes, things)
    return place.parts(
        weights=weights(sizes, place.e, place.bits),
        statistics=known + max(sums(sizes) if things else 0, made),
        decompositions=2 * max(map(decomposition, sizes.taught)) if components else 0,
        activations=place.held(reading(sizes, read, place.e)) if things else 0,
    )


def answering(sizes: Sizes, place: Place, asked: Batch, new: int, adapters: int = 0) -> dict[str, int]:
    """Writing and evaluation: the model, 4 bytes a number of all adapters, and the answers of a batch."""
    return place.parts(
        weights=weights(sizes, place.e, place.bits),
        adapter=4 * adapters,
        cache=place.held(cache(sizes, Batch(asked.rows, asked.tokens + new), place.e)),
        activations=place.held(generation(sizes, asked, 0, place.e) - cache(sizes, asked, place.e)),
    )


@dataclass(frozen=True)
class Tuning:
    """What stage 1 does at once: a micro-batch with the tokens of its answers, and problems (None: gold solutions are
    learned) that are answered in `new` tokens."""

    rows: Batch
    answers: int
    asked: Batch | None = None
    new: int = 0
    checkpointing: bool = False


def tuning(sizes: Sizes, place: Place, own: Tuning) -> dict[str, int]:
    """Stage 1: the model and W(z), U and V of every matrix, and the larger of a micro-batch and the rollouts."""
    acts = activations(sizes, own.rows, 0, False, place.e, own.checkpointing)
    logits = kept_logits(sizes, own.answers, place.e) + gradient_of_scales(sizes, own.rows, place.e)
    check = generation(sizes, own.asked, own.new, place.e) if own.asked else 0
    return place.parts(
        weights=weights(sizes, place.e, place.bits),
        scaled=scaled(sizes, place.e),
        decompositions=factors(sizes, place.e),
        **place.larger(acts, logits, check),
    )


def tuning_flops(sizes: Sizes, own: Tuning) -> int:
    """2 forwards of a micro-batch (no gradient of a frozen weight is made), with gradient checkpointing 3;
    2 tokens · Σ r (m + n) of the gradient of the scales, r = min(m, n); and the answers of its rows."""
    found = (3 if own.checkpointing else 2) * forward_flops(sizes, own.rows)
    found += 2 * own.rows.size * factors(sizes, 1)
    if own.asked:
        found += generation_flops(sizes, Batch(own.rows.rows, own.asked.tokens), own.new)
    return found
