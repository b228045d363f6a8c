"""Free generation in batches: what the model says when nobody holds its hand."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from palora.common.files import read_json, write_json
from palora.language.prompts import THINK, batches, chat_kwargs, encode_prompt, frame

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palora")

CHUNK = 16  # tokens between two looks at which answers have ended
SHARED = 8  # tokens of a common beginning from which it pays to read it once


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

    What all prompts begin with (a chat template's system message) is read once, and answers that have ended leave the
    batch: on a chat model's word problems, of 20 to 256 tokens, that is four times as fast as one call.

    Args:
        prompts: token ids, of any lengths; padded before what they do not share.
        temperature: 0 is greedy; otherwise the sampling temperature, over the whole vocabulary.
        generator_seed: seeds torch's global generator before sampling.

    Returns: token ids (batch, width + new) and the width of the prompts; the answer is `ids[:, width:]` up to its end,
    a token of `end_tokens` or a text of `Frame.stops`, and padding behind it.
    """
    shared = _shared(prompts)
    cache = _read(model, torch.tensor([prompts[0][: shared or 1]], device=model.device))
    cuttable, shared = cache is not None, shared if cache is not None else 0
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padding stands between what is shared and the rest
        for place, part in (
            (slice(0, shared), prompt[:shared]),
            (slice(width - len(prompt) + shared, width), prompt[shared:]),
        ):
            ids[row, place], mask[row, place] = torch.tensor(part, dtype=torch.long), 1
    if generator_seed is not None:
        torch.manual_seed(generator_seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        sampling["remove_invalid_values"] = True  # a model that has diverged draws nonsense; its loss tells
    ends, stops = end_tokens(model, tokenizer), frame(tokenizer).stops
    common = {"return_dict_in_generate": True, **sampling}
    if shared:
        cache.batch_repeat_interleave(len(prompts))
    else:
        cache = None  # it was asked only what kind of cache this model has
    whole = torch.full((len(prompts), width + max_new_tokens), tokenizer.pad_token_id, device=model.device)
    alive = torch.arange(len(prompts), device=model.device)
    # What is drawn at random depends on the rows of the batch, so these stay together to the end.
    chunk, last = (CHUNK if cuttable and not temperature else max_new_tokens), width
    with own_settings_out(model, tokenizer):
        while len(alive):
            step = min(chunk, width + max_new_tokens - ids.shape[1])
            given = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "max_new_tokens": step}
            found = model.generate(**given, **common)
            whole[alive, : found.sequences.shape[1]] = found.sequences
            new, last = found.sequences[:, ids.shape[1] :], max(last, found.sequences.shape[1])
            going = ~torch.isin(new, torch.tensor(ends, device=new.device)).any(-1)
            for row, text in enumerate(tokenizer.batch_decode(found.sequences[:, width:]) if stops else ()):
                going[row] &= not any(stop in text for stop in stops)
            if not going.any() or found.sequences.shape[1] == width + max_new_tokens:
                break
            cache = found.past_key_values
            cache.batch_select_indices(going.nonzero()[:, 0])
            ids = found.sequences[going]
            mask = torch.cat([mask[going], torch.ones_like(new[going])], dim=-1)
            alive = alive[going]
    for row in whole if stops else ():
        row[width + _until(tokenizer, row[width:].tolist(), stops) :] = tokenizer.pad_token_id
    return whole[:, :last], width


def _until(tokenizer: "PreTrainedTokenizerBase", ids: list[int], stops: Sequence[str]) -> int:
    """How many of an answer's tokens there are until the first of `stops` is written; all where none is."""

    def stopped(n: int) -> bool:
        text = tokenizer.decode(ids[:n])
        return any(stop in text for stop in stops)

    return next((n for n in range(1, len(ids)) if stopped(n)), len(ids)) if stopped(len(ids)) else len(ids)


@contextmanager
def own_settings_out(model: Any, tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    """While open, `model.generate` starts from a fresh generation config that knows only the special tokens.

    A model's own may forbid repeated words or force tokens, which changes what is marked; and `generate` takes it for
    every setting that it is not given, also beside a config that it is given (transformers 5).

    Gives: the tokens that end an answer.
    """
    from transformers import GenerationConfig

    ends = end_tokens(model, tokenizer)
    fresh = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    before = [(m, m.__dict__["generation_config"]) for m in model.modules() if "generation_config" in m.__dict__]
    for module, _ in before:  # of a PEFT model too, which hands its own to the model within
        module.generation_config = fresh
    try:
        yield ends
    finally:
        for module, config in before:
            module.generation_config = config


def _shared(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, but for the last one of the shortest; 0 where that saves little."""
    shortest = min(map(len, prompts)) - 1
    first = prompts[0]
    n = next((i for i in range(shortest) if any(prompt[i] != first[i] for prompt in prompts)), shortest)
    return n if n >= SHARED and len(prompts) > 1 else 0


def _read(model: "PreTrainedModel", ids: Tensor) -> Any:
    """The cache of a model that has read `ids` (1, width); None where it is not the keys and values of every token."""
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return cache if can_be_cut(cache) else None


def can_be_cut(cache: Any) -> bool:
    """Whether rows can be taken out of a cache, or repeated: it holds the keys and values of every token."""
    return type(cache).__name__ == "DynamicCache" and all(type(own).__name__ == "DynamicLayer" for own in cache.layers)


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer: what the chat template ends one with, the tokenizer's, and those of the model's
    generation config. Warns, once, where only the template knows it: others will not stop there."""
    declared, end = declared_ends(model), frame(tokenizer).end
    if end is not None and end not in {tokenizer.eos_token_id, *declared}:
        warn_once(
            f"the chat template ends an answer with {tokenizer.convert_ids_to_tokens(end)!r} ({end}), but the "
            f"tokenizer's end token is {tokenizer.eos_token!r}: palora stops at both; write {end} into eos_token_id of "
            "generation_config.json where the model is used (merged exports have it)"
        )
    return sorted({t for t in [end, tokenizer.eos_token_id, *declared] if t is not None})


def prompts_record(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """For the records: how questions are asked, and the token that ends an answer where the model's generation config
    does not know it."""
    end = frame(tokenizer).end
    known = end is None or end in declared_ends(model)
    return {
        "chat_template_kwargs": chat_kwargs(tokenizer),
        "system_message": getattr(tokenizer, "system_message", None),
        "end": None if known else {"token": tokenizer.convert_ids_to_tokens(end), "id": end},
    }


def write_ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Name the token that ends an answer in a model folder's generation config, where it is not named there."""
    if frame(tokenizer).end in (None, *declared_ends(model)):
        return
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    write_json(path, {**config, "eos_token_id": end_tokens(model, tokenizer)})


def declared_ends(model: "PreTrainedModel") -> list[int]:
    """The end tokens of a model's generation config."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [token for token in (own if isinstance(own, list) else [own]) if token is not None]


@cache
def warn_once(message: str) -> None:
    """Log a warning that is the same for every call of a process."""
    log.warning(message)


class Reply(NamedTuple):
    """What a model says: its tokens with those that end it, its text, and whether it ended; otherwise it was cut."""

    ids: list[int]
    text: str
    ended: bool


def reply(tokenizer: "PreTrainedTokenizerBase", row: list[int], ends: Sequence[int]) -> Reply:
    """What stands in the row of an answer (`generate_ids`), ended by `ends`, a text of `Frame.stops`, or not at all.

    The text is without special tokens, without the blocks in which the model thinks, and without outer white space.
    """
    own = frame(tokenizer)
    at = next((i for i, token in enumerate(row) if token in ends), None)
    ids = row if at is None else row[: at + 1]
    text = _aloud(tokenizer, ids[:at], own.opened)
    stopped = any(stop in text for stop in own.stops)
    if stopped:  # what stands behind it is padding, which may be an end token
        ids = row[: _until(tokenizer, row, own.stops)]
    for stop in own.stops:
        text = text.partition(stop)[0]
    return Reply(ids, text.strip(), at is not None or stopped)


def _aloud(tokenizer: "PreTrainedTokenizerBase", ids: list[int], opened: bool) -> str:
    """The text of tokens, without special ones and the blocks in which the model thinks; nothing where such a block is
    not closed. `opened`: the tokens begin within one."""
    added = tokenizer.added_tokens_encoder
    for tag, close in THINK.items():  # as tokens first: special ones are not in the text
        if added.get(close) in ids:
            ids, opened = ids[len(ids) - ids[::-1].index(added[close]) :], False
        elif ids[:1] == [added.get(tag)]:
            ids, opened = [], True
    text = tokenizer.decode(ids, skip_special_tokens=True)
    for tag, close in THINK.items():
        if close in text:
            text, opened = text.rpartition(close)[2], False
        elif text.lstrip().startswith(tag):
            opened = True
    if opened:
        warn_once(
            "the model still thinks where an answer ends: raise evaluate.max_answer_tokens (for a skill its "
            "max_new_tokens), or set chat_template_kwargs={enable_thinking: false}"
        )
    return "" if opened else text


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    *rest: Any,
    **sampling: Any,
) -> list[str]:
    """Answers to `questions`, greedy unless `sampling` says otherwise; the rest is as in `replies`."""
    return complete(model, tokenizer, [encode_prompt(tokenizer, q) for q in questions], *rest, **sampling)


def complete(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    *rest: Any,
    **sampling: Any,
) -> list[str]:
    """The texts of what follows tokenised prompts; the rest is as in `replies`."""
    return [answer.text for answer in replies(model, tokenizer, prompts, *rest, **sampling)]


def replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Reply]:
    """What follows tokenised prompts, in their order.

    Args:
        max_new_tokens: where an answer that does not end by itself is cut.
        batch_size: prompts a batch; prompts of like length go together.
        progress: called with the number of answers each batch finished.
        temperature: 0 is greedy; otherwise each batch has a seed of its own, by `seed`.
    """
    found: dict[int, Reply] = {}
    ends = end_tokens(model, tokenizer)
    for number, group in enumerate(batches([len(p) for p in prompts], batch_size)):
        drawn = (temperature, seed + number) if temperature else ()
        ids, width = generate_ids(model, tokenizer, [prompts[i] for i in group], max_new_tokens, *drawn)
        rows = ids[:, width:].tolist()
        found |= {index: reply(tokenizer, row, ends) for index, row in zip(group, rows, strict=True)}
        if progress:
            progress(len(group))
    return [found[i] for i in range(len(prompts))]
