"""The training curve in TensorBoard, Weights & Biases or another logger, through the trainer's own callbacks.

the loss and its parts     as the trainer logs them: loss, loss_facts, loss_drift, loss_rehearsal, learning_rate, …
recall, kept, drift        as `Watch` measures them, at the step where it does
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from palora.common.errors import InputError

NONE = "none"
TENSORBOARD = "tensorboard"  # its files stand beside the adapter, in this folder


def loggers(named: str) -> list[str]:
    """The loggers that `inject.report_to` names, with commas. Raises InputError where one is unknown or not
    installed."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = [name for part in named.split(",") if (name := part.strip()) and name != NONE]
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to: there is no {name!r}; there are none, {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to: {name} is not installed: pip install {name}, or leave report_to out")
    return names


def place(trainer: Any, folder: Path) -> None:
    """Let TensorBoard write into `folder`: the trainer would write beside its checkpoints, which are thrown away."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(folder)


def reporter(trainer: Any) -> Callable[[Mapping[str, Any]], None]:
    """A function that hands a row of the curve to every logger of a trainer; only the row's numbers are for them.

    Not by `trainer.log`: TRL would put the batches' figures so far into that row."""
    from transformers import TrainerControl

    def report(row: Mapping[str, Any]) -> None:
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        # A control of its own: the trainer's would be told that the loss of this step is logged.
        trainer.callback_handler.on_log(trainer.args, trainer.state, TrainerControl(), numbers)

    return report


def close(names: list[str]) -> None:
    """End the run of Weights & Biases, or the next arm of the same process would go on writing into it."""
    if "wandb" in names:
        import wandb

        wandb.finish()
