"""Speed and memory of the core, on whatever machine this is: `make bench`.

    decomposition   seconds of one thin SVD, by shape
    constraint      seconds of one training step: plain LoRA, and LoRA with a hard and a soft protection
    command line    seconds of `palora --help`

Each figure is the median of several runs, with the smallest and the largest. The last line is JSON.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from palora import PaloraConfig, ProtectedSubspace, ProtectedSubspaces
from palora.algebra.decomposition import decompose
from palora.language.targets import find_targets, weight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(256, 768), (1024, 1024), (1024, 4096)] + ([(4096, 4096), (4096, 14336)] if DEVICE == "cuda" else [])
WIDTH, TOKENS, K = 512, (4, 128), 64


def timed(work: Callable[[], object], runs: int = 5) -> dict[str, float]:
    """Median, smallest and largest seconds of `runs` runs after a warm-up."""
    seconds = []
    for run in range(runs + 1):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if run:
            seconds.append(time.perf_counter() - started)
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def bases(model: torch.nn.Module, soft: bool) -> ProtectedSubspaces:
    """Random protected bases: k directions on both sides (hard), or every input direction (soft)."""
    found = {}
    for name, module in find_targets(model).items():
        m, n = weight(module).shape
        V = torch.linalg.qr(torch.randn(n, n if soft else K)).Q * (0.9 if soft else 1.0)
        found[name] = ProtectedSubspace(V, None if soft else torch.linalg.qr(torch.randn(m, K)).Q)
    return ProtectedSubspaces(found, {"hard": not soft, "modules": {name: {} for name in found}})


def training_step(protection: str) -> Callable[[], object]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4, num_attention_heads=8
    )
    model = LlamaForCausalLM(config)
    if protection == "none":
        names = ["gate_proj", "up_proj", "down_proj"]
        adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=names))
    else:
        adapted = get_peft_model(
            model, PaloraConfig(r=16, lora_alpha=32, protection=bases(model, protection == "soft"))
        )
    adapted.to(DEVICE).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
    ids = torch.randint(0, 1000, TOKENS, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def main() -> None:
    results: dict[str, object] = {
        "machine": torch.cuda.get_device_name() if DEVICE == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(results)
    for m, n in SHAPES:
        W = torch.randn(m, n, device=DEVICE)
        results[f"svd {m} x {n}"] = timed(lambda W=W: decompose(W))
    for protection in ("none", "hard", "soft"):
        results[f"training step, protection {protection}"] = timed(training_step(protection), runs=10)
    command = [sys.executable, "-m", "palora.cli", "--help"]
    results["palora --help"] = timed(lambda: subprocess.run(command, capture_output=True, check=True))
    for name, value in results.items():
        if isinstance(value, dict):
            print(f"{name:<34} {value['median']:.4f} s  ({value['min']:.4f} to {value['max']:.4f})")
    results["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(results))


if __name__ == "__main__":
    main()
