"""Stage 2 on several devices: `torchrun` starts a process for each, and transformers' Trainer shards the model over
them by FSDP2, each layer in its turn whole on every device.

What is ours follows: where a factor is read outside a forward pass it is gathered, and a step's kept rows are spread
over the processes. Answers are written by all of them together. Protected bases and statistics are whole on every one.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from palora.common.errors import InputError
from palora.common.ranks import processes, rank
from palora.common.settings import InjectSettings

Row = TypeVar("Row")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered, differentiable. All processes must ask for it in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(model: Any) -> dict[str, Tensor]:
    """The state of a trained adapter, as `save_pretrained` takes it: folded, and whole on every process. It is the last
    thing that they do together."""
    state = {name: whole(value).cpu() for name, value in model.state_dict().items() if "lora_" in name}
    distributed.destroy_process_group()
    return state


def share(rows: Sequence[Row]) -> list[Row]:
    """This process's part of the rows of a step; all of them where there are fewer than processes."""
    return list(rows[rank() :: processes()] if len(rows) >= processes() else rows)


def prepare(settings: InjectSettings, load: str | None = None) -> None:
    """Take the GPU of this process, of several. Raises InputError where they cannot train together what one can."""
    n = processes()
    if n == 1:
        return
    if settings.batch_size % n:
        raise InputError(
            f"inject.batch_size is {settings.batch_size}, of all {n} processes together: choose a multiple of {n}"
        )
    if load:
        raise InputError("a quantised base works in one process: leave out load, or start it without torchrun")
    if settings.targets_by == "sdft" or settings.lose_at_most is not None:
        raise InputError("inject.targets_by=sdft and lose_at_most work in one process: start it without torchrun")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def arguments(model: Any) -> dict[str, Any]:
    """What a Trainer is told beside all else where it is one of several processes: to shard the model, and to write no
    checkpoint, which is of one process; so what was stopped begins anew."""
    if processes() == 1:
        return {}
    layers = sorted(getattr(model, "_no_split_modules", None) or ())
    config = {"fsdp_version": 2, "transformer_layer_cls_to_wrap": layers, "cpu_ram_efficient_loading": False}
    return {"save_strategy": "no", "fsdp": "full_shard auto_wrap", "fsdp_config": config}
