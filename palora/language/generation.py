"""Free generation in batches: what the model says when nobody holds its hand."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palora.language.prompts import batches, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def generate_ids(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    generator_seed: int | None = None,
) -> tuple[Tensor, int]:
    """Continue one batch of tokenised prompts.

    Args:
        prompts: token ids, of any lengths; padded on the left.
        temperature: 0 is greedy; otherwise the sampling temperature, over the whole vocabulary.
        generator_seed: seeds torch's global generator before sampling.

    Returns: token ids (batch, width + new) and the width of the prompts; the answer is `ids[:, width:]`.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    if generator_seed is not None:
        torch.manual_seed(generator_seed)
    # Every setting of the model's own generation_config that would change the answer is overridden.
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        sampling["remove_invalid_values"] = True  # a model that has diverged draws nonsense; its loss tells
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_beams=1,
        repetition_penalty=1.0,
        **sampling,
    )
    return out, width


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer: the tokenizer's and those of the model's generation config."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return sorted({t for t in [tokenizer.eos_token_id, *listed] if t is not None})


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to `questions`, in their order, without special tokens and outer white space.

    Args:
        max_new_tokens: where an answer that does not end by itself is cut.
        batch_size: prompts a batch; prompts of like length go together.
        progress: called with the number of answers each batch finished.
    """
    prompts = [encode_prompt(tokenizer, q) for q in questions]
    answers = [""] * len(prompts)
    for group in batches([len(p) for p in prompts], batch_size):
        ids, width = generate_ids(model, tokenizer, [prompts[i] for i in group], max_new_tokens)
        for index, text in zip(group, tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True), strict=True):
            answers[index] = text.strip()
        if progress:
            progress(len(group))
    return answers
