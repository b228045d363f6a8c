"""PaloraConfig: LoRA under a structural constraint, as PEFT would have it. The only file that knows PEFT's insides.

    ΔW = (α / r) · P_L B A P_R

The trained factors are A (r, n) and B (m, r); every forward pass uses the folded ones,

    A' = A − (A V) Vᵀ,    B' = B − U (Uᵀ B)

so no optimizer, weight decay or initialisation can put the update inside the protected subspace. Enforcing it by the
initialisation only leaks 76% of the update under AdamW, by gradient hooks 20 to 48%.

What is saved is the folded pair with an ordinary `adapter_config.json`: a plain LoRA adapter. What is loaded back into
a constrained layer is unfolded first, which matters for the soft rule, where folding twice is not folding once.

How it hooks into PEFT 0.21: `PaloraConfig` is a `LoraConfig` (peft_type LORA) that registers `PaloraLinear` for the
linear layers; `resolve_lora_variant` gives each adapter with a protection its own forward, and leaves a second plain
adapter on the same layer alone. The field `protection` is marked as a variant, so that a layer of PEFT's own, which
does not know it, refuses the config instead of training without the constraint. Two of PEFT's operations put raw
factors into a layer that folds them (`add_weighted_adapter`, hot-swapping: up to half of the update was wrong under the
soft rule); they are refused where a constrained adapter takes part. Saved and loaded back, it is plain LoRA, with which
PEFT does all of that.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, get_peft_model
from peft.tuners.lora.layer import Linear, LoraVariant
from peft.utils import hotswap
from peft.utils.other import transpose
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from palora.algebra.subspace import ProtectedSubspace, ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.hashes import fingerprint
from palora.common.settings import InjectSettings
from palora.language.targets import names_one, target_endings
from palora.training.sharding import whole


@dataclass
class PaloraConfig(LoraConfig):
    """The configuration of constrained LoRA: every field of `peft.LoraConfig`, `protection`, `unprotected_modules`.

    Example:
        >>> model = get_peft_model(model, PaloraConfig(r=16, lora_alpha=32, protection="run/protection"))

    Args:
        protection: a folder that `palora protect` wrote, or what `protect` returned. Without it this is plain LoRA,
            which is warned of.
        unprotected_modules: endings of targeted matrices that are taught without a constraint. Default: none, and a
            target that is not protected is refused.

    `target_modules` defaults to the matrices that are protected. What changes a layer otherwise than by ΔW is
    refused: initialisations that change W, DoRA and the like, trained biases.

    Raises:
        InputError: the folder is no protection, or an option would break the constraint.
    """

    protection: Any = field(
        default=None,
        metadata={
            "help": "The protected subspaces: a folder that `palora protect` wrote, or a ProtectedSubspaces.",
            "is_lora_variant": True,
        },
    )
    unprotected_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Endings of targeted matrices that are taught without a constraint where none is protected."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.protection, str | Path):
            self.protection = ProtectedSubspaces.load(self.protection)
        if self.protection is not None and self.target_modules is None:
            self.target_modules: Any = set(self.protection.record.get("target_modules") or self.protection)
        if self.protection is None:
            warnings.warn("PaloraConfig without a protection is plain LoRA: nothing is constrained", stacklevel=3)
        super().__post_init__()
        self._refuse_what_breaks_the_constraint()
        self._register_custom_module({nn.Linear: PaloraLinear, Conv1D: PaloraLinear})

    def _refuse_what_breaks_the_constraint(self) -> None:
        """Everything that changes the weight otherwise than by ΔW = B A: initialisations that change W itself (pissa,
        olora, corda, …: 0.7 of the real change of W leaked), other LoRA variants, trained biases."""
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise InputError(f"init_lora_weights={self.init_lora_weights!r} changes W; use True, False or 'gaussian'")
        variants = [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant") and getattr(self, f.name)]
        if self.lora_bias or self.bias != "none" or self.use_qalora:
            variants.append("use_qalora" if self.use_qalora else "bias")
        if variants:
            raise InputError(f"{variants[0]} changes the layer outside ΔW = B A, where the constraint does not hold")

    def to_dict(self) -> dict[str, Any]:
        """The fields of a plain LoraConfig: what goes into `adapter_config.json` names nothing of palora."""
        plain = LoraConfig(**{f.name: getattr(self, f.name) for f in fields(LoraConfig) if f.init})
        return plain.to_dict()


class PaloraLinear(Linear):
    """PEFT's LoRA layer, whose adapters may have a protected subspace."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        self._subspaces: dict[str, ProtectedSubspace] = {}
        self._kept: dict[str, tuple[Any, tuple[Tensor, Tensor]]] = {}  # folded once while nothing is trained
        transposed = isinstance(base_layer, Conv1D)
        config.fan_in_fan_out = config.fan_in_fan_out or transposed
        super().__init__(base_layer, adapter_name, config, is_target_conv_1d_layer=transposed, **kwargs)
        self.register_state_dict_post_hook(_fold_saved)
        self.register_load_state_dict_pre_hook(_unfold_loaded)

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        if isinstance(config, PaloraConfig) and config.protection is not None:
            return Protected()
        return super().resolve_lora_variant(config=config, **kwargs)

    def subspace(self, adapter: str) -> ProtectedSubspace:
        """The protected subspace of `adapter`, on the device of its factors."""
        device = self.lora_A[adapter].weight.device
        found = self._subspaces[adapter]
        if any(b is not None and b.device != device for b in (found.input, found.output)):
            found = self._subspaces[adapter] = found.to(device)
        return found

    def folded(self, adapter: str) -> tuple[Tensor, Tensor]:
        """A' (r, n) and B' (m, r) of `adapter`, in the dtype of its factors; the projection itself is float32.

        Without gradients they are folded once and kept until a factor changes: a token of an answer costs what it costs
        plain LoRA (2.5 times that, folded anew at each)."""
        A, B = whole(self.lora_A[adapter].weight), whole(self.lora_B[adapter].weight)
        if adapter not in self._subspaces:
            return A, B
        frozen = not (self.training or torch.is_grad_enabled())
        state = (A.data_ptr(), A._version, B.data_ptr(), B._version, A.dtype)
        if frozen and self._kept.get(adapter, (None,))[0] == state:
            return self._kept[adapter][1]
        subspace = self.subspace(adapter)
        with torch.autocast(A.device.type, enabled=False):
            pair = subspace.project_input(A.float()).to(A.dtype), subspace.project_output(B.float()).to(B.dtype)
        if frozen:
            self._kept[adapter] = state, pair
        return pair

    def train(self, mode: bool = True) -> "PaloraLinear":
        """Also forgets what was folded: a change by `.data` leaves no trace in a tensor's version."""
        self._kept.clear()
        return super().train(mode)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """ΔW of `adapter` in the layout of the base weight."""
        A, B = self.folded(adapter)
        delta = transpose(B.float() @ A.float(), self.fan_in_fan_out) * self.scaling[adapter]
        return delta.to(B.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge into the base weight. Raises InputError where that is quantised: rounding to 4 bits moved the logits of
        a small model by 0.23, and would put the update back into the protected subspace."""
        if not self.get_base_layer().weight.is_floating_point():
            raise InputError("the base weights are quantised: use the adapter unmerged, or merge into the full model")
        super().merge(safe_merge, adapter_names)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._subspaces.pop(adapter_name, None)
        self._kept.pop(adapter_name, None)


class Protected(LoraVariant):
    """What an adapter with a protected subspace does differently from a plain one."""

    @staticmethod
    def init(module: PaloraLinear, adapter_name: str, config: PaloraConfig, target_name: str, **kwargs: Any) -> None:
        if target_name not in config.protection:
            if names_one(config.unprotected_modules or (), target_name):
                return  # plain LoRA, as was chosen
            raise InputError(_unprotected(target_name, config))
        subspace = config.protection[target_name]
        for basis, size, side in (
            (subspace.input, module.in_features, "n"),
            (subspace.output, module.out_features, "m"),
        ):
            if basis is not None and basis.shape[0] != size:
                raise InputError(f"the protection of {target_name} has {side} = {basis.shape[0]}, the layer {size}")
        expected = config.protection.record.get("fingerprints", {}).get(target_name)
        stored = module.get_base_layer().weight
        if expected and stored.is_floating_point() and not stored.is_meta and fingerprint(stored) != expected:
            raise InputError(f"{target_name}: the protection was made for other weights; make one for this model")
        module._subspaces[adapter_name] = subspace

    @staticmethod
    def forward(module: PaloraLinear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        A, B = module.folded(active_adapter)
        x = module.lora_dropout[active_adapter](x)
        return result + F.linear(F.linear(x, A), B) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: PaloraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: PaloraLinear, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: PaloraLinear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)


def _unprotected(target_name: str, config: PaloraConfig) -> str:
    """What to say of a matrix that is targeted and not protected: the ways out, with all of its kind."""
    targets = config.target_modules if not isinstance(config.target_modules, str) else ()
    wanted = {target_name, *targets}
    without = sorted(
        {name.rsplit(".", 1)[-1] for name in wanted if not any(names_one([name], p) for p in config.protection)}
    )
    return (
        f"{target_name} is targeted but has no protected subspace; leave target_modules out (then it is what is "
        f"protected), or choose plain LoRA there: unprotected_modules={without}"
    )


def _refused(operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation of PEFT on the adapters of a model, refused where one that is named is constrained."""

    @wraps(operation)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = signature(operation).bind(*args, **kwargs).arguments
        model, *_ = given.values()
        named = set(given["adapters"] if "adapters" in given else [given["adapter_name"]])
        for module in (model.model if isinstance(model, LoraModel) else model).modules():
            if isinstance(module, PaloraLinear) and (constrained := named & set(module._subspaces)):
                raise InputError(
                    f"{operation.__name__}: the adapter {sorted(constrained)[0]!r} is constrained, and would be folded "
                    "twice; save it and load it into a model of its own, where it is plain LoRA, and do it there"
                )
        return operation(*args, **kwargs)

    return guarded


LoraModel.add_weighted_adapter = _refused(LoraModel.add_weighted_adapter)
hotswap.hotswap_adapter_from_state_dict = _refused(hotswap.hotswap_adapter_from_state_dict)


def _fold_saved(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """What leaves the layer through `state_dict` is the folded pair, projected in float64 and written in float32:
    trainers cast factors to bfloat16 (TRL does on a quantised base), and a fold in that would leak 1e-3."""
    assert isinstance(module, PaloraLinear)
    for adapter in module._subspaces:
        subspace = module.subspace(adapter).to(torch.float64)
        A, B = (f"{prefix}{key}.{adapter}.weight" for key in ("lora_A", "lora_B"))
        if A in state_dict:
            state_dict[A] = subspace.project_input(whole(state_dict[A].detach()).double()).float()
        if B in state_dict:
            state_dict[B] = subspace.project_output(whole(state_dict[B].detach()).double()).float()


def _unfold_loaded(module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """What enters the layer is a folded A'; the layer trains an A with A' = fold(A). B folds onto itself: hard only."""
    assert isinstance(module, PaloraLinear)
    for adapter in module._subspaces:
        key = f"{prefix}lora_A.{adapter}.weight"
        if key in state_dict:
            folded = state_dict[key]
            subspace = module._subspaces[adapter].to(folded.device)
            state_dict[key] = subspace.unproject_input(folded.float()).to(folded.dtype)


def factors(model: nn.Module, names: list[str]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A' (r, n), B' (m, r) and the scaling α / r of the adapter `default` of a LoRA model in training, by the path of
    the matrix in the base model: differentiable, and folded where there is a protection."""
    found = {}
    for name in names:
        layer: Any = model.get_submodule(f"base_model.model.{name}")
        if isinstance(layer, PaloraLinear):
            A, B = layer.folded("default")
        else:
            A, B = whole(layer.lora_A["default"].weight), whole(layer.lora_B["default"].weight)
        found[name] = A, B, layer.scaling["default"]
    return found


def lora_model(
    model: nn.Module, settings: InjectSettings, names: list[str], protection: ProtectedSubspaces | None = None
) -> Any:
    """A model with a fresh LoRA adapter on the matrices `names`, under a protection where one is given."""
    common: dict[str, Any] = {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "target_modules": target_endings(model, names),
        "task_type": "CAUSAL_LM",
    }
    if protection is None:
        return get_peft_model(model, LoraConfig(**common))
    # Stages check the weights themselves; a comparison also protects an expert by what was found on the original.
    unchecked = replace(protection, record={**protection.record, "fingerprints": {}})
    return get_peft_model(model, PaloraConfig(**common, protection=unchecked))


def is_plain_product(model: nn.Module) -> bool:
    """Whether the update of a model in training is (α / r) B A and nothing else, so that drift can be measured."""
    configs = getattr(model, "peft_config", {}).values()
    return bool(configs) and all(
        isinstance(c, LoraConfig) and not c.use_dora and c.init_lora_weights != "corda" for c in configs
    )


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is trained, as it is trained (factors not folded): what an exact resume needs."""
    return {name: whole(p.detach()) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained_parameters(model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Put back what `trained_parameters` gave."""
    own = dict(model.named_parameters())
    for name, value in stored.items():
        own[name].copy_(value)
