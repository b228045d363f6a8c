"""Stage 2: teach the facts with LoRA, under the constraint, by TRL's SFTTrainer.

Question/answer pairs, loss on the answer only. The base weights are the expert's or the original's; the adapter's
update cannot touch the protected subspace (see `lora.py`). The same function trains the control, plain LoRA, with
`protection` None: both arms share the facts, their order and the budget.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from palora.errors import DivergedError, InputError
from palora.facts import Fact
from palora.files import clear_errors, load_tensors, save_tensors, sha256
from palora.keep import Kept
from palora.lora import load_trained_parameters, trained_parameters
from palora.metrics import MetricsLog, read_metrics
from palora.models import find_targets, fingerprints, taught, weight
from palora.progress import progress_bar
from palora.prompts import encode_example
from palora.recipe import InjectSettings
from palora.regularisers import Rehearsal, Term, drift
from palora.scoring import ask_facts, share_correct
from palora.statistics import InputStatistics
from palora.subspace import ProtectedSubspaces
from palora.tuners import Tuner, tune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTORS = "trained.safetensors"
OnRecall = Callable[[Any, float, int], None]


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
    tuner: Tuner = "lora",
    kept: Sequence[Kept] = (),
    statistics: Mapping[str, InputStatistics] | None = None,
) -> tuple[Any, dict[str, Any]]:
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
        tuner: how the update is parametrised (`tuners.py`); others than lora only without a protection.
        kept: what is to be kept, for `settings.replay` and `distil` and the tuner corda.
        statistics: the inputs of what is to be kept, for `settings.drift`.

    Returns: the PEFT model (`save_pretrained` writes a plain LoRA adapter), or for the tuner full the model itself, and
    the training record.

    Raises: InputError where a fact is longer than the model's context, or something to keep is missing; PaloraError
    when the loss is no longer a number.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    rows = _rows(model, tokenizer, facts, settings)
    names = taught(list(protection or find_targets(model, targets)), settings.targets)
    modules = find_targets(model, names)
    rehearsed = kept if settings.rehearses or tuner == "corda" else ()
    weighed = [float(s.factor.double().sum()) for s in (statistics or {}).values()] if settings.drift else []
    identity = sha256(
        repr((settings, rows, seed, fingerprints(modules), _identity(protection), tuner, rehearsed, weighed)).encode()
    )
    checkpoint = _last_checkpoint(work, identity)
    torch.manual_seed(seed)
    before = {name: weight(module).clone() for name, module in modules.items()} if settings.drift else {}
    examples = [example for thing in kept if thing.weight > 0 for example in thing.examples]
    tuned = tune(model, settings, names, protection, tuner, examples)
    terms = _terms(settings, kept, {n: s for n, s in (statistics or {}).items() if n in before}, before, seed, tuner)
    resume_step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
    log = MetricsLog(work / "metrics.jsonl", stage, resume_step)
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    watch = _Watch(tokenizer, facts, settings, log, steps_per_epoch, on_recall)
    arguments = _arguments(settings, work, seed, steps_per_epoch, model.device.type)
    if _learned(work, resume_step, settings):
        arguments.num_train_epochs = resume_step // steps_per_epoch  # it had stopped there: do not go on

    class Trainer(SFTTrainer):
        """TRL's, with what is added to the loss while training."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss + sum(term(model, self.state.global_step) for term in terms) if terms else loss

    trainer = Trainer(
        model=tuned,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch, _ExactResume()],
    )
    trainer.remove_callback(PrinterCallback)  # the watch writes the curve
    bar = progress_bar(f"Teaching the facts ({stage})", settings.epochs * steps_per_epoch, resume_step)
    with clear_errors(work / "checkpoints"), bar as watch.advance:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not all(factor.isfinite().all() for factor in trained_parameters(tuned).values()):  # after the last log
        raise _diverged("an update", trainer.state.global_step, settings)
    record = {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 3),
        "loss": _last(work, "loss"),
        "recall_while_training": _last(work, "recall"),
        "settings": settings.model_dump(),
        "seed": seed,
    }
    return tuned.eval(), record


def _terms(
    settings: InjectSettings,
    kept: Sequence[Kept],
    statistics: Mapping[str, InputStatistics],
    before: Mapping[str, Tensor],
    seed: int,
    tuner: Tuner,
) -> list[Term]:
    """What the settings add to the loss."""
    terms: list[Term] = []
    if settings.drift:
        if tuner not in ("lora", "mica"):
            raise InputError(f"inject.drift is for an update of the form B A; the tuner {tuner} has another")
        terms.append(drift(settings.drift, statistics, before))
    if settings.replay or settings.distil:
        if settings.distil and tuner in ("full", "corda"):
            raise InputError(
                f"inject.distil needs the untrained model beside the trained one; the tuner {tuner} has none"
            )
        terms.append(Rehearsal(settings.replay, settings.distil, kept, settings.kept_batch_size, seed))
    return terms


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
        save_tensors(folder / FACTORS, trained_parameters(model))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        stored = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FACTORS
        if stored.exists():
            load_trained_parameters(model, load_tensors(stored))


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
