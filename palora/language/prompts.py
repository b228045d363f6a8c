"""From a question and an answer to tokens: the one place that renders and encodes, for training, generation, scoring
and statistics alike.

    <user> Where was Ada born? <model>  London <eos>
    head   question            middle   answer ending        prompt = head question middle; answer = answer ending

A model with a chat template is shown as its template does it, one without in a plain form. What stands around question
and answer is the same for all of them, and is found once, by rendering two placeholders (`Frame`).

Prompt and answer are tokenised as one text: apart, the answer would be spelled otherwise (Llama 2 and Mistral 0.1 write
a space before every text). The prompt of a training example is exactly what generation starts from.

- What the template puts before an answer but not into its generation prompt (`<think>\\n\\n</think>\\n\\n`) belongs to
  the prompt: it is not learned. A think block that the generation prompt leaves open is closed. Both unless the
  template is told to think (`enable_thinking: true`): then generation starts from the template's own prompt.
- The text of a special token in a question or an answer (`</s>`) is encoded as text, or refused.
- Where a plain form, or a template without an end token, ends an answer by text, that text is in `Frame.stops`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from palora.common.errors import InputError
from palora.data.facts import Fact

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "Question: {question}\nAnswer:"
PLAIN_STOP = "Question:"  # a model that runs on asks itself the next one, as lm-eval knows
THINK = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
THINKING = ("enable_thinking", "thinking")  # what templates call the switch
_QUESTION, _ANSWER = "PALORA_QUESTION", "PALORA_ANSWER"  # the placeholders


class Example(NamedTuple):
    """Token ids of a prompt and of the answer that follows it (with the end-of-turn token)."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Frame:
    """What stands around a question and its answer, as text.

    Args:
        head, middle: before the question, and between question and answer.
        asked: `middle` as generation is given it: another one only where the model is to think first.
        before: white space that the model itself writes before an answer.
        ending: what closes an answer; its last token is `end`, by id (None: there is none).
        stops: texts that end an answer where no token does; what follows them is never marked.
        controls: finds the special tokens' text in a question or an answer.
        front: ids that the tokenizer puts before a text (`<s>`).
    """

    head: str
    middle: str
    asked: str
    before: str
    ending: str
    end: int | None
    stops: tuple[str, ...]
    controls: re.Pattern[str]
    front: tuple[int, ...] = ()

    @property
    def opened(self) -> bool:
        """Whether generation starts within a think block."""
        return _open_tag(self.asked) is not None


def set_chat(
    tokenizer: "PreTrainedTokenizerBase", kwargs: Mapping[str, Any] | None = None, system: str | None = None
) -> None:
    """Say how the chat template is to be rendered from here on.

    Args:
        kwargs: for the template (`enable_thinking`). A template that can think is told not to, unless this says it.
        system: a system message before every question. Default: none of ours.

    Raises: InputError where there is no chat template, or it has no such variable.
    """
    template = str(tokenizer.chat_template or "")
    for name, given in (("chat_template_kwargs", kwargs), ("system_message", system)):
        if given and not template:
            raise InputError(f"{name}: the model has no chat template; leave it out")
    for key in kwargs or {}:
        if key not in THINKING and not re.search(rf"\b{re.escape(key)}\b", template):
            raise InputError(f"chat_template_kwargs: the model's chat template knows no {key!r}; leave it out")
    quiet = {"enable_thinking": False} if "enable_thinking" in template else {}
    tokenizer.chat_template_kwargs = {**quiet, **(kwargs or {})}
    tokenizer.system_message = system


def chat_kwargs(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What the chat template is rendered with (`set_chat`)."""
    return dict(getattr(tokenizer, "chat_template_kwargs", None) or {})


def messages(tokenizer: "PreTrainedTokenizerBase", question: Any) -> list[dict[str, Any]]:
    """A question as the chat template is given it, after the system message where there is one."""
    system = getattr(tokenizer, "system_message", None)
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": question}]


def asked_how(tokenizer: "PreTrainedTokenizerBase") -> list[Any]:
    """What was said of the chat template, for identities; nothing where nothing was."""
    stated = chat_kwargs(tokenizer), getattr(tokenizer, "system_message", None)
    return list(stated) if any(stated) else []


def frame(tokenizer: "PreTrainedTokenizerBase") -> Frame:
    """What stands around questions and answers. Raises InputError where the chat template cannot show them."""
    if not tokenizer.chat_template:
        return _plain_frame(tokenizer, str(tokenizer.eos_token))
    stated = (tokenizer.chat_template, chat_kwargs(tokenizer), messages(tokenizer, ""), tokenizer.eos_token)
    return _chat_frame(tokenizer, repr(stated))


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", question: str, begun: str = "") -> list[int]:
    """Token ids of the prompt that asks `question`, and of an answer that has `begun`."""
    own = frame(tokenizer)
    asked = own.asked + own.before if begun else own.asked
    return _ids(tokenizer, own, (own.head, question, asked, begun))


def encode_example(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str, ended: bool = True) -> Example:
    """Token ids of a question and its answer, ended as the model ends a turn.

    Args:
        ended: False for an answer that was cut: to end it would teach stopping in the middle of a sentence.
    """
    return _example(tokenizer, frame(tokenizer), question, answer, ended)


def check_facts(tokenizer: "PreTrainedTokenizerBase", facts: Sequence[Fact]) -> None:
    """Raise InputError, with the number of the fact, where the text of a special token cannot be written as text."""
    own = frame(tokenizer)
    for number, fact in enumerate(facts, 1):
        lessons = [text for lesson in fact.teach for text in (lesson.question, lesson.answer)]
        for text in (fact.question, fact.answer, *fact.paraphrases, *lessons):
            try:
                if own.controls.search(text):
                    _ids(tokenizer, own, ("", text))
            except InputError as error:
                raise InputError(f"fact {number} ({fact.question[:60]!r}): {error}") from None


def encode_plain(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str) -> Example:
    """Token ids of a question and what `answer` adds to it in the plain form, without an end, whatever the template."""
    return _example(tokenizer, _plain_frame(tokenizer, str(tokenizer.eos_token)), question, answer, ended=False)


def _example(tokenizer: "PreTrainedTokenizerBase", own: Frame, question: str, answer: str, ended: bool) -> Example:
    ending = own.ending if ended else ""
    prompt = _ids(tokenizer, own, (own.head, question, own.middle))
    whole = _ids(tokenizer, own, (own.head, question, own.middle + own.before, answer, ending))
    if whole[: len(prompt)] == prompt:
        return Example(prompt, whole[len(prompt) :])
    # The last token of the prompt and the first of the answer would be one ("Answer: " + "Paris"). What the model is
    # given ends with the prompt, and so does the example's.
    return Example(prompt, _ids(tokenizer, own, (own.before, answer, ending), begins=False))


def _ids(tokenizer: "PreTrainedTokenizerBase", own: Frame, parts: Sequence[str], begins: bool = True) -> list[int]:
    """Token ids of a text: the frame's parts and, between them, what is asked and answered.

    Args:
        begins: whether the text stands by itself; otherwise it goes on with another.
    """
    pieces: list[tuple[str, bool]] = [("", False)]  # a text, and whether tokens are not to be seen in it
    for i, part in enumerate(parts):
        for j, piece in enumerate(own.controls.split(part) if i % 2 else [part]):
            if j % 2:
                pieces += [(piece, True), ("", False)]
            else:
                pieces[-1] = (pieces[-1][0] + piece, False)
    ids = [*own.front] if begins else []
    for n, (piece, plain) in enumerate(pieces):
        if not piece:
            continue
        new = _tokens(tokenizer, piece, plain) if n == 0 and begins else _later(tokenizer, piece, plain)
        if plain and tokenizer.convert_tokens_to_ids(piece) in new:
            raise InputError(f"{piece!r} is a special token to this model, and cannot be written as text; leave it out")
        ids += new
    return ids


def _later(tokenizer: "PreTrainedTokenizerBase", text: str, plain: bool) -> list[int]:
    """Token ids of a text that goes on with another: tokenised after a line break, which keeps SentencePiece from
    writing a space before it."""
    line, whole = _tokens(tokenizer, "\n", plain), _tokens(tokenizer, "\n" + text, plain)
    return whole[len(line) :] if whole[: len(line)] == line else _tokens(tokenizer, text, plain)


def _tokens(tokenizer: "PreTrainedTokenizerBase", text: str, plain: bool = False) -> list[int]:
    """Token ids of a text alone; `plain`: what it says of special tokens is text."""
    split = {"split_special_tokens": True} if plain else {}
    ids: list[int] = tokenizer(text, add_special_tokens=False, **split)["input_ids"]
    return ids


@lru_cache(maxsize=8)
def _plain_frame(tokenizer: "PreTrainedTokenizerBase", eos: str) -> Frame:
    head, middle = PLAIN_PROMPT.split("{question}")
    end, ending = tokenizer.eos_token_id, tokenizer.eos_token or ""
    # Of what the tokenizer adds to a text, only what it puts in front: some add an end token behind as well.
    alone, full = _tokens(tokenizer, "a"), tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(alone)] == alone), 0)
    controls = _controls(tokenizer, "")
    return Frame(head, middle, middle, " ", ending, end, (PLAIN_STOP,), controls, tuple(full[:start]))


@lru_cache(maxsize=8)
def _chat_frame(tokenizer: "PreTrainedTokenizerBase", stated: str) -> Frame:
    prompt, whole = _rendered(tokenizer)
    head, asked = prompt.split(_QUESTION)
    until, _, after = whole.partition(_ANSWER)
    lead = until[len(prompt) :] if until.startswith(prompt) else ""
    closed = _closed(asked)
    middle, before = (asked + lead, "") if lead.strip() else (closed, lead if closed == asked else "")
    controls = _controls(tokenizer, prompt + whole)
    token = controls.search(after)
    end: Any = tokenizer.convert_tokens_to_ids(token[0]) if token else tokenizer.eos_token_id
    ending = after[: token.end()] if token else after.rstrip() + (tokenizer.eos_token or "")
    text = (after[: token.start()] if token else after).strip()
    thinks = any(chat_kwargs(tokenizer).get(key) for key in THINKING)
    return Frame(head, middle, asked if thinks else middle, before, ending, end, (text,) if text else (), controls)


def _rendered(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """The placeholders' generation prompt, and with the answer. Templates of models that also see want a list of parts
    in place of a text."""
    problem = "it does not show what is asked"
    for shape in (str, lambda text: [{"type": "text", "text": text}]):
        asked = messages(tokenizer, shape(_QUESTION))
        answered = [*asked, {"role": "assistant", "content": shape(_ANSWER)}]
        given: dict[str, Any] = {"tokenize": False, **chat_kwargs(tokenizer)}
        try:
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **given)
            whole = tokenizer.apply_chat_template(answered, add_generation_prompt=False, **given)
        except Exception as error:  # whatever the template does: jinja2's errors, and what Python raises within it
            if shape is str:
                problem = " ".join(str(error).split()) or type(error).__name__
            continue
        if str(prompt).count(_QUESTION) == 1:
            return str(prompt), str(whole)
    mend = "leave system_message out" if getattr(tokenizer, "system_message", None) else "try a system_message"
    raise InputError(
        f"the model's chat template does not take a question and its answer: {problem.rstrip('.')}; {mend} or "
        "chat_template_kwargs, or mend the template"
    )


def _controls(tokenizer: "PreTrainedTokenizerBase", shown: str) -> re.Pattern[str]:
    """Finds the tokens that are no text: the special ones, and those that the template writes. A single character (an
    unknown token `?`) is text, and so is white space."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {t.content for t in added if t.special or t.content in shown}
    longest_first = sorted((text for text in texts if len(text.strip()) > 1), key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")


def _open_tag(text: str) -> str | None:
    """The tag of the think block that a text ends in."""
    return next((tag for tag in THINK if text.rstrip().endswith(tag)), None)


def _closed(text: str) -> str:
    """A generation prompt without an open think block at its end."""
    tag = _open_tag(text)
    return f"{text.rstrip()}\n\n{THINK[tag]}\n\n" if tag else text


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
