"""What is this folder: its kind, its base, its rule and k, its leak and norm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palora.algebra.subspace import MARKER as PROTECTION
from palora.common.errors import InputError
from palora.common.files import check_tensors, read_json
from palora.common.folders import check_unchanged, read_marker
from palora.results.pages.run_folder import measured
from palora.results.updates import MARKER as ADAPTER
from palora.results.updates import Adapter, read_record
from palora.training.svf import MARKER as EXPERT


def inspect_folder(folder: str | Path) -> dict[str, Any]:
    """A short description of a folder that palora wrote, or of any plain LoRA adapter.

    Returns: `{"kind", "model", …}`, values that one line each can show.

    Raises: InputError for any other folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; name its folder" if folder.exists() else f"{folder}: no such folder")
    for marker, describe in _KINDS.items():
        if (folder / marker).exists():
            return describe(folder)
    raise InputError(
        f"{folder} is none of ours: no {', '.join(_KINDS)} in it; give a folder that palora wrote, or a LoRA adapter"
    )


def _run(folder: Path) -> dict[str, Any]:
    parts = ("expert", "protection", "adapter", "evaluation.json", "report.html")
    done = [name for name in parts if (folder / name).exists()]
    found: dict[str, Any] = {"kind": "run", "finished": {"evaluation.json", "report.html"} <= {*done}, "parts": done}
    if "evaluation.json" in done:
        evaluation = read_json(folder / "evaluation.json", "arms", "retention")
        arms = measured(evaluation)
        against = "expert" if "expert" in arms else "base"
        for arm, result in arms.items():
            kept = {skill: values[f"vs_{against}"] for skill, values in evaluation["retention"][arm].items()}
            learned = {name: result.get(name) for name in ("recall", "recall_exact", "recall_f1")}
            found[arm] = {**learned, f"retention_vs_{against}": kept}
    return found


def _expert(folder: Path) -> dict[str, Any]:
    record = read_marker(folder, EXPERT, "fingerprints")
    check_tensors(folder / "scales.safetensors")
    check_unchanged(folder, record, "scales.safetensors")
    keys = ("kind", "model", "skill", "objective", "parametrisation", "parameters", "validation_accuracy")
    return {key: record.get(key) for key in keys} | {"matrices": len(record["fingerprints"]) - 1}


def _protection(folder: Path) -> dict[str, Any]:
    record = read_marker(folder, PROTECTION, "modules")
    check_tensors(folder / "subspaces.safetensors")
    check_unchanged(folder, record, "subspaces.safetensors")
    keys = ("kind", "model", "rule", "sides", "budget", "hard", "coverage", "keep")
    modules = record["modules"]
    ks = [max(m["k_input"], m["k_output"]) for m in modules.values()]
    return {key: record.get(key) for key in keys} | {"matrices": len(modules), "k": [min(ks), max(ks)]}


def _adapter(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    check_unchanged(folder, record, "adapter_model.safetensors", "adapter_config.json")
    keys = ("kind", "model", "rule", "sides", "budget", "coverage", "facts", "learned")
    record["learned"] = learned(record)
    adapter = Adapter.load(folder)
    adapter.check_numbers()
    update = {k: v for k, v in record["update"].items() if k not in ("layers", "rule")}
    return {key: record.get(key) for key in keys} | {"r": adapter.config["r"]} | update


def learned(record: Mapping[str, Any]) -> str:
    """How many facts a training has learned, and whether it stopped short; what to do then.

    Args:
        record: of an adapter, with the last recall that was measured while it was trained.
    """
    training, n = record.get("training") or {}, (record.get("facts") or {}).get("n")
    settings, restored = training.get("settings") or {}, training.get("restored")
    recall = restored["recall"] if restored else training.get("recall_while_training")
    target, epochs = settings.get("stop_at_recall"), f"{training.get('epochs', 0):g} epochs"
    if restored and not restored["epoch"]:
        return f"nothing: every state lost more of the skill than lose_at_most ({settings.get('lose_at_most')}) allows"
    if recall is None or not n:
        return "not measured while training (stop_at_recall says whether); palora evaluate tells"
    count = round(recall * n)
    if count == 0:
        return f"no fact was learned in {epochs}: raise epochs or learning_rate"
    if count == n:
        return f"all {n} facts, in {epochs}"
    if restored:
        return f"{count} of {n} facts, after {restored['epoch']:g} epochs: more would pass lose_at_most"
    if target is not None and recall < target:
        return f"{count} of {n} facts, in {epochs}: short of the {target:.0%} asked for; raise epochs or learning_rate"
    return f"{count} of {n} facts, in {epochs}: it stopped there (stop_at_recall {target}); 1 goes on to all of them"


def _plain_adapter(folder: Path) -> dict[str, Any]:
    adapter = Adapter.load(folder)
    adapter.check_numbers()
    norm = sum(float(adapter.delta(name).square().sum()) for name in adapter.A) ** 0.5
    return {
        "kind": "adapter (not made by palora)",
        "model": adapter.config.get("base_model_name_or_path"),
        "r": adapter.config["r"],
        "norm": norm,
        "parameters": adapter.parameters,
        "matrices": len(adapter.A),
    }


def _merged(folder: Path) -> dict[str, Any]:
    record = read_json(folder / "merge.json", "adapter")
    source = record["adapter"]
    kept = {key: record.get(key) for key in ("kind", "dtype", "drift", "leak", "rounding")}
    return kept | {"model": source["model"], "rule": source["rule"]}


_KINDS = {
    "recipe.yaml": _run,
    EXPERT: _expert,
    PROTECTION: _protection,
    ADAPTER: _adapter,
    "adapter_config.json": _plain_adapter,
    "merge.json": _merged,
    "evaluation.json": _run,  # a run made stage by stage
}
