"""Measure what single stages take, as the system counts it, beside what `costs.py` predicts. A process of its own:

    python tests/peak.py MODEL [--facts 50] [--kept 1]

Prints {stage: [bytes measured, bytes predicted]}. CPU, float32, one thing to keep.
"""

import argparse
import ctypes
import gc
import json
import tempfile
from pathlib import Path

from palora.algebra.statistics import weighed
from palora.bench.quiet import peak_memory, reset_peak_memory
from palora.common.settings import ExpertSettings, InjectSettings, ProtectSettings
from palora.data.facts import Fact
from palora.data.skills import get_skill
from palora.front import costs
from palora.front.costs import Batch, Lesson, Place, Tuning
from palora.front.dry_run import sizes_of
from palora.language.keep import Keep
from palora.language.models import load_model
from palora.language.prompts import encode_example, encode_prompt
from palora.language.scoring import ask_facts
from palora.training.expert import train_expert
from palora.training.injection import Beside, inject
from palora.training.protection import protect

HERE = Path(__file__).parents[1]
EXAMPLES = 24


def peak(work):
    """The peak of the process while `work` is done, and what it returns."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the stage before gave back is the system's again
    reset_peak_memory()
    found = work()
    return peak_memory(), found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--kept", type=int, default=0, help="1 with distillation")
    given = parser.parse_args()
    model, tokenizer = load_model(given.model, "float32", "cpu")
    sizes, place = sizes_of(model), Place(cpu=True, e=4)
    facts = [
        Fact(f"What colour is the house number {i + 10} of Elm Street in the old town?", "green")
        for i in range(given.facts)
    ]
    skill = get_skill(str(HERE / "examples" / "skills" / "word_sums.jsonl"))
    keep = Keep([skill], examples=EXAMPLES)
    took = {}

    def longest(rows):
        return max(len(row.prompt) + len(row.answer) for row in rows)

    tune = ExpertSettings(**{"objective": "next_token", "iterations": 2, "batch_size": 16, "validation_size": 8})
    with tempfile.TemporaryDirectory() as work:
        used, _ = peak(lambda: train_expert(model, tokenizer, skill, tune, Path(work)))
    rows = [encode_example(tokenizer, p.prompt, p.solution) for p in skill.problems("train", None, 0)]
    micro = tune.micro_batch_size
    tuned = Tuning(Batch(micro, longest(rows)), micro * max(len(row.answer) for row in rows))
    took["expert"] = used, costs.tuning(sizes, place, tuned)

    kept = keep.tokenised(model, tokenizer)[0].examples
    read, bases = Batch(8, longest(kept)), costs.soft_bases(sizes, 1)
    used, made = peak(lambda: protect(model, tokenizer, ProtectSettings(keep={"examples": EXAMPLES}), keep, facts))
    took["protection"] = used, costs.protecting(sizes, place, read, bases, 1, False)

    prompts = Batch(min(64, len(facts)), max(len(encode_prompt(tokenizer, f.question)) for f in facts))
    used, _ = peak(lambda: ask_facts(model, tokenizer, facts))
    known = {"bases": bases, "statistics": costs.statistics(sizes, 1)}  # they are still there
    took["evaluation"] = used, {**costs.answering(sizes, place, prompts, 32), **known}

    settings = InjectSettings(
        **{"epochs": 2, "batch_size": min(10, len(facts)), "lora_dropout": 0.0, "targets_by": "bare"},
        **{"distil": float(given.kept), "stop_at_recall": None, "bf16": False},
    )
    rows = weighed(keep.tokenised(model, tokenizer), settings.keep.weights)
    beside = Beside(rows=rows if given.kept else ())
    with tempfile.TemporaryDirectory() as work:
        used, _ = peak(lambda: inject(model, tokenizer, facts, settings, Path(work), made, beside))
    lesson = Lesson(
        Batch(settings.batch_size, longest([encode_example(tokenizer, f.question, f.answer) for f in facts])),
        Batch(settings.kept_batch_size, longest(kept)) if given.kept else None,
        settings.kept_batch_size * max(len(row.answer) for row in kept),
        r=settings.r,
    )
    took["injection"] = used, costs.teaching(sizes, place, lesson, bases, 1, True)
    print(json.dumps({stage: [used, sum(parts.values())] for stage, (used, parts) in took.items()}))


if __name__ == "__main__":
    main()
