"""From a question and an answer to tokens, the same way in training, in scoring and in collecting statistics.

A model with a chat template gets the question as a user's message and the answer as the assistant's; one without gets a
plain form. Prompt and answer are tokenised apart, so that training sees exactly the tokens that generation starts from.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "Question: {question}\nAnswer:"


class Example(NamedTuple):
    """Token ids of a prompt and of the answer that follows it (with the end-of-turn token)."""

    prompt: list[int]
    answer: list[int]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", question: str, begun: str = "") -> list[int]:
    """Token ids of the prompt that asks `question`, and of an answer that has `begun`."""
    if tokenizer.chat_template:
        text = _chat(tokenizer, question, None) + begun
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer(PLAIN_PROMPT.format(question=question) + begun)["input_ids"]


def encode_example(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str) -> Example:
    """Token ids of a question and its answer, ended as the model ends a turn."""
    eos = tokenizer.eos_token or ""
    text = f" {answer}{eos}"
    if tokenizer.chat_template:
        prompt = _chat(tokenizer, question, None)
        whole = _chat(tokenizer, question, answer)
        # A template that rewrites the history (some do) does not begin with its own prompt: then end the turn plainly.
        text = whole[len(prompt) :].rstrip("\n") if whole.startswith(prompt) else answer + eos
    return Example(encode_prompt(tokenizer, question), tokenizer(text, add_special_tokens=False)["input_ids"])


def pad(rows: Sequence[Example], device: "torch.device | str") -> "tuple[Tensor, Tensor, Tensor]":
    """Examples as one batch, padded on the right.

    Returns: token ids (batch, width); 1 where they are no padding (batch, width); and which of the targets ids[:, 1:]
    are an answer's, (batch, width − 1): all of a row that has no answer, which is plain text.
    """
    import torch

    width = max(len(e.prompt) + len(e.answer) for e in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attended, answers = torch.zeros_like(ids), torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor([*prompt, *answer])
        attended[row, :length] = 1
        answers[row, (len(prompt) - 1 if answer else 0) : length - 1] = True
    return ids.to(device), attended.to(device), answers.to(device)


def _chat(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str | None) -> str:
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of at most `size`, sequences of like length together so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]
