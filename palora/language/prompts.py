"""From a question and an answer to tokens, the same way in training, in scoring and in collecting statistics.

    prompt | answer | end of the turn        Question: Where was Ada born?\nAnswer: | Basel | </s>

A model with a chat template gets the question as a user's message and the answer as the assistant's; one without gets a
plain form. All of it is tokenised as one text, as the model would read it, and split where the answer begins.

Templates of models that think: an empty block of thoughts (`<think></think>`) belongs to the prompt, so that nothing is
taught about it; a block that the prompt leaves open is closed. Either way the answer follows at once.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from palora.common.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "Question: {question}\nAnswer:"
NEXT = "\nQuestion:"  # what a model without a chat template says next, when it has answered
_ANSWER = "\ue000"  # stands for the answer in a rendered conversation
THOUGHTS = {  # what opens and what closes a block of thoughts, in the templates that are known to write one
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "seed:think")},
    **{"[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<|START_THINKING|>": "<|END_THINKING|>"},
}


class Example(NamedTuple):
    """Token ids of a prompt and of the answer that follows it (with the end-of-turn token)."""

    prompt: list[int]
    answer: list[int]


def set_chat(tokenizer: "PreTrainedTokenizerBase", chat: Mapping[str, Any]) -> None:
    """Have every conversation rendered with these variables of the chat template (`enable_thinking: false`); `system`
    is the text of a system message."""
    tokenizer.palora_chat = dict(chat)


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", question: str, begun: str = "") -> list[int]:
    """Token ids of the prompt that asks `question`, and of an answer that has `begun`. Raises InputError where the
    chat template fails."""
    before, _, _ = _frame(tokenizer, question)
    return _begin(tokenizer) + tokenizer(before + begun, add_special_tokens=False)["input_ids"]


def encode_example(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str, ended: bool = True) -> Example:
    """Token ids of a question and its answer, ended as the model ends a turn, unless the answer was cut."""
    before, space, end = _frame(tokenizer, question)
    text = before + space + answer + (end if ended else "")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoded["input_ids"]
    if tokenizer.is_fast:  # a token across the border is the answer's
        n = next((i for i, (_, stop) in enumerate(encoded["offset_mapping"]) if stop > len(before)), len(ids))
    else:
        alone = tokenizer(before, add_special_tokens=False)["input_ids"]
        n = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    return Example(_begin(tokenizer) + ids[:n], ids[n:])


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that ends an answer; None where the template writes none."""
    last = encode_example(tokenizer, "?", "!").answer[-1]
    return last if last in _special(tokenizer) else None


def special_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> str | None:
    """The first special token of a tokenizer that stands in a text: it would be read as that token. The one for what
    is unknown may be an ordinary character."""
    listed = [token for token in _special(tokenizer).values() if token and token != tokenizer.unk_token]
    return next((token for token in listed if token in text), None)


def spoken(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    """The text of an answer, without special tokens and outer white space, and without the thoughts before it; nothing
    where these have not ended."""
    text = tokenizer.decode(tokens, skip_special_tokens=False)  # what opens and closes thoughts may be special
    for opens, closes in THOUGHTS.items():
        if closes in text:
            text = text.rpartition(closes)[2]
        elif text.lstrip().startswith(opens):
            text = ""
    for token in sorted(_special(tokenizer).values(), key=len, reverse=True):
        text = text.replace(token, "") if token and token != tokenizer.unk_token else text
    return text.strip()


def _special(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _frame(tokenizer: "PreTrainedTokenizerBase", question: str) -> tuple[str, str, str]:
    """What stands before an answer, the white space that the answer begins with, and what ends it."""
    eos = tokenizer.eos_token or ""
    if not tokenizer.chat_template:
        return PLAIN_PROMPT.format(question=question), " ", eos
    prompt = _rendered(tokenizer, question, None)
    before, _, after = _rendered(tokenizer, question, _ANSWER).rpartition(_ANSWER)
    end = after.rstrip("\n") or eos
    if opened := next((tag for tag in THOUGHTS if prompt.rstrip().endswith(tag)), None):
        return f"{prompt.rstrip()}\n\n{THOUGHTS[opened]}\n\n", "", end
    # A template that rewrites the history (some do) does not begin with its own prompt.
    added = before[len(prompt) :] if before.startswith(prompt) else ""
    return (prompt, added, end) if not added.strip() else (prompt + added, "", end)


def _rendered(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str | None) -> str:
    variables = dict(getattr(tokenizer, "palora_chat", {}))
    system = variables.pop("system", None)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None, **variables
        )
    except Exception as error:  # whatever a template raises
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the model's chat template fails: {said}; what it wants is given by chat_template_kwargs "
            "(e.g. `system`, a message), or mend the template"
        ) from None
    return str(text)


def _begin(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that a tokenizer puts before a text; a chat template writes its own."""
    if tokenizer.chat_template:
        return []
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    n = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:n]


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


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of at most `size`, sequences of like length together so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]
