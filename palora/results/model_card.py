"""The README.md of an adapter folder: what it is, what it goes on, what was learned and what was lost, how to load it.

Its head is what the Hub reads: base_model (where the base has a name there), library_name, tags, and the licence of the
base as far as its folder says one.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from palora.common.plain_yaml import YamlProblem, dump_yaml, parse_yaml
from palora.common.wording import markdown, one_line
from palora.results.pages.results import Results

FACTS = {"recall": "facts learned", "paraphrase_recall": "in other words", "locality": "known facts"}
LICENCE = ("license", "license_name", "license_link")  # of a model card's head


def model_card(record: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """A model card from `palora.json`, and `evaluation.json` where the run that made it has one."""
    update, facts = record["update"], record["facts"]
    protection = (
        "none: this is plain LoRA, the control"
        if record["rule"] == "none"
        else f"rule `{record['rule']}`, {_pairs(record['budget'])}, sides {record['sides']}"
    )
    base, licence = public_name(str(record["model"])), licence_of(str(record["model"]))
    on_hub = not _is_folder(str(record["model"])) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)
    named = {"base_model": base, "base_model_relation": "adapter"} if on_hub else {}
    head: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", **named, **licence}
    head["tags"] = ["lora", "palora", "knowledge-injection"]
    said = one_line(str(licence["license"])) if licence else "not said in its folder"
    return f"""---
{dump_yaml(head)}---

# LoRA adapter: {facts["n"]} facts from {markdown(str(facts["file"]))}

A plain LoRA adapter; PEFT, vLLM or llama.cpp load it without palora.

- **Goes on** `{_code(base)}`, and on no other model: its facts are lost there without a word.
- **Licence** of the base model: {markdown(said)}.
{_prompts(record.get("prompts") or {})}- **Protection**: {protection}.
- **In the loss** besides the facts: {_pairs(update.get("loss") or {}) or "nothing"}.
- **Size of the update**: ‖ΔW‖ = {_number(update["norm"])} ({_number(update["relative_norm"])} of ‖W‖).
- **Leak** (largest share of the update inside the protected subspace): {_number(update["leak"])}.
- **Drift** (how far the update moves the layers' outputs on the skill's inputs): {_number(update["drift"])}.

{_combined(record)}{_measured(record, evaluation)}{_loading(record, base)}
`palora.json` holds the provenance: fingerprints of the base weights, settings, versions.
"""


def licence_of(model: str) -> dict[str, str]:
    """What the head of a base model's own card says of its licence: of its folder, or of the cache of the Hub. Empty
    where it says none."""
    card: Any = Path(model) / "README.md"
    if not _is_folder(model):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        card = None
        with suppress(HFValidationError):
            card = try_to_load_from_cache(model, "README.md")
    head = None
    with suppress(OSError, UnicodeDecodeError, YamlProblem, TypeError):
        found = re.match(r"---\s*\n(.*?)\n---", Path(card).read_text(encoding="utf-8"), re.DOTALL)
        head = parse_yaml(found[1]) if found else None
    return {key: head[key] for key in LICENCE if isinstance(head.get(key), str)} if isinstance(head, dict) else {}


def _measured(record: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """The tables of what was learned and lost, of the base, this adapter and its control."""
    results, arm = Results(evaluation) if evaluation else None, str(record.get("arm"))
    if results is None or arm not in results.arms:
        return (
            "What was learned and what was lost is in the `evaluation.json` and `report.html` of the run\n"
            "that made it.\n\n"
        )
    shown = [*(name for name in ("base", "expert", "lora") if name in results.arms and name != arm), arm]
    rows = [(label, [results.measure(name, key) for name in shown]) for key, label in FACTS.items()]
    for skill in results.skills:
        values = [results.accuracy(name, skill) for name in shown]
        rows.append((f"skill {skill} ({results.problems(skill)} problems)", values))
    for task, metric, *_ in results.harness:
        values = [results.judged(name, task, metric).get("value") for name in shown]
        rows.append((f"lm-eval {task}: {metric}", values))
    lines = [
        "## What was learned, and what was lost",
        "",
        "| answered right | " + " | ".join(markdown(name) for name in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
        *(
            f"| {markdown(label)} | " + " | ".join(map(_share, values)) + " |"
            for label, values in rows
            if any(value is not None for value in values)
        ),
    ]
    n, known = (int(results.measure(arm, key) or 0) for key in ("n_facts", "n_known"))
    return "\n".join([*lines, "", f"{n} new facts, {known} known facts that were not trained on.", "", ""])


def _loading(record: Mapping[str, Any], base: str) -> str:
    """How the adapter is loaded elsewhere. BASE and DIR are the reader's."""
    r = rank(record)
    flag = vllm_rank(r) if r else None
    vllm = (
        f"vllm serve BASE --enable-lora --max-lora-rank {flag} --lora-modules facts=DIR"
        if flag
        else f"(rank {r} is over what vLLM takes, {VLLM_RANKS[-1]}: merge it)"
    )
    return f"""## How to load it

BASE is `{_code(base)}`, DIR this folder.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "DIR")
```

```text
vLLM       {vllm}
llama.cpp  convert_hf_to_gguf.py BASE --outfile base.gguf; convert_lora_to_gguf.py DIR --base BASE --outfile facts.gguf
           llama-server -m base.gguf --lora facts.gguf
Ollama     a Modelfile of FROM ./base.gguf and ADAPTER ./facts.gguf; ollama create facts -f Modelfile
```
"""


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank takes (vLLM 0.11)


def vllm_rank(r: int) -> int | None:
    """The smallest `--max-lora-rank` of vLLM that an adapter of rank r fits in; None where none does."""
    return next((most for most in VLLM_RANKS if r <= most), None)


def rank(record: Mapping[str, Any]) -> int | None:
    """The rank of an adapter, by its record."""
    made = record.get("combined") or ((record.get("training") or {}).get("settings") or {})
    return made.get("r")


def _is_folder(model: str) -> bool:
    return Path(model).is_absolute() or Path(model).is_dir()


def public_name(model: str) -> str:
    """A model's name on the Hub, or the name of its folder: where that lies is nobody else's."""
    return Path(model).name if _is_folder(model) else model


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _prompts(asked: Mapping[str, Any]) -> str:
    """How the facts were asked for, where a reader could not tell: what they were taught to is what recalls them."""
    lines = []
    if kwargs := asked.get("chat_template_kwargs"):
        lines.append(f"- **Asked with** the chat template's `{_code(_pairs(kwargs))}`.\n")
    if system := asked.get("system_message"):
        lines.append(f"- **System message**: `{_code(system)}`.\n")
    if end := asked.get("end"):
        lines.append(
            f"- **An answer ends with** `{end['token']}` ({end['id']}), which the model's generation config does not "
            f"name: write it into `eos_token_id`, or the model runs on.\n"
        )
    return "".join(lines)


def _combined(record: Mapping[str, Any]) -> str:
    if "combined" not in record:
        return ""
    made = record["combined"]
    return (
        f"Rank {made['r']}: the facts and the expert's {made['k']} strongest components of each matrix. "
        f"{made['lost']:.0%} of the expert's change is cut off in the matrix where that is most.\n\n"
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"


def _code(text: str) -> str:
    """A text between backticks."""
    return one_line(text).replace("`", "'")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
