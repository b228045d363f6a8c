"""Stage 1: train the singular value fine-tuning expert on a skill.

Only the scales z are trained, one per singular component of every targeted matrix. Two objectives:

    reward      REINFORCE on verifiable answers: minimise −mean (R − b) log p(answer), R = +1 right, −1 wrong. The model
                answers freely; there is no KL term. b is 0 (published) or the batch's mean reward (`baseline`). Answers
                drawn at a temperature have their log p at that temperature; greedy ones at 1.
    next_token  the mean loss of the gold solutions' tokens. Cheap; in the SVF paper's ablation it lowered GSM8K
                (75.9 -> 60.5).

The best validation checkpoint is what is kept; the first one is the untouched base, so the expert is never worse than
it on the validation problems.
"""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from palora.common.errors import InputError, PaloraError
from palora.common.files import check_tensors, load_tensors, save_tensors
from palora.common.hashes import hash_tensors, hash_value
from palora.common.metrics import MetricsLog, check_curve
from palora.common.progress import progress_bar
from palora.common.settings import ExpertSettings
from palora.data.skills import Problem, Skill
from palora.language.generation import end_tokens, generate_ids, reply
from palora.language.logits import answer_logits, by_slices
from palora.language.models import checkpoint_activations, fingerprints
from palora.language.prompts import Example, asked_how, encode_example, encode_prompt, pad
from palora.language.scoring import Answer, share_correct, solve
from palora.language.targets import find_targets
from palora.training.svf import SVF, Expert, decompose_targets, svf_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger("palora")

_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's


@dataclass
class _State:
    """What a checkpoint holds: where training stands."""

    iteration: int
    base_accuracy: float  # before any step
    best_accuracy: float
    best: dict[str, Tensor]  # z_eff of the best validation so far


def train_expert(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    skill: Skill,
    settings: ExpertSettings,
    work: Path,
    model_name: str = "the model",
    targets: list[str] | None = None,
    seed: int = 0,
) -> Expert:
    """Train the singular value fine-tuning expert of a skill; the model comes back unchanged.

    One scale for each singular component of every targeted matrix is trained, W(z) = U diag(s · z) Vᵀ (Transformer²,
    arXiv 2501.06252). The best state by validation problems is kept, the untouched model among them.

    Args:
        model: the model, in float32 or bfloat16.
        tokenizer: its tokenizer, as `load_model` sets it.
        skill: where the problems and their scorer come from.
        settings: objective, rate, steps.
        work: a folder of its own for the checkpoint and `metrics.jsonl`. The same training called again continues
            from there, or returns at once where it was finished: remove the folder to train afresh.
        model_name: what the record calls the model.
        targets: endings of the targeted matrices, by default the MLP matrices.
        seed: of the problems of each step, and of the answers that are drawn.

    Returns:
        The scales, and the record of their training.

    Raises:
        InputError: the skill has no problems, or no solutions where they are needed.
        PaloraError: the loss is no longer a number.
    """
    train = skill.problems("train", settings.train_size, seed)
    validation = skill.problems("validation", settings.validation_size, seed)
    if train and train[0].choices and settings.objective == "reward":
        raise InputError(f"{skill.name} is solved by likelihood, which gives no answers to reward; use next_token")
    if not train or not validation:
        raise InputError(f"the skill {skill.name} has no training or no validation problems")
    if settings.objective == "next_token" and any(p.solution is None for p in train):
        raise InputError(f"the skill {skill.name} has problems without a solution; use the objective reward")
    modules = find_targets(model, targets)
    prints = fingerprints(modules, model)
    asked = [[asdict(p) for p in problems] for problems in (train, validation)]
    stated = settings.model_dump(exclude_defaults=True)
    identity = hash_value([stated, prints, str(model.dtype), skill.name, asked, seed, *asked_how(tokenizer)])
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    with svf_layers(modules, decompose_targets(model, modules), settings.parametrisation) as layers:
        optimizer = torch.optim.Adam([layer.p for layer in layers.values()], lr=settings.learning_rate)
        checkpoint = work / "checkpoint.safetensors"
        curve = work / "metrics.jsonl"
        state = _load(checkpoint, identity, layers, optimizer, curve)
        log = MetricsLog(curve, "expert", resume_step=state.iteration if state else 0)

        def answer_validation() -> list[Answer]:
            return solve(model, tokenizer, skill, validation, settings.rollout_batch_size)

        if state is None:
            base = share_correct(answer_validation())
            state = _State(0, base, base, _scales(layers))
            log.write(0, validation_accuracy=base)
        with progress_bar("Training the expert", settings.iterations, state.iteration) as advance:
            for iteration in range(state.iteration + 1, settings.iterations + 1):
                batch = random.Random(f"{seed}-{iteration}").sample(train, min(settings.batch_size, len(train)))
                row = _step(model, tokenizer, skill, batch, settings, optimizer, layers, seed * 1_000_003 + iteration)
                if iteration % settings.validate_every == 0 or iteration == settings.iterations:
                    row["validation_accuracy"] = share_correct(answer_validation())
                    if row["validation_accuracy"] > state.best_accuracy:
                        state.best_accuracy, state.best = row["validation_accuracy"], _scales(layers)
                log.write(iteration, **row)
                if "validation_accuracy" in row:
                    state.iteration = iteration
                    _save(checkpoint, identity, state, layers, optimizer, log.rows)
                advance(1)
    record = {
        "kind": "expert",
        "model": model_name,
        "skill": skill.name,
        "objective": settings.objective,
        "parametrisation": settings.parametrisation,
        "parameters": sum(z.numel() for z in state.best.values()),
        "validation_accuracy": {"base": state.base_accuracy, "expert": state.best_accuracy, "n": len(validation)},
        "settings": settings.model_dump(),
        "seed": seed,
        "fingerprints": prints,
    }
    return Expert(state.best, record, {name: layer.s for name, layer in layers.items()})


def _step(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    skill: Skill,
    batch: Sequence[Problem],
    settings: ExpertSettings,
    optimizer: torch.optim.Optimizer,
    layers: dict[str, SVF],
    seed: int,
) -> dict[str, Any]:
    """One optimizer step; returns what to log."""
    row: dict[str, Any] = {}
    if settings.objective == "reward":
        rollouts = _rollouts(model, tokenizer, skill, batch, settings, seed)
        rewards = torch.tensor([reward for _, reward in rollouts])
        row["reward"] = rewards.mean().item()
        examples = [example for example, _ in rollouts]
        weights = (rewards - rewards.mean() if settings.baseline else rewards) / len(examples)
    else:
        examples = [encode_example(tokenizer, p.prompt, p.solution or "") for p in batch]
        weights = torch.full((len(examples),), 1 / sum(len(e.answer) for e in examples))
    # What was drawn at a temperature was drawn from p at that temperature; greedy answers are scored at 1.
    temperature = (settings.temperature or 1.0) if settings.objective == "reward" else 1.0
    optimizer.zero_grad()
    total = 0.0
    with checkpointing(model, settings.gradient_checkpointing):
        for start in range(0, len(examples), settings.micro_batch_size):
            part = slice(start, start + settings.micro_batch_size)
            logp = sequence_log_probability(model, examples[part], temperature)
            loss = -(weights[part].to(logp.device) * logp).sum()
            loss.backward()
            total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_([layer.p for layer in layers.values()], settings.max_grad_norm)
    if not torch.isfinite(norm) or total != total:
        raise _diverged("loss", settings)
    optimizer.step()
    if not all(layer.scale().isfinite().all() for layer in layers.values()):
        raise _diverged("update", settings)
    return {"loss": total, **row}


def _diverged(what: str, settings: ExpertSettings) -> PaloraError:
    return PaloraError(
        f"the expert's {what} is no longer a number; lower the learning rate (now {settings.learning_rate}) and run "
        "this again"
    )


def _rollouts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    skill: Skill,
    batch: Sequence[Problem],
    settings: ExpertSettings,
    seed: int,
) -> list[tuple[Example, float]]:
    """What the model answers to each problem, as tokens, and its reward of +1 or −1."""
    rollouts = []
    ends = end_tokens(model, tokenizer)
    for start in range(0, len(batch), settings.rollout_batch_size):
        part = batch[start : start + settings.rollout_batch_size]
        prompts = [encode_prompt(tokenizer, p.prompt) for p in part]
        ids, width = generate_ids(
            model, tokenizer, prompts, skill.max_new_tokens, settings.temperature, generator_seed=seed + start
        )
        for problem, prompt, row in zip(part, prompts, ids[:, width:].tolist(), strict=True):
            answer = reply(tokenizer, row, ends)
            reward = 1.0 if skill.score(answer.text, problem) else -1.0
            rollouts.append((Example(prompt, answer.ids), reward))
    return rollouts


def sequence_log_probability(model: "PreTrainedModel", examples: Sequence[Example], temperature: float = 1.0) -> Tensor:
    """log p(answer | prompt) = Σ_t log p(a_t | prompt, a_<t) of each example, (batch,), differentiable. p is the
    softmax of the logits divided by `temperature`."""

    def of(logits: Tensor, said: Tensor) -> Tensor:
        return -F.cross_entropy(logits.float() / temperature, said, reduction="none")

    ids, _, answers = batch = pad(examples, model.device)
    logp = torch.cat(by_slices(of, answer_logits(model, *batch), ids[:, 1:][answers]))
    return torch.stack([row.sum() for row in logp.split(answers.sum(1).tolist())])


@contextmanager
def checkpointing(model: "PreTrainedModel", on: bool = True) -> Iterator[None]:
    """While open, each layer keeps its input alone for the gradient and is run again for it. The layers are told that
    they train, and nothing in them: there is no dropout."""
    if not on:
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError("expert.gradient_checkpointing: transformers has none for this architecture; leave it out")
    checkpoint_activations(model, True)
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        checkpoint_activations(model, False)


def _scales(layers: dict[str, SVF]) -> dict[str, Tensor]:
    return {name: layer.scale().detach().cpu().clone() for name, layer in layers.items()}


def _save(
    path: Path, identity: str, state: _State, layers: dict[str, SVF], optimizer: torch.optim.Adam, rows: int
) -> None:
    tensors = {f"best/{name}": z for name, z in state.best.items()}
    for name, layer in layers.items():
        tensors[f"p/{name}"] = layer.p
        tensors |= {f"{moment}/{name}": optimizer.state[layer.p][moment] for moment in _MOMENTS}
    stands = [state.iteration, state.base_accuracy, state.best_accuracy]
    written = {"identity": identity, "stands": json.dumps(stands), "content": hash_tensors(tensors), "rows": str(rows)}
    save_tensors(path, tensors, written)


def _load(path: Path, identity: str, layers: dict[str, SVF], optimizer: torch.optim.Adam, curve: Path) -> _State | None:
    """Continue from a checkpoint of this very training, if there is a whole one, and its curve."""
    if not path.exists():
        return None
    try:
        metadata, tensors = check_tensors(path), load_tensors(path)
    except InputError as error:
        log.warning("the checkpoint is damaged, and training begins anew: %s", error)
        return None
    if metadata.get("identity") != identity:
        return None
    if metadata.get("content") != hash_tensors(tensors):
        log.warning("the checkpoint %s has changed since it was written: training begins anew", path)
        return None
    iteration, base, best = json.loads(metadata["stands"])
    try:
        check_curve(curve, iteration, int(metadata.get("rows", 0)))
    except InputError as error:
        log.warning("the curve is not whole, and training begins anew: %s", error)
        return None
    with torch.no_grad():
        for name, layer in layers.items():
            layer.p.copy_(tensors[f"p/{name}"])
            moments = {moment: tensors[f"{moment}/{name}"].to(layer.p.device) for moment in _MOMENTS}
            optimizer.state[layer.p] = {"step": torch.tensor(float(iteration)), **moments}
    return _State(iteration, base, best, {name: tensors[f"best/{name}"] for name in layers})
