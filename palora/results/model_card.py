"""The README.md of an adapter folder: what it is, what it goes on, what is known about it."""

from collections.abc import Mapping
from typing import Any

from palora.common.wording import markdown, one_line


def model_card(record: Mapping[str, Any]) -> str:
    """A model card from `palora.json`."""
    update, facts = record["update"], record["facts"]
    protection = (
        "none: this is plain LoRA, the control"
        if record["rule"] == "none"
        else f"rule `{record['rule']}`, {_pairs(record['budget'])}, sides {record['sides']}"
    )
    return f"""---
library_name: peft
tags: [lora, palora, knowledge-injection]
---

# LoRA adapter: {facts["n"]} facts from {markdown(str(facts["file"]))}

A plain LoRA adapter; PEFT, vLLM or llama.cpp load it without palora.

- **Goes on** `{_code(record["model"])}`, and on no other model: its facts are lost there without a word.
{_prompts(record.get("prompts") or {})}- **Protection**: {protection}.
- **In the loss** besides the facts: {_pairs(update.get("loss") or {}) or "nothing"}.
- **Size of the update**: ‖ΔW‖ = {_number(update["norm"])} ({_number(update["relative_norm"])} of ‖W‖).
- **Leak** (largest share of the update inside the protected subspace): {_number(update["leak"])}.
- **Drift** (how far the update moves the layers' outputs on the skill's inputs): {_number(update["drift"])}.

{_combined(record)}What was learned and what was lost is in the `evaluation.json` and `report.html` of the run
that made it. `palora.json` holds the provenance: fingerprints of the base weights, settings, versions.
"""


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
