"""Three ways to take the result elsewhere.

adapter    the folded LoRA adapter as it is: plain LoRA on the model it was trained on (default)
merged     a whole checkpoint with the update in the weights. With E what rounding adds, its drift
           sqrt(tr(E C Eᵀ) / tr(W C Wᵀ)) is measured, and refused above a limit. In bfloat16 it is 0.0016, the noise
           that all weights have; as a share of a small update it looks large, and says little (1.3, 13, 36% of it for
           ‖ΔW‖ / ‖W‖ = 0.1 / 0.01 / 0.003 come back into the protected subspace)
combined   of an adapter that was trained on an expert: one plain LoRA adapter of rank r + k for the *original* model,
           the expert's k strongest components and the facts together. What the others did is lost: k is as large as it
           takes to lose no more than a limit
"""

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from palora.algebra.decomposition import Decomposition
from palora.algebra.subspace import ProtectedSubspaces
from palora.common.errors import InputError, PaloraError
from palora.common.files import load_tensors, read_json, save_tensors, write_json
from palora.common.folders import (
    check_replaceable,
    check_unchanged,
    check_writable,
    folder_hash,
    new_folder,
    same_inputs,
    seal,
)
from palora.common.progress import progress_bar
from palora.common.settings import ExportSettings
from palora.language.generation import write_ends
from palora.language.models import known_targets, load_model, save_model, whole_path
from palora.language.targets import find_targets, target_endings, weight
from palora.results.hub import run_evaluation
from palora.results.model_card import VLLM_RANKS, model_card, vllm_rank
from palora.results.model_card import rank as rank_of
from palora.results.updates import MARKER, Adapter, measure_update, read_record
from palora.training.svf import MARKER as EXPERT
from palora.training.svf import MODEL, Expert, components

log = logging.getLogger("palora")

FORMATS = ("adapter", "merged", "combined")
LOST = ExportSettings.model_fields["max_lost"].default
MAX_RANK = VLLM_RANKS[-1]


class Places(NamedTuple):
    """Where the things that an adapter was made of are now; None: where they were when it was trained."""

    model: str | None = None
    expert: Path | None = None
    protection: Path | None = None


def export(
    adapter: Path, kind: str, out: Path, settings: ExportSettings | None = None, places: Places | None = None
) -> dict[str, Any]:
    """Write an adapter in another form.

    Args:
        adapter: a folder that `palora inject` wrote.
        kind: adapter, merged or combined.
        out: the folder to write.
        places: where the things that it was made of are now.

    Returns: what was measured: `{"kind", "out", …}`.

    Raises: InputError for a folder of another kind or another base; PaloraError where a limit is passed.
    """
    settings, places = settings or ExportSettings.model_validate({}), places or Places()
    if kind not in FORMATS:
        raise InputError(f"unknown export {kind!r}; choose one of {', '.join(FORMATS)}")
    loaded = Adapter.load(adapter)
    loaded.check_numbers()
    if not (adapter / MARKER).exists():
        raise InputError(f"{adapter} has no {MARKER}: only adapters that `palora inject` wrote can be exported")
    record = read_record(adapter, "protection", "facts")
    check_unchanged(adapter, record, "adapter_model.safetensors", "adapter_config.json")
    if out.resolve() == adapter.resolve():
        raise InputError(f"{out} is the adapter itself, which would be lost; choose another --out")
    check_replaceable(out, "merge.json" if kind == "merged" else MARKER)
    check_writable(out.parent)
    if kind == "adapter":
        return _copy(adapter, out, record)
    name = places.model or record["model"]
    if kind == "merged":
        if bits := record.get("load"):
            raise InputError(
                f"the adapter {adapter} was trained on the model in {bits}, which cannot be merged without rounding it "
                "anew; use it unmerged, on the model loaded so"
            )
        # In the dtype the adapter was made in.
        model, tokenizer = load_model(name, dtype=record.get("dtype", "auto"), device="cpu")
        known_targets(model, record["fingerprints"], f"the adapter {adapter}", name)
        protection = _place(places.protection, record["protection"], "protection")
        return _merge(
            *(loaded, record, name, model, tokenizer, ProtectedSubspaces.load(protection) if protection else None),
            *(out, settings.max_drift, settings.dtype),
        )
    expert = Expert.load(_expert_of(record, places.expert))
    if not expert.is_base_of(record):
        raise InputError(
            f"the adapter {adapter} was trained on another expert than {expert.record['model']}'s; give that one"
        )
    return _combine(loaded, record, expert, places.model or expert.record["model"], out, settings.k, settings.max_lost)


def combine_if_it_fits(adapter: Path, out: Path, expert: Path) -> None:
    """Of a run with an expert, make the adapter for the model that the recipe names, unless its rank would be over
    `MAX_RANK`: then the expert's model and its adapter are the result."""
    check_replaceable(out, MARKER)
    inputs = {"adapter": folder_hash(adapter, MARKER), "expert": folder_hash(expert, EXPERT)}
    if (out / MARKER).exists() and same_inputs((made := read_json(out / MARKER)).get("inputs"), inputs):
        return check_unchanged(out, made)
    loaded, record, frozen = Adapter.load(adapter), read_record(adapter), Expert.load(expert)
    s = load_tensors(expert / "singular_values.safetensors")
    k = max(_needed(s[name] * (z - 1), LOST) for name, z in frozen.scales.items())
    if k + next(iter(loaded.A.values())).shape[0] <= MAX_RANK:
        _combine(loaded, {**record, "inputs": inputs}, frozen, frozen.record["model"], out, k, LOST)
    else:
        shutil.rmtree(out, ignore_errors=True)  # of an earlier run, with another expert


def _place(given: Path | None, recorded: str | None, what: str) -> Path | None:
    """Where the expert or the protection of an adapter is: as given, or where it was when the adapter was trained."""
    if given is None and recorded is not None and not Path(recorded).exists():
        raise InputError(f"the {what} of this adapter is no longer at {recorded}; say where it is by --{what}")
    return given or (Path(recorded) if recorded else None)


def _expert_of(record: dict[str, Any], given: Path | None) -> Path:
    """The folder of the expert whose model an adapter was trained on. Raises InputError where it has none."""
    model = Path(record["model"])
    if given is None and model.name == MODEL and not model.exists():
        raise InputError(f"the expert of this adapter is no longer at {model.parent}; say where it is by --expert")
    if given is None and not (model.parent / EXPERT).is_file():
        raise InputError("this adapter is on the original model already: there is no expert to combine it with")
    return given or model.parent


def _copy(adapter: Path, out: Path, record: dict[str, Any]) -> dict[str, Any]:
    with new_folder(out, MARKER) as staging:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(adapter / file, staging / file)
        (staging / "README.md").write_text(model_card(record, run_evaluation(adapter)), encoding="utf-8")
        seal(staging, MARKER, record)
    result = {"kind": "adapter", "out": str(out), "model": record["model"], "leak": record["update"]["leak"]}
    return {**result, "r": (r := rank_of(record)), "vllm": served(r)}


def served(r: int | None) -> str | None:
    """With which flag vLLM serves an adapter of rank r; that none does is warned of."""
    if r is None:
        return None
    if (most := vllm_rank(r)) is None:
        log.warning("rank %d is over what vLLM serves (--max-lora-rank %d at most): export it --as merged", r, MAX_RANK)
        return None
    return f"--max-lora-rank {most}"


@torch.no_grad()
def _merge(
    adapter: Adapter,
    record: dict[str, Any],
    source: str,
    model: Any,
    tokenizer: Any,
    protection: ProtectedSubspaces | None,
    out: Path,
    max_drift: float,
    dtype: str,
) -> dict[str, Any]:
    """W + ΔW, rounded to the dtype of W. With E = rounded − exact, the leak is max(‖Uᵀ E‖, ‖E V‖) / ‖ΔW‖: a hard
    protection has no other, and for a soft one it is what rounding adds. The drift of E is on the skills' inputs, and
    ‖E‖ / ‖W‖ where nothing is known of them."""
    skills = protection.statistics.skills() if protection else {}
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
            layers[name] = {
                "rounding": rounding,
                "drift": skills[name].drift(error, before) if name in skills else float(error.norm() / before.norm()),
                "leak": protection[name].leak(error) * rounding if protection else None,
            }
            advance(1)
    leaks = [layer["leak"] for layer in layers.values() if layer["leak"] is not None]
    leak = max(leaks) if leaks else None
    result = {
        "kind": "merged",
        "out": str(out),
        "dtype": str(model.dtype).removeprefix("torch."),
        "leak": leak,
        "drift": (drift := max(layer["drift"] or 0.0 for layer in layers.values())),
        "rounding": max(layer["rounding"] or 0.0 for layer in layers.values()),
        "layers": layers,
    }
    if not drift <= max_drift:
        raise PaloraError(
            f"merging into {result['dtype']} moves the outputs of a matrix by {drift:.2%} by rounding alone (limit "
            f"{max_drift:.2%}); export the adapter, use --dtype float32, or raise --max-drift. Nothing was written"
        )
    with new_folder(out, "merge.json") as staging:
        save_model(model, source, staging)
        write_ends(model, tokenizer, staging)
        write_json(staging / "merge.json", {**result, "adapter": record})
    return result


@torch.no_grad()
def _combine(
    adapter: Adapter, record: dict[str, Any], expert: Expert, name: str, out: Path, k: int | None, max_lost: float
) -> dict[str, Any]:
    """ΔW = U_K diag(s (z − 1)) V_Kᵀ + (α / r) B A with K the k components where s·abs(z − 1) is largest: by Eckart and
    Young the best rank-k approximation of the expert's change. A matrix that was not taught (`inject.targets`) has the
    expert's part alone."""
    model, _ = load_model(name, dtype=record.get("dtype", "auto"), device="cpu")
    targets = expert.targets(model, name)
    parts = {path: (d, d.s * (expert.scales[path] - 1)) for path, d in components(expert, model, targets)}
    rank = next(iter(adapter.A.values())).shape[0]
    if k is None:
        k = max(_needed(change, max_lost) for _, change in parts.values())
    tensors: dict[str, Tensor] = {}
    lost: dict[str, float] = {}
    for path, (d, change) in parts.items():
        if k > d.rank:
            raise InputError(f"{path}: k = {k} is larger than the rank {d.rank}; choose at most {d.rank}")
        kept = change.abs().argsort(descending=True)[:k]
        lost[path] = float(change.clone().index_fill_(0, kept, 0.0).norm() / change.norm().clamp_min(1e-30))
        A, B = _factors(adapter, path, rank, d)
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.cat([d.Vh[kept], A])
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.cat([d.U[:, kept] * change[kept], B], dim=1)
    most = max(lost.values())
    result = {"kind": "combined", "out": str(out), "r": rank + k, "k": k, "lost": most}
    result["vllm"] = served(rank + k)
    result["layers"] = {path: {"lost": share} for path, share in lost.items()}
    if most > max_lost:
        raise PaloraError(
            f"with k = {k} components {most:.0%} of the expert's change of a matrix would be lost (limit "
            f"{max_lost:.0%}); leave --k out, or raise --max-lost. Nothing was written"
        )
    config = {**adapter.config, "r": rank + k, "lora_alpha": rank + k, "use_rslora": False}
    config |= {"base_model_name_or_path": whole_path(name)}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, "target_modules": target_endings(model, list(targets))}
    with new_folder(out, MARKER) as staging:
        save_tensors(staging / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(staging / "adapter_config.json", config)
        # Its update is another one, which no protection bounds: the expert moves the protected components themselves.
        update = {"rule": record["rule"], **measure_update(Adapter.load(staging), targets)}
        combined = {**record, "model": name, "fingerprints": expert.record["fingerprints"]}
        combined |= {"update": update, "combined": result}
        (staging / "README.md").write_text(model_card(combined), encoding="utf-8")
        seal(staging, MARKER, combined)
    return result


def _needed(change: Tensor, max_lost: float) -> int:
    """How many of the largest of `change` (r,) leave at most `max_lost` of its norm to the others."""
    left = change.abs().sort().values.double().square().cumsum(0).sqrt()
    return max(1, int((left > max_lost * left[-1]).sum()))


def _factors(adapter: Adapter, path: str, rank: int, d: Decomposition) -> tuple[Tensor, Tensor]:
    """A (r, n) and (α / r) B (m, r) of one matrix; zeros where it was not taught."""
    if path not in adapter.A:
        return d.Vh.new_zeros(rank, d.Vh.shape[1]), d.U.new_zeros(d.U.shape[0], rank)
    return adapter.A[path].float(), adapter.scaling[path] * adapter.B[path].float()
