"""Three ways to take the result elsewhere.

adapter    the folded LoRA adapter as it is: plain LoRA on the base it was trained on (default)
merged     a whole checkpoint with the expert (if any) and the update in the weights. Rounding to bfloat16 puts part of
           the update back into the protected subspace (1.3% / 13% / 36% of it for ‖ΔW‖ / ‖W‖ = 0.1 / 0.01 / 0.003):
           measured, and refused above a limit
combined   one plain LoRA adapter of rank r + k for the *original* model: the expert's k strongest components and the
           facts together. The expert's other components are lost; how much that is, is measured
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palora.algebra.statistics import from_tensors
from palora.algebra.subspace import STATISTICS, ProtectedSubspaces
from palora.common.errors import InputError, PaloraError
from palora.common.files import (
    check_replaceable,
    check_writable,
    load_tensors,
    new_folder,
    read_json,
    save_tensors,
    write_json,
)
from palora.common.progress import progress_bar
from palora.front.stages import check_expert
from palora.language.models import check_dtype, known_targets, load_model
from palora.language.targets import find_targets, target_endings, weight
from palora.results.model_card import model_card
from palora.results.updates import MARKER, Adapter, measure_update
from palora.training.svf import Expert, expert_delta

FORMATS = ("adapter", "merged", "combined")
MAX_LEAK = 0.01  # a merge that puts more of the update into the protected subspace is refused


def export(
    adapter: Path,
    kind: str,
    out: Path,
    model: str | None = None,
    expert: Path | None = None,
    protection: Path | None = None,
    dtype: str = "auto",
    max_leak: float = MAX_LEAK,
    k: int | None = None,
) -> dict[str, Any]:
    """Write an adapter in another form.

    Args:
        adapter: a folder that `palora inject` wrote.
        kind: adapter, merged or combined.
        out: the folder to write.
        model, expert, protection: where these are now; by default where they were when the adapter was trained.
        dtype: of the merged checkpoint; "auto" is the model's own.
        max_leak: the largest leak a merge may have after rounding.
        k: the expert components of a combined adapter; by default as many as are protected, or r.

    Returns: what was measured: `{"kind", "out", …}`.

    Raises: InputError for a folder of another kind or another base; PaloraError where the leak is over the limit.
    """
    if kind not in FORMATS:
        raise InputError(f"unknown export {kind!r}; choose one of {', '.join(FORMATS)}")
    loaded = Adapter.load(adapter)
    if not (adapter / MARKER).exists():
        raise InputError(f"{adapter} has no {MARKER}: only adapters that `palora inject` wrote can be exported")
    record = read_json(adapter / MARKER, "model", "base", "expert", "protection", "fingerprints", "update", "facts")
    if out.resolve() == adapter.resolve():
        raise InputError(f"{out} is the adapter itself, which would be lost; choose another --out")
    check_replaceable(out, "merge.json" if kind == "merged" else MARKER)
    check_writable(out.parent)
    check_dtype(dtype)
    if k is not None and k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    if not max_leak >= 0:
        raise InputError(f"max_leak must be at least 0, not {max_leak}")
    if kind == "adapter":
        return _copy(adapter, out, record)
    expert = _place(expert, record["expert"], "expert")
    protection = _place(protection, record["protection"], "protection")
    frozen = Expert.load(expert) if expert and record["base"] == "expert" else None
    check_expert(record, expert, f"the adapter {adapter}")
    name = model or record["model"]
    # In the dtype the expert and the adapter were made in: the SVD of rounded weights is another one.
    base, tokenizer = load_model(name, dtype=record.get("dtype", "auto"), device="cpu")
    known_targets(base, record["fingerprints"], f"the adapter {adapter}", name)
    if kind == "merged":
        return _merge(loaded, record, base, tokenizer, frozen, protection, out, max_leak, dtype)
    return _combine(loaded, record, base, frozen, protection, out, k)


def _place(given: Path | None, recorded: str | None, what: str) -> Path | None:
    """Where the expert or the protection of an adapter is: as given, or where it was when the adapter was trained."""
    if given is None and recorded is not None and not Path(recorded).exists():
        raise InputError(f"the {what} of this adapter is no longer at {recorded}; say where it is by --{what}")
    return given or (Path(recorded) if recorded else None)


def _copy(adapter: Path, out: Path, record: dict[str, Any]) -> dict[str, Any]:
    with new_folder(out, MARKER) as staging:
        for file in ("adapter_config.json", "adapter_model.safetensors", MARKER):
            shutil.copy(adapter / file, staging / file)
        (staging / "README.md").write_text(model_card(record), encoding="utf-8")
    return {"kind": "adapter", "out": str(out), "base": record["base"], "leak": record["update"]["leak"]}


@torch.no_grad()
def _merge(
    adapter: Adapter,
    record: dict[str, Any],
    model: Any,
    tokenizer: Any,
    expert: Expert | None,
    protection: Path | None,
    out: Path,
    max_leak: float,
    dtype: str,
) -> dict[str, Any]:
    """W + ΔW, rounded to the dtype of W. With E = rounded − exact, the leak is max(‖Uᵀ E‖, ‖E V‖) / ‖ΔW‖: a hard
    protection has no other, and for a soft one it is what rounding adds."""
    subspaces = ProtectedSubspaces.load(protection) if protection else None
    if expert is not None:
        expert.apply(model, record["model"])
    if dtype != "auto":
        model.to(getattr(torch, dtype))
    layers = {}
    targets = find_targets(model, list(adapter.A))
    with progress_bar("Merging", len(targets), transient=True) as advance:
        for name, module in targets.items():
            W, delta = weight(module), adapter.delta(name)
            before = W.float().clone()
            W.copy_((before + delta).to(W.dtype))
            error = W.float() - before - delta
            size = delta.norm().clamp_min(1e-30)
            rounding = float(error.norm() / size)
            layers[name] = {"rounding": rounding, "leak": subspaces[name].leak(error) * rounding if subspaces else None}
            advance(1)
    leaks = [layer["leak"] for layer in layers.values() if layer["leak"] is not None]
    leak = max(leaks) if leaks else None
    result = {
        "kind": "merged",
        "out": str(out),
        "dtype": str(model.dtype).removeprefix("torch."),
        "leak": leak,
        "rounding": max(layer["rounding"] or 0.0 for layer in layers.values()),
        "layers": layers,
    }
    if leak is not None and leak > max_leak:
        raise PaloraError(
            f"merging into {result['dtype']} puts {leak:.2%} of the update into the protected subspace (limit "
            f"{max_leak:.2%}); export the adapter, use --dtype float32, or raise --max-leak. Nothing was written"
        )
    with new_folder(out, "merge.json") as staging:
        model.save_pretrained(str(staging), safe_serialization=True)
        tokenizer.save_pretrained(str(staging))
        write_json(staging / "merge.json", {**result, "adapter": record})
    return result


@torch.no_grad()
def _combine(
    adapter: Adapter,
    record: dict[str, Any],
    model: Any,
    expert: Expert | None,
    protection: Path | None,
    out: Path,
    k: int | None,
) -> dict[str, Any]:
    """ΔW = U_K diag(s (z − 1)) V_Kᵀ + (α / r) B A with K the k components where s·abs(z − 1) is largest: by Eckart and
    Young the best rank-k approximation of the expert's change (of an expert with a basis of its own: not the best). A
    matrix that was not taught (`inject.targets`) has the expert's part alone."""
    if expert is None:
        raise InputError("this adapter is on the original model already: there is no expert to combine it with")
    targets = find_targets(model, list(expert.scales))
    decompositions = expert.decompositions(targets)
    statistics_file = protection / STATISTICS if protection else None
    kinds = from_tensors(load_tensors(statistics_file)) if statistics_file and statistics_file.exists() else {}
    known = kinds.get("skills", {})
    rank = next(iter(adapter.A.values())).shape[0]
    k = k or _protected_k(protection) or rank
    tensors: dict[str, Tensor] = {}
    layers = {}
    for name, module in targets.items():
        d, z = decompositions[name], expert.scales[name]
        if k > d.rank:
            raise InputError(f"{name}: k = {k} is larger than the rank {d.rank}; choose at most {d.rank}")
        kept = (d.s * (z - 1)).abs().argsort(descending=True)[:k]
        change = expert_delta(d, z)
        lost = change - (d.U[:, kept] * (d.s * (z - 1))[kept]) @ d.Vh[kept]
        A, B = d.Vh.new_zeros(rank, d.Vh.shape[1]), d.U.new_zeros(d.U.shape[0], rank)
        if name in adapter.A:
            A, B = adapter.A[name].float(), adapter.scaling[name] * adapter.B[name].float()
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.cat([d.Vh[kept], A])
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.cat([d.U[:, kept] * (d.s * (z - 1))[kept], B], dim=1)
        layers[name] = {
            "lost": float(lost.norm() / change.norm().clamp_min(1e-30)),
            "drift": known[name].drift(lost, weight(module)) if name in known else None,
        }
    config = {**adapter.config, "r": rank + k, "lora_alpha": rank + k, "use_rslora": False}
    config |= {"base_model_name_or_path": record["model"], "rank_pattern": {}, "alpha_pattern": {}}
    config |= {"target_modules": target_endings(model, list(targets))}
    drifts = [layer["drift"] for layer in layers.values() if layer["drift"] is not None]
    result = {
        "kind": "combined",
        "out": str(out),
        "r": rank + k,
        "k": k,
        "lost": max(layer["lost"] or 0.0 for layer in layers.values()),
        "drift": sum(drifts) / len(drifts) if drifts else None,
        "layers": layers,
    }
    with new_folder(out, MARKER) as staging:
        save_tensors(staging / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(staging / "adapter_config.json", config)
        # Its update is another one, which no protection bounds: the expert moves the protected components themselves.
        update = {"rule": record["rule"], **measure_update(Adapter.load(staging), targets, None, known)}
        combined = {**record, "base": "original", "expert": None, "expert_fingerprint": None}
        combined |= {"update": update, "combined": result}
        write_json(staging / MARKER, combined)
        (staging / "README.md").write_text(model_card(combined), encoding="utf-8")
    return result


def _protected_k(protection: Path | None) -> int | None:
    """k of a component rule's protection (the largest of any matrix)."""
    if protection is None:
        return None
    modules = ProtectedSubspaces.load(protection).record["modules"].values()
    counts = [len(m["indices"]) for m in modules if m["indices"] is not None]
    return max(counts) if counts else None
