"""What an adapter does to each matrix, measured: norm, leak and drift of ΔW = (α / r) B A.

An adapter folder is read as plain safetensors, so this holds for any LoRA adapter of linear layers, whoever made it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError
from torch import Tensor, nn

from palora.algebra.statistics import InputStatistics
from palora.algebra.subspace import ProtectedSubspaces
from palora.common.errors import InputError, PaloraError
from palora.common.files import load_tensors, read_json
from palora.common.folders import read_marker
from palora.language.targets import is_linear, weight

MARKER = "palora.json"  # what makes an adapter folder ours
MODULE = r"\^?[\w.\\]+\$?"  # of alpha_pattern: a name, dots escaped or not; other regular expressions can take for ever
LARGEST = 1e18  # of an update: its square, which norms are made of, is a float32


class _Config(BaseModel):
    """What is read of an `adapter_config.json`, whoever wrote it."""

    peft_type: str
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool | None = None
    use_dora: bool | None = None
    lora_bias: bool | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None


class _Record(BaseModel):
    """What every `palora.json` of an adapter holds."""

    model: str
    fingerprints: dict[str, str]
    update: dict[str, Any]


def read_record(folder: Path, *keys: str) -> dict[str, Any]:
    """The record of an adapter that `palora inject` wrote. Raises InputError where it is damaged, or lacks one of
    `keys`."""
    record = read_marker(folder, MARKER, *keys)
    _validated(_Record, record, folder / MARKER)
    return record


def _validated(kind: type[BaseModel], value: Any, file: Path) -> None:
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file}: {where}: {first['msg'].lower()}; was it edited?") from None


@dataclass(frozen=True)
class Adapter:
    """A saved LoRA adapter: A (r, n) and B (m, r) by module path, with the scaling α / r of each."""

    A: dict[str, Tensor]
    B: dict[str, Tensor]
    scaling: dict[str, float]
    config: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> "Adapter":
        """Read a PEFT LoRA folder. Raises InputError if it is not one, or a kind whose ΔW is not (α / r) B A."""
        folder = Path(folder)
        if not (folder / "adapter_config.json").exists():
            raise InputError(f"{folder} is not an adapter folder (no adapter_config.json); make one by `palora inject`")
        config = read_json(folder / "adapter_config.json", "peft_type", "r", "lora_alpha")
        _validated(_Config, config, folder / "adapter_config.json")
        if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("lora_bias") not in (None, False):
            raise InputError(f"{folder}: not a plain LoRA adapter (DoRA, biases and other methods are not read)")
        tensors = load_tensors(folder / "adapter_model.safetensors")
        A, B = ({_module(k): t for k, t in tensors.items() if f".lora_{x}." in k} for x in "AB")
        if not A or set(A) != set(B) or len(A) + len(B) != len(tensors):
            raise InputError(f"{folder}: adapter_model.safetensors is not made of lora_A and lora_B pairs")
        if odd := [name for name in config.get("alpha_pattern") or {} if not re.fullmatch(MODULE, name)]:
            raise InputError(f"{folder}/adapter_config.json: alpha_pattern: {odd[0]!r} is no module's name")
        scaling = {
            name: _alpha(config, name) / (a.shape[0] ** 0.5 if config.get("use_rslora") else a.shape[0])
            for name, a in A.items()
        }
        return cls(A, B, scaling, config)

    def delta(self, name: str) -> Tensor:
        """ΔW (m, n) of one matrix, float32."""
        return self.scaling[name] * (self.B[name].float() @ self.A[name].float())

    def check(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise InputError unless `modules` has every matrix of the adapter, in its shape."""
        for name, A in self.A.items():
            if name not in modules or not is_linear(modules[name]):
                raise InputError(f"the adapter has {name}, which the model does not")
            shape, own = (self.B[name].shape[0], A.shape[1]), tuple(weight(modules[name]).shape)
            if shape != own:
                raise InputError(f"the adapter's {name} is {shape}, the model's {own}; it belongs to another model")

    def check_numbers(self) -> None:
        """Raise InputError where an update holds NaN, infinity or numbers beyond use."""
        for name, c in self.scaling.items():
            A, B = self.A[name], self.B[name]
            largest = abs(c) * float(A.abs().max()) * float(B.abs().max()) * A.shape[0]
            if not largest < LARGEST:  # NaN is not, either
                raise InputError(
                    f"the update of {name} holds NaN, infinity or numbers beyond use; train the adapter anew"
                )

    @property
    def parameters(self) -> int:
        """How many numbers the adapter holds."""
        return sum(t.numel() for factors in (self.A, self.B) for t in factors.values())


def _alpha(config: dict[str, Any], name: str) -> float:
    """lora_alpha of one matrix; `alpha_pattern` may set it apart."""
    patterns = config.get("alpha_pattern") or {}
    return next((a for p, a in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", name)), config["lora_alpha"])


def _module(key: str) -> str:
    return key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]


@torch.no_grad()
def measure_update(
    adapter: Adapter,
    modules: Mapping[str, nn.Module],
    protection: ProtectedSubspaces | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
) -> dict[str, Any]:
    """Norm, relative norm, leak and drift of an adapter, in all and per matrix.

    Args:
        modules: the linear modules of the model it was trained on, without the adapter; they give W.
        protection: what the leak is measured against; None or a soft protection: no leak.
        statistics: the inputs that drift is measured on; None: no drift.

    Returns: `{"leak", "drift", "norm", "relative_norm", "parameters", "layers": {path: {…}}}`. The totals:
    leak is the largest of any matrix; drift the mean over the matrices that have statistics, of which one without an
    update counts 0; norm sqrt(Σ ‖ΔW‖²), relative_norm that over sqrt(Σ ‖W‖²).
    """
    hard = protection is not None and protection.hard and protection.protects
    layers: dict[str, dict[str, float | None]] = {}
    weights = 0.0
    adapter.check(modules)
    for name in adapter.A:
        W = weight(modules[name]).float()
        delta = adapter.delta(name).to(W.device)
        norm, size = float(delta.norm()), float(W.norm())
        if not math.isfinite(norm):
            raise PaloraError(f"the update of {name} is infinite or no number; train it with a lower learning rate")
        weights += size**2
        layers[name] = {
            "norm": norm,
            "relative_norm": norm / size,
            "leak": protection[name].to(W.device).leak(delta) if hard and protection and name in protection else None,
            "drift": statistics[name].drift(delta, W) if statistics and name in statistics else None,
        }
    total = sum((layer["norm"] or 0.0) ** 2 for layer in layers.values()) ** 0.5
    leaks = [x for layer in layers.values() if (x := layer["leak"]) is not None]
    drifts = [x for layer in layers.values() if (x := layer["drift"]) is not None]
    return {
        "leak": max(leaks) if leaks else None,
        "drift": sum(drifts) / len(statistics) if drifts and statistics else None,
        "norm": total,
        "relative_norm": total / weights**0.5,
        "parameters": adapter.parameters,
        "layers": layers,
    }
