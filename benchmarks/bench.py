"""What palora costs beside plain LoRA, side by side on this machine: `make bench`.

Each line is a ratio of two things that are done in turns, A B B A …, in processor time: the median of the rounds, and
between which ratios eight of ten lie. Layers have the shapes of Qwen2.5-0.5B (896 x 4864), of which there are two with
random weights; rank 32, 8 rows of 48 tokens. On a GPU the clock is that of the device, and memory is its peak.

    python benchmarks/bench.py [ROUNDS]

What of it is counted, and not timed, is held by a test (`tests/test_ratios.py`).
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from palora import PaloraConfig, ProtectedSubspace, ProtectedSubspaces
from palora.algebra.decomposition import decompose
from palora.algebra.statistics import InputStatistics
from palora.language.prompts import Example
from palora.language.targets import find_targets, weight
from palora.training.expert import sequence_log_probability
from palora.training.svf import decompose_targets, svf_layers
from palora.training.terms import Drift

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS, RANK, K = 10, 32, 64
ROWS, TOKENS, WORDS = 8, 48, 2000
NAMES = ["gate_proj", "up_proj", "down_proj"]

Work = Callable[[], object]


def model() -> LlamaForCausalLM:
    """Two layers of Qwen's shapes, random weights, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=896, intermediate_size=4864, num_hidden_layers=2, num_attention_heads=14,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DEVICE)


def seconds(work: Work) -> float:
    """Processor time of `work`; on a GPU the time until the device is done."""
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def ratio(a: Work, b: Work, rounds: int) -> dict[str, float]:
    """The time of `a` over that of `b`: median, 10th and 90th percentile of `rounds`, in turns, after a warm-up."""
    a()
    b()
    found = []
    for i in range(rounds):
        pair = (a, b) if i % 2 else (b, a)
        took = {work: seconds(work) for work in pair}
        found.append(took[a] / took[b])
    tenths = statistics.quantiles(found, n=10, method="inclusive")
    return {"median": statistics.median(found), "low": tenths[0], "high": tenths[-1]}


def protection(base: LlamaForCausalLM, soft: bool) -> ProtectedSubspaces:
    """Random protected subspaces: 64 directions on both sides (hard), or of the input all of 896 or 256 (soft)."""
    found = {}
    for name, module in find_targets(base).items():
        m, n = weight(module).shape
        q = (n if n <= 1024 else 256) if soft else K
        V = torch.linalg.qr(torch.randn(n, q)).Q * (0.9 if soft else 1.0)
        found[name] = ProtectedSubspace(V, None if soft else torch.linalg.qr(torch.randn(m, K)).Q)
    return ProtectedSubspaces(found, {"hard": not soft, "modules": {name: {} for name in found}})


def adapted(rule: str) -> Any:
    """A model with an adapter: plain LoRA, or under a protection."""
    base = model()
    common: dict[str, Any] = {"r": RANK, "lora_alpha": 2 * RANK, "init_lora_weights": "gaussian"}
    if rule == "plain":
        return get_peft_model(base, LoraConfig(target_modules=NAMES, **common))
    return get_peft_model(base, PaloraConfig(protection=protection(base, rule != "hard"), **common)).to(DEVICE)


def drift(own: Any) -> Drift:
    """The drift term on random statistics of every input."""
    modules = {n.removeprefix("base_model.model."): m for n, m in own.named_modules() if n.endswith(tuple(NAMES))}
    known = {}
    for name, module in modules.items():
        n = module.in_features
        known[name] = InputStatistics(torch.randn(n, min(n, 256)) / n**0.5, 0.0)
    return Drift(known, {name: module.get_base_layer() for name, module in modules.items()}, 1.0)


def training_step(rule: str) -> Work:
    """One step of AdamW on the adapter."""
    own = adapted(rule).train()
    term = drift(own) if rule == "soft and drift" else None
    optimizer = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad])
    ids = torch.randint(0, WORDS, (ROWS, TOKENS), device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        loss = own(input_ids=ids, labels=ids).loss
        (loss + term(own, 0) if term else loss).backward()
        optimizer.step()

    return step


def answers(rule: str) -> Work:
    """Eight answers of 16 tokens."""
    own = adapted(rule).eval()
    ids = torch.randint(0, WORDS, (ROWS, 8), device=DEVICE)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    return lambda: own.generate(**given, max_new_tokens=16, min_new_tokens=16, do_sample=False)


def expert_gradient(rounds: int) -> dict[str, float]:
    """The gradient of the expert's scales over that of a LoRA, on the same rows."""
    rows = [Example(torch.randint(3, WORDS, (8,)).tolist(), torch.randint(3, WORDS, (TOKENS,)).tolist())] * ROWS
    scaled, plain = model().requires_grad_(False), adapted("plain").train()
    targets = find_targets(scaled)

    def gradient(own: Any) -> None:
        sequence_log_probability(own, rows).sum().backward()

    with svf_layers(targets, decompose_targets(scaled, targets), "sigmoid"):
        return ratio(lambda: gradient(scaled), lambda: gradient(plain), rounds)


def lines(rounds: int) -> dict[str, dict[str, float]]:
    """Every ratio by what it says."""
    found = {}
    plain = training_step("plain")
    for rule in ("hard", "soft", "soft and drift"):
        found[f"a training step, {rule} : plain LoRA"] = ratio(training_step(rule), plain, rounds)
    for rule in ("hard", "soft"):
        found[f"an answer, {rule} : plain LoRA"] = ratio(answers(rule), answers("plain"), rounds)
    found["a gradient of the expert : of plain LoRA"] = expert_gradient(rounds)
    W = torch.randn(896, 1792, device=DEVICE)
    found["decompose : torch.linalg.svd"] = ratio(
        lambda: decompose(W), lambda: torch.linalg.svd(W, full_matrices=False), rounds
    )
    if DEVICE == "cuda":
        found |= memory()
    return found


def memory() -> dict[str, dict[str, float]]:
    """The peak of a training step on a GPU, beside plain LoRA's."""
    peaks = {}
    for rule in ("plain", "hard", "soft", "soft and drift"):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        training_step(rule)()
        peaks[rule] = torch.cuda.max_memory_allocated() - before
    ratios = {rule: peak / peaks["plain"] for rule, peak in peaks.items() if rule != "plain"}
    return {
        f"peak memory of a step, {rule} : plain LoRA": dict.fromkeys(("median", "low", "high"), found)
        for rule, found in ratios.items()
    }


def main() -> None:
    """Print the table; the last line is JSON."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds")
    found = lines(rounds)
    for name, value in found.items():
        print(f"{name:<52} {value['median']:.2f}  ({value['low']:.2f} to {value['high']:.2f})")
    print(json.dumps({"machine": machine, "torch": torch.__version__, "rounds": rounds, "ratios": found}))


if __name__ == "__main__":
    main()
