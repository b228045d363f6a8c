"""Stage 2: teach the facts with LoRA, under the constraint, by TRL's SFTTrainer.

Question/answer pairs, loss on the answer only. The update cannot touch the protected subspace (see `lora.py`). The same
function trains the control, plain LoRA, with `protection` None: both arms share the facts, their order and the budget.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from palora.algebra.statistics import Statistics
from palora.algebra.subspace import ProtectedSubspaces
from palora.common.errors import InputError
from palora.common.files import atomic_write_text, clear_errors
from palora.common.folders import check_unchanged, read_marker
from palora.common.hashes import hash_value
from palora.common.metrics import MetricsLog, check_curve, read_metrics
from palora.common.progress import progress_bar
from palora.common.ranks import processes
from palora.common.settings import InjectSettings
from palora.data.facts import Fact
from palora.language.generation import end_tokens
from palora.language.keep import Kept
from palora.language.models import fingerprints
from palora.language.prompts import asked_how, chat_kwargs, check_facts, encode_example, messages
from palora.language.targets import find_targets, taught
from palora.language.words import TOLD
from palora.training import sharding
from palora.training.keeping import loss_terms, with_terms
from palora.training.lora import is_plain_product, lora_model, trained_parameters
from palora.training.reporting import TENSORBOARD, close, loggers, place, reporter
from palora.training.terms import Drift
from palora.training.watching import CHECKPOINT, Allowance, ExactResume, OnRecall, Watch, diverged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")

SDFT_LONGEST = 64  # tokens of an answer
SDFT_TEACHER = TOLD.format(question="{prompt}", answer="{privileged_context}")  # TRL fills these in

Adapt = Callable[["PreTrainedModel", InjectSettings, list[str], ProtectedSubspaces | None], Any]


@dataclass(frozen=True)
class Beside:
    """What stands beside the facts in a training.

    Args:
        arm: its name in the metrics.
        targets: endings of the targeted matrices; by default those of the protection, or the MLP matrices.
        statistics: the inputs of what is to be kept, for `settings.drift` and the drift in the curve; by default those
            of the protection.
        rows: what is to be kept and how much it weighs, for `settings.replay` and `distil`.
        kept_share: (the model) -> the smallest share of a skill that is left, for `settings.lose_at_most`.
        on_recall: called at every recall check with the model (in evaluation mode), its recall and the epoch. With it,
            recall is checked also where `stop_at_recall` is not set.
        adapt: how a model is made trainable; LoRA, under the protection where there is one.
    """

    arm: str = "palora"
    targets: list[str] | None = None
    statistics: Statistics | None = None
    rows: Sequence[tuple[float, Kept]] = ()
    kept_share: Callable[[Any], float] | None = None
    on_recall: OnRecall | None = None
    adapt: Adapt = lora_model


def inject(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    settings: InjectSettings,
    work: Path,
    protection: ProtectedSubspaces | None = None,
    beside: Beside = Beside(),
    seed: int = 0,
) -> tuple[Any, dict[str, Any]]:
    """Train an adapter on the facts: LoRA under the constraint, ΔW = (α / r) · P_L B A P_R (PALoRA, arXiv 2605.24549),
    and what is kept in the loss.

    Args:
        model: the model to teach. It is wrapped in place, as PEFT does.
        tokenizer: its tokenizer, as `load_model` sets it.
        facts: what is taught; their `teach`, where they have it, in place of question and answer.
        settings: rank, rate, epochs, and what is added to the loss.
        work: a folder of its own for checkpoints and `metrics.jsonl`. The same training called again continues from
            there: remove the folder to train afresh.
        protection: what the update may not touch; None is plain LoRA.
        beside: what else is given to this training.
        seed: of the adapter's first values, the order of the facts and dropout.

    Returns:
        The PEFT model (`save_pretrained` writes a plain LoRA adapter), and the training record.

    Raises:
        InputError: a fact is longer than the model's context, or something to keep is missing.
        PaloraError: the loss is no longer a number.
    """
    from datasets import Dataset

    rows = _rows(model, tokenizer, facts, settings)
    names = taught(list(protection or find_targets(model, beside.targets)), settings.targets)
    modules = find_targets(model, names)
    statistics = beside.statistics if beside.statistics is not None else getattr(protection, "statistics", Statistics())
    settings = with_drift_where_possible(settings, statistics)
    prints = fingerprints(modules, model)
    identity = _identity(facts, settings, prints, protection, beside, [seed, *asked_how(tokenizer)])
    checkpoint = _last_checkpoint(work, identity)
    torch.manual_seed(seed)
    terms = loss_terms(settings, len(rows), statistics, modules, beside.rows, seed)
    term = next((term for term in terms if isinstance(term, Drift)), None)
    skills = statistics.skills(names)
    measured = Drift(skills, modules) if skills else None
    tuned = beside.adapt(model, settings, names, protection)
    measured = measured if is_plain_product(tuned) else None
    allowance = None
    if settings.lose_at_most is not None:
        if beside.kept_share is None:
            raise InputError("inject.lose_at_most needs a skill to measure: give --skill")
        allowance = Allowance(settings.lose_at_most, beside.kept_share, term, work)
    resume_step = _step(checkpoint) if checkpoint else 0
    log = MetricsLog(work / "metrics.jsonl", beside.arm, resume_step)
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    watch = Watch(tokenizer, facts, settings, log, steps_per_epoch, beside.on_recall, measured, allowance)
    if allowance:
        allowance.resume(work / "metrics.jsonl", resume_step)
    reported = loggers(settings.report_to)
    kind, arguments = _trainer(model, tokenizer, settings, work, seed, steps_per_epoch)
    arguments.report_to, arguments.run_name = reported, beside.arm
    if _learned(work, resume_step, settings):
        arguments.num_train_epochs = resume_step // steps_per_epoch  # it had stopped there: do not go on

    trainer = with_terms(kind, terms)(
        model=tuned,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch, ExactResume(log)],
    )
    trainer.remove_callback(PrinterCallback)  # the watch writes the curve
    if reported:
        place(trainer, work.parent / TENSORBOARD / beside.arm)
        watch.report = reporter(trainer)
    bar = progress_bar(f"Teaching the facts ({beside.arm})", settings.epochs * steps_per_epoch, resume_step)
    with clear_errors(work / "checkpoints"), bar as watch.advance:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    close(reported)
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
        **{f"{name}_while_training": _last(curve, name) for name in ("recall", "recall_exact", "recall_f1")},
        "settings": settings.model_dump(),
        "seed": seed,
    }
    return tuned.eval(), record


def with_drift_where_possible(settings: InjectSettings, statistics: Statistics) -> InjectSettings:
    """The settings, without the drift term where nothing is known of what is to be kept. Raises InputError where it was
    asked for."""
    if not settings.drift or statistics:
        return settings
    if "drift" in settings.model_fields_set:
        raise InputError("--drift needs the statistics of what is kept: give a --protection that was made with --skill")
    return settings.model_copy(update={"drift": 0.0})


def _last(curve: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The last value of `key` in the training curve."""
    return next((row[key] for row in reversed(curve) if key in row), None)


def _learned(work: Path, step: int, settings: InjectSettings) -> bool:
    """Whether the curve says that the wished recall was reached at this very step."""
    target = settings.stop_at_recall
    rows = [row for row in read_metrics(work / "metrics.jsonl") if row["step"] == step and row.get("within", True)]
    return target is not None and any(row.get("recall", -1) >= target for row in rows)


def _rows(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", facts: Sequence[Fact], settings: InjectSettings
) -> list[dict[str, Any]]:
    """One row a lesson: token ids, and labels that are −100 on the prompt. For SDFT: a prompt, and what its teacher is
    told."""
    check_facts(tokenizer, facts)
    if settings.targets_by == "sdft":
        asked = [(question, fact.answer) for fact in facts for question, _ in lessons(fact, settings)]
        return [{"prompt": messages(tokenizer, q), "privileged_context": answer} for q, answer in asked]
    limit = getattr(model.config, "max_position_embeddings", None)
    rows = []
    for fact in facts:
        for question, text in lessons(fact, settings):
            prompt, answer = encode_example(tokenizer, question, text)
            if limit and len(prompt) + len(answer) > limit:
                raise InputError(f"a fact is longer than the model's {limit} tokens: {question[:60]!r}; shorten it")
            rows.append({"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer})
    return rows


def lessons(fact: Fact, settings: InjectSettings) -> list[tuple[str, str]]:
    """The questions and answers that a fact is taught by: those of its `teach`, unless bare answers are asked for."""
    own = [] if settings.targets_by == "bare" else [(lesson.question, lesson.answer) for lesson in fact.teach]
    others = fact.paraphrases if settings.paraphrases else ()
    return [*(own or [(fact.question, fact.answer)]), *((question, fact.answer) for question in others)]


def _trainer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: InjectSettings,
    work: Path,
    seed: int,
    steps_per_epoch: int,
) -> tuple[Any, Any]:
    """TRL's trainer for these targets, and its arguments."""
    own: dict[str, Any]
    device = model.device.type
    if settings.targets_by == "sdft":
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its interface may change: the version is pinned
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        logging.getLogger("trl.experimental.sdft").setLevel(
            logging.ERROR
        )  # it warns of PEFT models, whose base it takes

        # One answer a question by the model in training; its teacher is the model as it was, told the fact.
        own = {"num_generations": 1, "max_completion_length": SDFT_LONGEST, "teacher_prompt_template": SDFT_TEACHER}
        own["chat_template_kwargs"] = chat_kwargs(tokenizer)
        model.generation_config.eos_token_id = end_tokens(model, tokenizer)  # it knows of these and the tokenizer's
        own["distillation_topk"] = min(100, model.config.vocab_size)
        trainer, config = SDFTTrainer, SDFTConfig
    else:
        from trl import SFTConfig, SFTTrainer

        own, trainer, config = {"max_length": None, "packing": False}, SFTTrainer, SFTConfig
    arguments = config(
        **{**own, "save_strategy": "steps", **sharding.arguments(model)},
        output_dir=str(work / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // processes(),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=device != "cpu" if settings.bf16 is None else settings.bf16,
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
    return trainer, arguments


def _identity(
    facts: Sequence[Fact],
    settings: InjectSettings,
    prints: Mapping[str, str],
    protection: ProtectedSubspaces | None,
    beside: Beside,
    more: Sequence[Any],
) -> str:
    """What tells this training from another one. Not its tokens: a chat template may print the date."""
    bases = {} if protection is None else protection.subspaces
    sums = {name: [_sum(own.input), _sum(own.output), own.scale] for name, own in bases.items()}
    things = beside.statistics.things if beside.statistics else ()
    kept = [[thing.kind, thing.name, sum(_sum(own.factor) or 0 for own in thing.of.values())] for thing in things]
    shown = [[weight, thing.kind, thing.name, len(thing.examples)] for weight, thing in beside.rows]
    how = [settings.identity()["stated"], settings.paraphrases, beside.adapt.__name__, *more]
    return hash_value([how, [asdict(fact) for fact in facts], prints, sums, kept, shown])


def _sum(tensor: torch.Tensor | None) -> float | None:
    return None if tensor is None else tensor.double().sum().item()


def _last_checkpoint(work: Path, identity: str) -> Path | None:
    """The newest whole checkpoint of this very training; damaged ones, and those of another one, are thrown away."""
    folder, stamp = work / "checkpoints", work / "checkpoints" / "identity"
    if not stamp.exists() or stamp.read_text() != identity:
        shutil.rmtree(folder, ignore_errors=True)
        atomic_write_text(stamp, identity)
        return None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            record = read_marker(checkpoint, CHECKPOINT, "step", "files")
            check_unchanged(checkpoint, record)
            check_curve(work / "metrics.jsonl", record["step"], record.get("rows", 0))
            return checkpoint
        except InputError as error:
            if (checkpoint / CHECKPOINT).exists():  # otherwise it was cut short, as happens
                log.warning(
                    "a checkpoint is damaged, and is removed; training goes on from the one before it: %s", error
                )
            shutil.rmtree(checkpoint)
    return None


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.split("-")[-1])
