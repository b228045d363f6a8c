"""The logits of answers alone, and what comes of them by slices: a model computes those of every token unless it is
told which are wanted, and with a vocabulary of 152,000 words one question of 200 tokens is 120 MB of them."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

SLICE = 64  # tokens whose words are looked at at once


def answer_logits(model: Any, ids: Tensor, attended: Tensor, answers: Tensor) -> Tensor:
    """What a model says at the places of the answers, row after row, (places, vocabulary): differentiable.

    Args:
        model: a causal language model, or a PEFT model of one.
        ids, attended, answers: as `prompts.pad` gives them.
    """
    given = {"input_ids": ids, "attention_mask": attended, "use_cache": False}
    if "logits_to_keep" not in signature(getattr(model, "get_base_model", lambda: model)().forward).parameters:
        return model(**given).logits[:, :-1][answers]
    wanted = answers.any(0).nonzero()[:, 0]  # where an answer of any row goes on
    return model(**given, logits_to_keep=wanted).logits[answers[:, wanted]]


def by_slices(of: Callable[..., Tensor], *places: Tensor) -> list[Tensor]:
    """`of` for every slice of the `places` (each (places, …)), computed again for the gradient: log p and what comes of
    it are several copies of the logits in float32."""
    slices = zip(*(tensor.split(SLICE) for tensor in places), strict=True)
    return [checkpoint(of, *parts, use_reentrant=False) for parts in slices]
