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
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from palora.algebra.statistics import InputStatistics, combine
from palora.algebra.subspace import ProtectedSubspaces
from palora.bench.tuners import BILINEAR, Tuner, check_terms, tune
from palora.common.errors import InputError
from palora.common.files import clear_errors, sha256
from palora.common.metrics import MetricsLog, read_metrics
from palora.common.progress import progress_bar
from palora.common.settings import InjectSettings
from palora.data.facts import Fact
from palora.language.keep import Kept
from palora.language.models import fingerprints
from palora.language.prompts import encode_example
from palora.language.targets import find_targets, taught, weight
from palora.training.lora import trained_parameters
from palora.training.terms import Drift, Rehearsal, Term
from palora.training.watching import FACTORS, Allowance, ExactResume, OnRecall, Watch, diverged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    statistics: Mapping[str, Mapping[str, InputStatistics]] | None = None,
    kept_share: Callable[[Any], float] | None = None,
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
        statistics: the inputs of what is to be kept, by kind (`statistics.from_tensors`), for `settings.drift`; the
            drift on the skills' is part of the curve.
        kept_share: (the model) -> the smallest share of a skill that is left, for `settings.lose_at_most`.

    Returns: the PEFT model (`save_pretrained` writes a plain LoRA adapter), or for the tuner full the model itself, and
    the training record.

    Raises: InputError where a fact is longer than the model's context, or something to keep is missing; PaloraError
    when the loss is no longer a number.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    check_terms(tuner, settings)
    rows = _rows(model, tokenizer, facts, settings)
    names = taught(list(protection or find_targets(model, targets)), settings.targets)
    modules = find_targets(model, names)
    rehearsed = kept if settings.rehearses or tuner == "corda" else ()
    weighed = combine(statistics or {}, settings.keep.weights) if settings.drift else {}
    sums = [float(own.factor.double().sum()) for own in weighed.values()]
    identity = sha256(
        repr((settings, rows, seed, fingerprints(modules), _identity(protection), tuner, rehearsed, sums)).encode()
    )
    checkpoint = _last_checkpoint(work, identity)
    torch.manual_seed(seed)
    W = {name: weight(module) for name, module in modules.items()}  # read before anything is put into their place
    term = Drift(weighed, W, settings.drift / len(rows)) if settings.drift else None
    skills = (statistics or {}).get("skills")
    measured = Drift(skills, W) if skills and tuner in BILINEAR else None
    terms: list[Term] = [term] if term else []
    if settings.rehearses:
        terms.append(Rehearsal(settings.replay, settings.distil, kept, settings.kept_batch_size, seed))
    examples = [example for thing in kept if thing.weight > 0 for example in thing.examples]
    tuned = tune(model, settings, names, protection, tuner, examples)
    allowance = None
    if settings.lose_at_most is not None:
        if kept_share is None:
            raise InputError("inject.lose_at_most needs a skill to measure: give --skill")
        allowance = Allowance(settings.lose_at_most, kept_share, term, work)
    resume_step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
    log = MetricsLog(work / "metrics.jsonl", stage, resume_step)
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    watch = Watch(tokenizer, facts, settings, log, steps_per_epoch, on_recall, measured, allowance)
    if allowance:
        allowance.resume(work / "metrics.jsonl", resume_step)
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
        callbacks=[watch, ExactResume()],
    )
    trainer.remove_callback(PrinterCallback)  # the watch writes the curve
    bar = progress_bar(f"Teaching the facts ({stage})", settings.epochs * steps_per_epoch, resume_step)
    with clear_errors(work / "checkpoints"), bar as watch.advance:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not all(factor.isfinite().all() for factor in trained_parameters(tuned).values()):  # after the last log
        raise diverged("an update", trainer.state.global_step, settings)
    curve = read_metrics(work / "metrics.jsonl")
    checks = [row for row in curve if "recall" in row]
    allowed = allowance.restore(tuned, checks[-1] if checks else {}) if allowance else {}
    record = {
        **allowed,
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 3),
        "loss": _last(curve, "loss"),
        "recall_while_training": _last(curve, "recall"),
        "settings": settings.model_dump(),
        "seed": seed,
    }
    return tuned.eval(), record


def _last(curve: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The last value of `key` in the training curve."""
    return next((row[key] for row in reversed(curve) if key in row), None)


def _learned(work: Path, step: int, settings: InjectSettings) -> bool:
    """Whether the curve says that the wished recall was reached at this very step."""
    target = settings.stop_at_recall
    rows = [row for row in read_metrics(work / "metrics.jsonl") if row["step"] == step and row.get("within", True)]
    return target is not None and any(row.get("recall", -1) >= target for row in rows)


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


def _identity(protection: ProtectedSubspaces | None) -> str:
    if protection is None:
        return "none"
    parts = [f"{n}:{s.input if s.input is None else s.input.double().sum().item()}" for n, s in protection.items()]
    return repr(sorted(protection.record.items(), key=lambda item: item[0])) + "".join(parts)


def _last_checkpoint(work: Path, identity: str) -> Path | None:
    """The newest checkpoint of this very training; those of another one are thrown away."""
    import shutil

    from palora.common.files import atomic_write_text

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
