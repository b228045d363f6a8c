"""Write docs/memory.md: what Llama 3.1 of 8B, 70B and 405B takes, counted by `palora/front/costs.py`.

    python benchmarks/memory.py

No weights and no GPU: the models are built on torch's meta device from the sizes that were published.
"""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from palora.front import costs
from palora.front.costs import Batch, Lesson, Place, Sizes, Tuning
from palora.front.dry_run import largest_that_fit, sizes_of

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
PLACE, THINGS = Place(cpu=False, e=2), 2  # bfloat16 on a GPU; a skill and prompts are kept
# hidden, MLP, layers, heads: of the configurations that Meta published; 8 key heads and 128,256 words in each.
LLAMA = {"8B": (4096, 14336, 32, 32), "70B": (8192, 28672, 80, 64), "405B": (16384, 53248, 126, 128)}
FACTS, KEPT, ANSWERS = Batch(8, 96), Batch(8, 160), 8 * 64  # rows and tokens of the longest
LESSON = Lesson(FACTS, KEPT, ANSWERS, Batch(64, 64), bf16=True)
TUNING = Tuning(Batch(8, 712), 8 * 512, Batch(64, 200), 512)  # answers of 512 tokens to problems of 200
CASES = (("8B", 24, 1), ("8B", 48, 1), ("8B", 80, 1), ("70B", 80, 8), ("405B", 80, 8))


def llama(width: int, inner: int, layers: int, heads: int) -> Sizes:
    """The sizes of a Llama."""
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, vocab_size=128_256,
    )  # fmt: skip
    with torch.device("meta"):
        return sizes_of(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def stages(sizes: Sizes) -> dict[str, dict[str, int]]:
    """The memory of every stage by part."""
    bases = costs.soft_bases(sizes, 1)
    return {
        "writing (64 × 64 tokens)": costs.answering(sizes, PLACE, Batch(64, 104), 64),
        "protection": costs.protecting(sizes, PLACE, Batch(8, 160), bases, THINGS, False),
        "own words": costs.teaching(sizes, PLACE, LESSON, bases, THINGS, True),
        "checkpointed own words": costs.teaching(
            sizes, PLACE, replace(LESSON, checkpointing=True), bases, THINGS, True
        ),
        "own words in 4 bits": costs.teaching(sizes, replace(PLACE, bits=4), LESSON, bases, THINGS, True),
        "bare answers": costs.teaching(sizes, PLACE, replace(LESSON, kept=None, answers=0), bases, THINGS, False),
        "evaluation (64 × 256 tokens)": costs.answering(sizes, PLACE, Batch(64, 256), 256, costs.adapter(sizes, 32)),
        "expert": costs.tuning(sizes, PLACE, TUNING),
        "checkpointed expert": costs.tuning(sizes, PLACE, replace(TUNING, checkpointing=True)),
    }


def gib(size: float) -> str:
    return f"{size / 2**30:,.1f}"


def memory_table(sizes: Sizes) -> list[str]:
    names = [
        "weights",
        "scaled",
        "bases",
        "statistics",
        "decompositions",
        "adapter",
        "activations",
        "logits",
        "cache",
        "answers",
    ]
    lines = ["| stage | " + " | ".join(names) + " | **peak** |", "|---" * (len(names) + 2) + "|"]
    for stage, parts in stages(sizes).items():
        assert set(parts) <= set(names), parts
        cells = [gib(parts[name]) if name in parts else "" for name in names]
        lines.append(f"| {stage} | {' | '.join(cells)} | **{gib(sum(parts.values()))}** |")
    return lines


def fit_row(name: str, sizes: Sizes, gigabytes: int, cards: int) -> str:
    """What fits of stage 2 on one card of that many GiB."""
    peaks = {stage: sum(parts.values()) for stage, parts in stages(sizes).items()}
    memory = gigabytes * 2**30
    bases = costs.soft_bases(sizes, 1)
    fit = [
        largest_that_fit(sizes, PLACE, lesson, bases, THINGS, True, memory)
        for lesson in (LESSON, replace(LESSON, checkpointing=True))
    ]
    most = [f"{f['batch'] or 'none'} / {f['rank'] or 'none'}" for f in fit]
    fits = ", ".join(stage.partition(" (")[0] for stage, peak in peaks.items() if peak <= memory) or "nothing"
    where = f"{gigabytes} GB" if cards == 1 else f"{cards} × {gigabytes} GB, of which one is used"
    return f"| {name} on {where} | {fits} | {most[0]} | {most[1]} |"


INTRODUCTION = f"""# Does it fit

`palora run RECIPE --dry-run` says it of your recipe: memory by part and the peak of every stage, disk, time, and the
largest rank and batch that fit. It reads the model's configuration and tokenizer, and no weights.

This page is the same for Llama 3.1, made by `python benchmarks/memory.py` from the formulas of
`palora/front/costs.py`. **All of it is counted; of these sizes a step of injection and one of the expert were
measured** (at the end). Counted
are: bfloat16, rank 32, the MLP matrices, the rule covariance on one thing, statistics of two (a skill and prompts),
a batch of {FACTS.rows} facts of {FACTS.tokens} tokens, and with own words {KEPT.rows} kept rows of {KEPT.tokens} for
the distillation; and of the expert {TUNING.rows.rows} rows of {TUNING.rows.tokens} tokens, 512 of them an answer, and
64 answers written at once. *Scaled* is W(z) beside W. Not counted: the CUDA context (about 0.5 GB) and what the
allocator keeps; leave a tenth free.

**Counted is one process on one device.** Injection alone can be sharded ([the guide](guide.md), "Several devices"), and
every process loads the whole model first, so eight cards of 80 GB are here one of 80 GB. The 70B and 405B are here to
say what they would take, not that they run. Cards are counted as if a GB were 2³⁰ bytes.

## What fits

*Own words* and *bare answers* are injection in the default way (drift, distillation) and in the paper's (neither);
*checkpointed* is with `inject.gradient_checkpointing`.

| model and card | stages that fit | own words: largest batch / rank | checkpointed |
|---|---|---|---|"""
AFTER_FITS = """The batch is at rank 32, the rank at a batch of 8; ranks and batches are looked for up to 4,096.
*In 4 bits* is `load: 4bit`: with that also the other stages but the expert's take as much less."""


MEASURED = """## How far the formulas are right

Measured on a CPU (Linux, x86, one thread, float32), one stage a process at its peak as the system counts it
(`tests/peak.py`, and by hand with facts of zsRE), one thing to keep of 24 rows:

| model and stage | measured, MiB | predicted, MiB | predicted / measured |
|---|---|---|---|
| embedded, protection | 473 | 500 | 1.06 |
| embedded, evaluation (50 facts) | 501 | 575 | 1.15 |
| embedded, injection with distillation | 692 | 696 | 1.01 |
| SmolLM2-135M, protection | 1,365 | 1,292 | 0.95 |
| SmolLM2-135M, evaluation (10 facts) | 1,290 | 1,259 | 0.98 |
| SmolLM2-135M, injection, batch of 10, no distillation | 2,926 | 2,950 | 1.01 |
| SmolLM2-135M, injection, batch of 10, distillation | 4,100 | 3,965 | 0.97 |
| Qwen2.5-Coder-0.5B, protection | 3,706 | 3,602 | 0.97 |
| Qwen2.5-Coder-0.5B, injection, batch of 5, distillation | 7,941 | 8,014 | 1.01 |

Three numbers are fitted and not counted, on SmolLM2 and the embedded model: 460 MiB of the process, 120 MiB of what
training imports, and a factor of 1.5 on what a step takes and gives back, because the C library keeps it in pieces
(with `MALLOC_MMAP_THRESHOLD_=65536` the injection without distillation took 2,565). They were fixed before Qwen's
injection was measured. Activations are also compared with what autograd keeps, the operations with torch's counter.

**On a GPU.** One step of plain LoRA at the shapes of the 8B (random weights, bfloat16, 8 rows of 128 tokens, the
model's own loss, whose logits of 1.5 GiB TRL never has whole) took 22.9 GiB at its peak on an NVIDIA H100; counted are
21.6 + 1.5 = 23.1. Steps of the expert at the same shapes (8 rows of 712 tokens, 512 of them an answer, bfloat16, random
components; torch 2.11, an H100 of 80 GB; `tests/test_gpu.py` does it again):

| the expert of 8B | a step | measured, GiB | counted, GiB | counted / measured |
|---|---|---|---|---|
| plain | 0.69 s | 71.2 | 75.4 | 1.06 |
| with `expert.gradient_checkpointing` | 0.85 s | 42.5 | 45.8 | 1.08 |

The decomposition of one of its 96 matrices took 0.22 s (the first one 0.75 s), to 1.3e-6.

The time is that of the operations alone, at the speed of one product: the two steps of these injections took 25.7, 56.8
and 129 s of CPU time, and at 28 GFLOP/s, measured minutes later, would take 21, 54 and 156. On a machine that does
other work the speed of a moment is no better than that; small models (the embedded one) wait for other things."""


BESIDE = """## Beside plain LoRA

Ratios measured in turns on an Intel Xeon (one thread, processor time, 20 rounds, other work on the core: between the
brackets lie eight of ten), at Qwen 0.5B's shapes, rank 32, 8 rows of 48 tokens; `make bench` measures them again, and
`benchmarks/results/ratios-cpu.json` holds these:

| | palora : plain LoRA |
|---|--:|
| a training step, hard rule (64 directions on both sides) | 1.04 [0.97, 1.16] |
| a training step, soft rule | 1.04 [0.94, 1.19] |
| a training step, soft rule and drift | 1.13 [1.06, 1.16] |
| an answer, hard rule | 1.00 [0.96, 1.05] |
| an answer, soft rule | 1.02 [0.99, 1.05] |
| a gradient of the expert's scales, against one of LoRA | 1.26 [1.21, 1.33] |

What the constraint and the drift cost does not grow with the batch: 384 tokens are few. The operations behind these
ratios are counted in `tests/test_ratios.py`, which fails where one of them takes 15% more than its formula."""


def page() -> str:
    """The whole page."""
    models = {name: llama(*own) for name, own in LLAMA.items()}
    fits = [fit_row(name, models[name], memory, cards) for name, memory, cards in CASES]
    lines = [INTRODUCTION, *fits, "", AFTER_FITS]
    for name, sizes in models.items():
        lines += [
            "",
            f"## {name}, GiB",
            "",
            f"{sizes.parameters:,} parameters; {len(sizes.taught)} taught matrices, "
            f"{costs.adapter(sizes, 32):,} trained parameters. On the disk: "
            f"protection {gib(costs.soft_bases(sizes, 1) + costs.statistics(sizes, THINGS))}, "
            f"adapter {gib(4 * costs.adapter(sizes, 32))}; "
            f"an expert {gib(costs.weights(sizes, 2))} and its decompositions {gib(costs.decompositions(sizes))}.",
            "",
            *memory_table(sizes),
        ]
    return "\n".join([*lines, "", BESIDE, "", MEASURED]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
