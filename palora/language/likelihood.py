"""Choosing by likelihood, as lm-eval does: of the choices c of a question, the one with the largest

    log p(c | "Question: … Answer:") / characters of c          (its `acc_norm`)

No chat template: what is asked is what the model knows, not how it answers. The question is read once for all choices.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palora.data.skills import Problem
from palora.language.generation import can_be_cut
from palora.language.prompts import Example, batches, encode_plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def choose(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[Problem],
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The likeliest choice of every problem, in their order.

    Args:
        batch_size: choices at once; problems of like length go together.
        progress: called with the number of problems that each batch finished.
    """
    split = [[encode_plain(tokenizer, problem.prompt, choice) for choice in problem.choices] for problem in problems]
    widest = max((len(problem.choices) for problem in problems), default=1)
    found = [""] * len(problems)
    for group in batches([len(rows[0][0]) for rows in split], max(1, batch_size // widest)):
        scores = iter(_log_p(model, [split[i] for i in group]).tolist())
        for i in group:
            by_choice = {choice: next(scores) / len(choice) for choice in problems[i].choices}
            found[i] = max(by_choice, key=by_choice.__getitem__)
        if progress:
            progress(len(group))
    return found


def _log_p(model: "PreTrainedModel", split: Sequence[Sequence[Example]]) -> Tensor:
    """log p of every choice after its question, one after the other; `split` is by question and choice."""
    device = model.device
    prompts = [rows[0][0] for rows in split]
    choices = [choice for rows in split for _, choice in rows]
    owner = torch.tensor([i for i, rows in enumerate(split) for _ in rows], device=device)
    ids, attended = _padded(prompts, left=True)
    position = (attended.cumsum(-1) - 1).clamp_min(0)
    ids, attended, position = (tensor.to(device) for tensor in (ids, attended, position))

    def read(rows: Tensor) -> Any:
        given = {"input_ids": ids[rows], "attention_mask": attended[rows], "position_ids": position[rows]}
        return model(**given, use_cache=True, logits_to_keep=1)

    once = read(torch.arange(len(ids), device=device))
    cache, first = once.past_key_values, once.logits[owner]
    if can_be_cut(cache):
        cache.batch_select_indices(owner)
    else:  # a model with another memory than keys and values reads the question for every choice
        again = read(owner)
        cache, first = again.past_key_values, again.logits
    rest, counted = _padded(choices, left=False)
    both = torch.cat([attended[owner], counted.to(device)], dim=-1)
    after = position[owner, -1:] + 1 + torch.arange(rest.shape[1], device=device)
    logits = model(
        input_ids=rest.to(device), attention_mask=both, position_ids=after, past_key_values=cache, use_cache=True
    ).logits
    before = torch.cat([first, logits[:, :-1]], dim=1)
    said = before.gather(-1, rest.to(device)[..., None])[..., 0].float()
    # Row by row: a log-softmax of all is two more copies of (choices, tokens, vocabulary), 13 GB on a 0.5B model.
    total = torch.stack([row.float().logsumexp(-1) for row in before])
    return ((said - total) * counted.to(device)).sum(-1)


def _padded(rows: Sequence[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and 1 where they are no padding, (rows, width)."""
    width = max(map(len, rows))
    ids, attended = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], attended[i, place] = torch.tensor(row), 1
    return ids, attended
