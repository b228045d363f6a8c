"""Stage 2: teach the facts with LoRA, under the constraint, by TRL's SFTTrainer.

Question/answer pairs, loss on the answer only. The base weights are the expert's or the original's; the adapter's
update cannot touch the protected subspace (see `lora.py`). The same function trains the control, plain LoRA, with
`protection` None: both arms share the facts, their order and the budget.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from palora.errors import DivergedError, InputError
from palora.facts import Fact
from palora.files import clear_errors, load_tensors, save_tensors, sha256
from palora.lora import PaloraConfig, load_trained_factors, trained_factors
from palora.metrics import MetricsLog, read_metrics
from palora.models import find_targets, fingerprints, target_endings
from palora.progress import progress_bar
from palora.prompts import encode_example
from palora.recipe import InjectSettings
from palora.scoring import ask_facts, share_correct
from palora.subspace import ProtectedSubspaces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTORS = "trained_factors.safetensors"
OnRecall = Callable[[PeftModel, float, int], None]


def inject(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    settings: InjectSettings,
    work: Path,
    protection: ProtectedSubspaces | None = None,
    targets: list[str] | None = None,
    seed: int = 0,
    stage: str = "palora",
    on_recall: OnRecall | None = None,
    dora: bool = False,
) -> tuple[PeftModel, dict[str, Any]]:
    """Train an adapter on the facts.

    Args:
        model: the base of this stage: the expert's weights already applied, or the original model.
        work: a folder of its own for checkpoints and `metrics.jsonl`. The same training called again continues from
            there: remove the folder to train afresh.
        protection: what the update may not touch; None is plain LoRA.
        targets: endings of the targeted matrices; by default those of the protection, or the MLP matrices.
        stage: the arm's name in the metrics.
        on_recall: called at every recall check with the model (in evaluation mode), its recall and the epoch. With it,
            recall is checked also where `stop_at_recall` is not set.
        dora: PEFT's DoRA (arXiv 2402.09353) in place of LoRA; only without a protection.

    Returns: the PEFT model (`save_pretrained` writes a plain LoRA adapter) and the training record.

    Raises: InputError where a fact is longer than the model's context; PaloraError when the loss is no longer a number.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    rows = _rows(model, tokenizer, facts, settings)
    names = list(protection) if protection else list(find_targets(model, targets))
    modules = find_targets(model, names)
    identity = sha256(repr((settings, rows, seed, fingerprints(modules), _identity(protection), dora)).encode())
    checkpoint = _last_checkpoint(work, identity)
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "target_modules": target_endings(model, names),
        "task_type": "CAUSAL_LM",
    }
    config = PaloraConfig(**common, protection=protection) if protection else LoraConfig(**common, use_dora=dora)
    peft_model = get_peft_model(model, config)
    resume_step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
    log = MetricsLog(work / "metrics.jsonl", stage, resume_step)
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    watch = _Watch(tokenizer, facts, settings, log, steps_per_epoch, on_recall)
    arguments = _arguments(settings, work, seed, steps_per_epoch, model.device.type)
    if _learned(work, resume_step, settings):
        arguments.num_train_epochs = resume_step // steps_per_epoch  # it had stopped there: do not go on
    trainer = SFTTrainer(
        model=peft_model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch, _ExactResume()],
    )
    trainer.remove_callback(PrinterCallback)  # the watch writes the curve
    bar = progress_bar(f"Teaching the facts ({stage})", settings.epochs * steps_per_epoch, resume_step)
    with clear_errors(work / "checkpoints"), bar as watch.advance:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not all(factor.isfinite().all() for factor in trained_factors(peft_model).values()):  # after the last log
        raise _diverged("an update", trainer.state.global_step, settings)
    record = {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 3),
        "loss": _last(work, "loss"),
        "recall_while_training": _last(work, "recall"),
        "settings": settings.model_dump(),
        "seed": seed,
    }
    return peft_model.eval(), record


def _last(work: Path, key: str) -> Any:
    """The last value of `key` in the training curve."""
    return next((row[key] for row in reversed(read_metrics(work / "metrics.jsonl")) if key in row), None)


def _learned(work: Path, step: int, settings: InjectSettings) -> bool:
    """Whether the curve says that the wished recall was reached at this very step."""
    target = settings.stop_at_recall
    rows = read_metrics(work / "metrics.jsonl")
    return target is not None and any(row["step"] == step and row.get("recall", -1) >= target for row in rows)


def _rows(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    settings: InjectSettings,
) -> list[dict[str, list[int]]]:
    """One row a question: token ids, and labels that are −100 on the prompt."""
    limit = getattr(model.config, "max_position_embeddings", None)
    rows = []
    for fact in facts:
        for question in (fact.question, *(fact.paraphrases if settings.paraphrases else ())):
            prompt, answer = encode_example(tokenizer, question, fact.answer)
            if limit and len(prompt) + len(answer) > limit:
                raise InputError(f"a fact is longer than the model's {limit} tokens: {question[:60]!r}; shorten it")
            rows.append({"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer})
    return rows


def _arguments(settings: InjectSettings, work: Path, seed: int, steps_per_epoch: int, device: str) -> Any:
    from trl import SFTConfig

    arguments = SFTConfig(
        output_dir=str(work / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.bf16,
        max_length=None,
        packing=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every or steps_per_epoch,
        save_total_limit=2,  # one is whole while the next is written
        logging_steps=max(1, steps_per_epoch // 4),
        logging_nan_inf_filter=False,  # a NaN must be seen, not averaged away
        report_to="none",
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        disable_tqdm=True,
    )
    arguments._n_gpu = 1  # more would be torch's DataParallel: other batches than were asked for
    return arguments


def _diverged(what: str, step: int, settings: InjectSettings) -> DivergedError:
    return DivergedError(
        f"{what} is no longer a number at step {step}; lower the learning rate (now {settings.learning_rate}) and run "
        "this again"
    )


class _Watch(TrainerCallback):
    """Writes the training curve, stops at the wished recall, and refuses to go on with NaN."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        facts: Sequence[Fact],
        settings: InjectSettings,
        log: MetricsLog,
        steps_per_epoch: int,
        on_recall: OnRecall | None,
    ) -> None:
        self.tokenizer, self.facts, self.settings, self.log = tokenizer, facts, settings, log
        self.steps_per_epoch, self.on_recall = steps_per_epoch, on_recall
        self.advance: Callable[[int], None] = lambda steps: None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # Not at the end of the epoch, after the step's checkpoint: a checkpoint stands for a check that is done.
        self.advance(1)
        if epoch := self._due(state.global_step):
            control.should_training_stop |= self._measure(model, state.global_step, epoch)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise _diverged("the loss", state.global_step, self.settings)
        self.log.write(state.global_step, epoch=round(state.epoch, 3), loss=loss)

    def _due(self, step: int) -> int:
        """The epoch after which recall is to be measured at this step; 0 where it is not."""
        epoch, within = divmod(step, self.steps_per_epoch)
        wanted = self.settings.stop_at_recall is not None or self.on_recall is not None
        return epoch if wanted and within == 0 and epoch % self.settings.recall_every == 0 else 0

    def _measure(self, model: Any, step: int, epoch: int) -> bool:
        """Measure recall; True where training is to stop."""
        target = self.settings.stop_at_recall
        model.eval()
        recall = share_correct(ask_facts(model, self.tokenizer, self.facts))
        self.log.write(step, epoch=epoch, recall=recall)
        if self.on_recall is not None:
            self.on_recall(model, recall, epoch)
        model.train()
        return target is not None and recall >= target


class _ExactResume(TrainerCallback):
    """A Trainer checkpoint holds folded factors; beside them the trained ones are kept, so that a resumed run is the
    uninterrupted one bit for bit."""

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_tensors(folder / FACTORS, trained_factors(model))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        stored = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FACTORS
        if stored.exists():
            load_trained_factors(model, load_tensors(stored))


def _identity(protection: ProtectedSubspaces | None) -> str:
    if protection is None:
        return "none"
    parts = [f"{n}:{s.input if s.input is None else s.input.double().sum().item()}" for n, s in protection.items()]
    return repr(sorted(protection.record.items(), key=lambda item: item[0])) + "".join(parts)


def _last_checkpoint(work: Path, identity: str) -> Path | None:
    """The newest checkpoint of this very training; those of another one are thrown away."""
    import shutil

    from palora.files import atomic_write_text

    folder, stamp = work / "checkpoints", work / "checkpoints" / "identity"
    if stamp.exists() and stamp.read_text() == identity:
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / FACTORS).exists():  # the last file of a checkpoint: this one was cut short
                shutil.rmtree(checkpoint)
        found = get_last_checkpoint(str(folder))
        return Path(found) if found else None
    shutil.rmtree(folder, ignore_errors=True)
    atomic_write_text(stamp, identity)
    return None
