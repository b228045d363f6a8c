"""What happens beside the training steps of stage 2: the curve, the stop at a recall, the loss that is allowed, and a
resume that is exact."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from palora.common.errors import DivergedError
from palora.common.files import check_tensors, load_tensors, save_tensors
from palora.common.folders import seal
from palora.common.metrics import MetricsLog, read_metrics
from palora.common.settings import InjectSettings
from palora.data.facts import Fact
from palora.language.scoring import Answer, ask_facts, ask_until_missed, beside_recall, share_correct
from palora.training.lora import load_trained_parameters, trained_parameters
from palora.training.terms import Drift

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FACTORS = "trained.safetensors"
CHECKPOINT = "checkpoint.json"  # the last file of a checkpoint
WITHIN = "within.safetensors"
OnRecall = Callable[[Any, float, float], None]


def diverged(what: str, step: int, settings: InjectSettings) -> DivergedError:
    """The error of a training that has come to NaN or infinity."""
    return DivergedError(
        f"{what} is no longer a number at step {step}; lower the learning rate (now {settings.learning_rate}) and run "
        "this again"
    )


class Watch(TrainerCallback):
    """Writes the training curve, stops at the wished recall, and refuses to go on with NaN.

    Args:
        measured: drift on the skills' inputs, for the curve; None where there is none.
        allowance: how much of the skills may be lost; None for any.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        facts: Sequence[Fact],
        settings: InjectSettings,
        log: MetricsLog,
        steps_per_epoch: int,
        on_recall: OnRecall | None,
        measured: Drift | None,
        allowance: "Allowance | None",
    ) -> None:
        self.tokenizer, self.facts, self.settings, self.log = tokenizer, facts, settings, log
        self.steps_per_epoch, self.on_recall = steps_per_epoch, on_recall
        self.measured, self.allowance = measured, allowance
        self.advance: Callable[[int], None] = lambda steps: None
        self.report: Callable[[Mapping[str, Any]], None] = lambda row: None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # Not at the end of the epoch, after the step's checkpoint: a checkpoint stands for a check that is done.
        self.advance(1)
        step = state.global_step
        if self.measured is not None and step % self.steps_per_epoch == 0:
            drifts = self.measured.by_matrix(model)
            row = {"drift": sum(drifts.values()) / len(drifts), "drift_by_matrix": drifts}
            self.log.write(step, epoch=step // self.steps_per_epoch, **row)
            self.report(row)
        if self._due(step):
            control.should_training_stop |= self._measure(model, step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise diverged("the loss", state.global_step, self.settings)
        self.log.write(state.global_step, epoch=round(state.epoch, 3), loss=loss)

    def _due(self, step: int) -> bool:
        """Whether recall is to be measured at this step: each `recall_every` epochs, and at the end."""
        wanted = self.settings.stop_at_recall is not None or self.on_recall is not None or self.allowance is not None
        every = self.settings.recall_every * self.steps_per_epoch
        full = int(step / every + 1e-9) > int((step - 1) / every + 1e-9)
        return wanted and (full or self._last(step))  # what is saved is measured

    def _last(self, step: int) -> bool:
        return step == self.settings.epochs * self.steps_per_epoch

    def _ask(self, model: Any, step: int) -> list[Answer]:
        """All facts; where the check only tells whether to stop, no more of them than that takes."""
        target, others = self.settings.stop_at_recall, (self.on_recall, self.allowance)
        if target is None or any(others) or self._last(step):
            return ask_facts(model, self.tokenizer, self.facts)
        return ask_until_missed(model, self.tokenizer, self.facts, target)

    def _measure(self, model: Any, step: int) -> bool:
        """Measure recall and what is kept; True where training is to stop."""
        target, epoch = self.settings.stop_at_recall, round(step / self.steps_per_epoch, 3)
        model.eval()
        answers = self._ask(model, step)
        recall = share_correct(answers)
        row: dict[str, Any] = {"recall": recall, **beside_recall(answers)}
        if len(answers) < len(self.facts):
            row["asked"] = len(answers)
        if self.allowance is not None:
            row |= self.allowance.check(model, recall, epoch)
        self.log.write(step, epoch=epoch, **row)
        self.report(row)
        if self.on_recall is not None:
            self.on_recall(model, recall, epoch)
        model.train()
        return target is not None and recall >= target and row.get("within", True)


class Allowance:
    """`lose_at_most`: how much of the skills may be lost, as measured on validation problems at every recall check.

    Where more is lost, the weight of the drift term is doubled, so that training turns back towards what is kept. What
    is returned in the end is the last state within the allowance.

    Args:
        allowed: the share of each skill that may be lost.
        kept: (the model) -> the smallest share of a skill that is left, 1 being all.
        term: the drift term of the loss; None where there is none to double.
        work: where the last state within the allowance is kept.
    """

    def __init__(self, allowed: float, kept: Callable[[Any], float], term: Drift | None, work: Path) -> None:
        self.allowed, self.kept, self.term, self.file = allowed, kept, term, work / WITHIN

    def resume(self, metrics: Path, step: int) -> None:
        """Take up the weight that the drift term had at a step."""
        rows = [row for row in read_metrics(metrics) if row["step"] <= step and "drift_weight" in row]
        if self.term is not None and rows:
            self.term.weight = rows[-1]["drift_weight"]
        if not rows:
            self.file.unlink(missing_ok=True)

    def check(self, model: Any, recall: float, epoch: float) -> dict[str, Any]:
        """Measure; store the state, or make the drift term heavier. Returns what to log."""
        share = self.kept(model)
        within = share >= 1 - self.allowed
        if within:
            save_tensors(self.file, trained_parameters(model), {"epoch": str(epoch), "recall": repr(recall)})
        elif self.term is not None:
            self.term.weight *= 2
        weight = None if self.term is None else self.term.weight
        return {"kept": share, "within": within, "drift_weight": weight}

    def restore(self, model: Any, last: Mapping[str, Any]) -> dict[str, Any]:
        """Go back to the last state within the allowance, unless that is where training ended.

        Args:
            last: the last check's row of the curve.

        Returns: for the record.
        """
        record = {"lose_at_most": self.allowed, "kept_while_training": last.get("kept"), "restored": None}
        if last.get("within"):
            return record
        if self.file.exists():
            load_trained_parameters(model, load_tensors(self.file))
            stored = check_tensors(self.file)
            return record | {"restored": {"epoch": float(stored["epoch"]), "recall": float(stored["recall"])}}
        # Nothing within: the model as it was.
        empty = {n: torch.zeros_like(p) for n, p in trained_parameters(model).items() if "lora_B" in n}
        load_trained_parameters(model, empty)
        return record | {"restored": {"epoch": 0, "recall": None}}


class ExactResume(TrainerCallback):
    """A Trainer checkpoint holds folded factors; beside them the trained ones are kept, so that a resumed run is the
    uninterrupted one bit for bit. Its last file holds the hashes of the others, and how many rows the curve had: where
    either is damaged it is not continued from."""

    def __init__(self, log: MetricsLog) -> None:
        self.log = log

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_tensors(folder / FACTORS, trained_parameters(model))
        seal(folder, CHECKPOINT, {"step": state.global_step, "rows": self.log.rows})

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        stored = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FACTORS
        if stored.exists():
            load_trained_parameters(model, load_tensors(stored))
