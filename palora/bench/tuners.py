"""How an update is parametrised: LoRA, under a protection or not, and the other methods that `palora compare` sets
beside it. All of them are PEFT's own; nothing is written again here.

    lora     ΔW = (α / r) B A; with a protection P_L B A P_R (`lora.py`)
    dora     weight-decomposed LoRA (arXiv 2402.09353)
    mica     minor component adaptation (arXiv 2604.01694): B = the last r left singular vectors, frozen; A is trained
    corda    CorDA in its knowledge-preserved mode (arXiv 2406.05223): starts from the components of W C that carry
             least of what is kept, and takes them out of W
    osf      orthogonal subspace fine-tuning (arXiv 2504.07097): half of the components are trained; gradient hooks keep
             them out of the larger half
    full     every parameter of the model
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, OSFConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from palora.algebra.subspace import ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.settings import InjectSettings
from palora.language.prompts import Example
from palora.language.targets import target_endings, weight
from palora.training.injection import Adapt
from palora.training.lora import lora_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tuner = Literal["lora", "dora", "mica", "corda", "osf", "full"]
BILINEAR = ("lora", "mica")  # ΔW = (α / r) B A, and W stays


def adapt(tuner: Tuner, kept: Sequence[Example] = ()) -> Adapt:
    """How a model is made trainable by a tuner, as `inject` takes it.

    Args:
        kept: examples of what is to be kept, which `corda` looks at.

    Raises (when called): InputError for a protection with another tuner than lora, or `corda` without examples.
    """

    def tune(
        model: "PreTrainedModel",
        settings: InjectSettings,
        names: list[str],
        protection: ProtectedSubspaces | None = None,
    ) -> Any:
        if tuner == "lora":
            return lora_model(model, settings, names, protection)
        if protection is not None:
            raise InputError(f"{tuner} cannot be put under a protection")
        if tuner == "full":
            return model.requires_grad_(True)
        endings = target_endings(model, names)
        if tuner == "osf":
            return get_peft_model(model, OSFConfig(target_modules=endings, task_type="CAUSAL_LM"))
        common: dict[str, Any] = {
            "r": settings.r,
            "lora_alpha": settings.lora_alpha,
            "lora_dropout": settings.lora_dropout,
            "target_modules": endings,
            "task_type": "CAUSAL_LM",
        }
        if tuner == "mica":
            return get_peft_model(model, LoraConfig(**common, init_lora_weights="mica"))
        if tuner == "corda":
            return _corda(model, common, kept)
        return get_peft_model(model, LoraConfig(**common, use_dora=tuner == "dora"))

    tune.__name__ = tuner
    return tune


def check_terms(tuner: Tuner, settings: InjectSettings) -> None:
    """Check that a tuner can be trained with what the settings add to the loss. Raises InputError."""
    if settings.drift and tuner not in BILINEAR:
        raise InputError(f"inject.drift is for an update of the form B A; the tuner {tuner} has another")
    if settings.distil and tuner in ("full", "corda"):
        raise InputError(f"inject.distil needs the untrained model beside the trained one; the tuner {tuner} has none")


def _corda(model: "PreTrainedModel", common: dict[str, Any], kept: Sequence[Example]) -> Any:
    from peft.tuners.lora.config import CordaConfig

    if not kept:
        raise InputError("corda needs examples of what is to be kept: give a skill")
    try:
        from peft.tuners.lora.corda import preprocess_corda
    except ModuleNotFoundError as error:
        raise InputError(f"PEFT's CorDA needs the package {error.name}: pip install attrs") from None
    config = LoraConfig(**common, init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm"))

    def run() -> None:  # one text at a time: CorDA's hooks know no padding
        for prompt, answer in kept:
            model(input_ids=torch.tensor([[*prompt, *answer]], device=model.device), use_cache=False)

    with torch.no_grad():
        preprocess_corda(model, config, run_model=run)
    return get_peft_model(model, config)


@torch.no_grad()
def live_delta(model: nn.Module, name: str, W: Tensor) -> Tensor:
    """ΔW (m, n) of one matrix of a model in training: what it now multiplies its inputs with, minus W.

    Args:
        model: what `tune` returned.
        name: the path of the matrix in the model without the adapter.
        W: the matrix before any training, (m, n).
    """
    if not hasattr(model, "peft_config"):
        return weight(model.get_submodule(name)) - W
    layer: Any = model.get_submodule(f"base_model.model.{name}")
    if not hasattr(layer, "base_layer"):  # a matrix that is not taught
        return weight(layer) - W
    stored = layer.base_layer.weight
    if "default" in getattr(layer, "lora_magnitude_vector", {}):  # DoRA: also W itself is rescaled
        before = stored.detach().clone()
        layer.merge()
        delta = stored.detach() - before
        layer.unmerge()
        stored.copy_(before)
    else:
        delta = layer.get_delta_weight("default")
    delta = delta.T if isinstance(layer.base_layer, Conv1D) else delta
    return delta + (weight(layer.base_layer) - W)  # 0, but for CorDA, which takes its start out of W
