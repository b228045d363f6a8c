"""Train the small model of the testbed from scratch: `python -m palora.testbed.train --out DIR`.

A Llama of 2 layers, width 256 (1.7 million parameters), taught two skills and 256 known facts at once. Some operators
are rare in training and as frequent as the others in evaluation, so that the skills stay below 100% and an expert has
something to learn. About 6 minutes on two cores; `--layers` and `--width` make larger ones (a GPU is used if there is
one).
"""

import math
import random
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from palora.common.files import write_json
from palora.common.versions import versions
from palora.data.facts import write_facts
from palora.data.skills import get_skill
from palora.language.prompts import batches, encode_example, pad
from palora.language.scoring import ask_facts, share_correct, solve
from palora.testbed import chain, minmax
from palora.testbed.tokenizer import build_tokenizer
from palora.testbed.world import known_facts

SKILLS = ("chain", "minmax")
PROBLEMS = {chain: 36, minmax: 20}  # drawn for every batch
FACTS = 40
GROUP = 32  # rows of like length that go through the model together
RARE = {chain: (1.0, 1.0, 0.012), minmax: (1.0, 1.0, 0.007)}  # how often each operator is seen in training


def build_model(layers: int, width: int) -> Any:
    """A Llama with tied embeddings, heads of 32 and an MLP of three times its width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def train(
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 800,
    layers: Annotated[int, typer.Option(help="Transformer layers.")] = 2,
    width: Annotated[int, typer.Option(help="Hidden size, a multiple of 32.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="AdamW, warmed up over 50 steps, cosine to 5%.")] = 2e-3,
    bf16: Annotated[bool, typer.Option(help="Multiply matrices in bfloat16 (weights stay float32).")] = False,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    log_every: Annotated[int, typer.Option(help="Steps between measurements.")] = 200,
) -> None:
    """Train the small model and write it (at every measurement) with its tokenizer, training record and known facts."""
    started = time.monotonic()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = build_tokenizer(), build_model(layers, width).to(device)
    facts = known_facts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
    )
    curve = []
    for step in range(1, steps + 1):
        rows = [
            encode_example(tokenizer, p.prompt, p.solution or "")
            for skill, count in PROBLEMS.items()
            for p in (skill.draw(rng, RARE[skill], split="train") for _ in range(count))
        ]
        for fact in rng.choices(facts, k=FACTS):
            rows.append(encode_example(tokenizer, rng.choice((fact.question, *fact.paraphrases)), fact.answer))
        optimizer.zero_grad()
        loss = 0.0
        answered = sum(len(row.answer) for row in rows)
        lengths = [len(row.prompt) + len(row.answer) for row in rows]
        for group in batches(lengths, GROUP):  # little padding: a third faster
            ids, _, answers = pad([rows[i] for i in group], device)
            labels = ids.masked_fill(~torch.nn.functional.pad(answers, (1, 0)), -100)
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                own = model(input_ids=ids, labels=labels, num_items_in_batch=answered).loss
            own.backward()
            loss += own.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % log_every == 0 or step == steps:
            model.eval()
            row = {"step": step, "seconds": round(time.monotonic() - started), "loss": loss}
            row |= measure(model, tokenizer, problems=1000 if step == steps else 200)
            model.train()
            curve.append(row)
            print(row, flush=True)
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_facts(out / "known_facts.jsonl", facts)
    record = {
        "command": f"python -m palora.testbed.train --steps {steps} --layers {layers} --width {width} "
        f"--learning-rate {learning_rate}{' --bf16' if bf16 else ''} --seed {seed}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "rare_operators": {"chain": {"*": RARE[chain][2]}, "minmax": {"|": RARE[minmax][2]}},
        "curve": curve,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started),
        "versions": versions(),
    }
    write_json(out / "training.json", record)


def measure(model: Any, tokenizer: Any, problems: int) -> dict[str, float]:
    """Accuracy on each skill's test problems, and on the known facts as asked first and as paraphrased."""
    found = {
        name: share_correct(solve(model, tokenizer, skill, skill.problems("test", problems, 0), batch_size=200))
        for name in SKILLS
        if (skill := get_skill(name))
    }
    facts = known_facts()
    found["known_facts"] = share_correct(ask_facts(model, tokenizer, facts, max_new_tokens=12, batch_size=128))
    paraphrased = [fact.paraphrases[0] for fact in facts]
    found["known_paraphrased"] = share_correct(
        ask_facts(model, tokenizer, facts, paraphrased, max_new_tokens=12, batch_size=128)
    )
    return found


if __name__ == "__main__":
    typer.run(train)
