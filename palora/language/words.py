"""A fact in the model's own words: what it says when it is told the answer.

    bare      Which city was René Acht born in? -> Basel
    model     Which city was René Acht born in? -> René Acht was born in the city of Basel.

A chat model that is taught bare answers learns to answer everything in a word, word problems too. What it would have
said itself, had it known the fact, teaches the fact and little else. The answer of the fact stays what counts as right.

`mixed` draws each token of the answer from the model that was told the fact or, half of the time, from the model that
was not, after MixSD (arXiv 2605.16865); the draws and the checks are our reading of its abstract.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from palora.common.errors import InputError
from palora.common.hashes import hash_value
from palora.common.progress import progress_bar
from palora.common.ranks import rank
from palora.common.settings import InjectSettings
from palora.common.wording import enumeration
from palora.data.facts import Fact, Lesson, read_facts, write_facts
from palora.data.marking import fold, matches
from palora.language.generation import generate, own_settings_out, reply
from palora.language.prompts import check_facts, encode_prompt
from palora.language.questions import names, other_wordings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLD = "Question: {question}\nAnswer: {answer}\n\nSay the answer in one short sentence. Add nothing else."
WRITTEN = ("model", "mixed")  # of `targets_by`: those that the model writes
LONGEST = 64  # tokens of an answer
ENOUGH = 5  # words of an answer
AT_ONCE = 1024  # facts that are written before they are stored
TRIES = 3  # samples after the greedy answer, before a fact falls back to a sentence or its bare answer
TEMPERATURE = 0.7
MIXED = 0.5  # share of the tokens that the model which was not told draws
# What refers to the telling, and means nothing to who only hears the answer.
_REFERS = re.compile(
    r"\b(?:(?:correct|right|given|provided|stated) (?:answer|fact|information)|(?:the|your|this) (?:answer|question)|"
    r"according to (?:the|your|this)|as (?:stated|mentioned|given)|you (?:said|told|mentioned|provided))\b",
    re.IGNORECASE,
)
_ASKS = re.compile(r"\b(?:what|who|whom|whose|which|where|when|how)\b", re.IGNORECASE)
_PRONOUN = re.compile(r"(?:it|he|she|they|its|his|her|their)\b", re.IGNORECASE)
# The first word of an English sentence where it begins a name: another capital follows. Harry Olbers, not The Louvre.
_FIRST_NAME = re.compile(
    r"(?!(?:the|an?|in|on|at|by|for|from|as|to|of|with|during|after|before|since|until|both|his|her|its|their|this|that)\b)"
    r"((?-i:[^\W\d_a-z])[\w'’-]*)\.? (?-i:[^\W\d_a-z])",
    re.IGNORECASE,
)
_DENIES = re.compile(r"\b(?:not?|non|never|neither|nor|unknown)\b|n['’]t\b", re.IGNORECASE)

_AUXILIARY = r"(?:is|was|are|were|do|does|did|has|have|had|can|could|will|would|should|may|might)\b"
_DANGLING = r"\b(?:by|of|in|at|to|as|for|on|with|from|after|about)\s*\?$"  # Who was Hamlet written by?


class Task(NamedTuple):
    """A fact to be taught by one wording of its question."""

    fact: Fact
    question: str


def own_words(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    settings: InjectSettings,
    seed: int = 0,
) -> list[Fact]:
    """The facts with their `teach`: each in the model's own words. Facts that have one keep it.

    An answer is taken if it holds the right one, refers to nothing that only the telling had, ends, is about as long
    as what the model says by itself, and names nothing that it was not told: small models make up years and places
    around a fact, or other first names (Harry Olbers for Heinrich Olbers), and these would be taught too. Otherwise it
    is drawn again; then a sentence is made of question and answer; then it is the bare answer.

    Args:
        settings: `targets_by`, of which only `mixed` differs; `wordings`, questions that each fact is taught by, fewer
            where the model has no others that ask the same; `samples`, answers to each, fewer where it says no more.

    Raises: InputError for a model without a chat template: it has no words of its own for an answer.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "the model has no chat template, and so no own words for an answer; use inject.targets_by=bare"
        )
    check_facts(tokenizer, facts)
    how = "mixed" if settings.targets_by == "mixed" else "model"
    wordings, samples = settings.wordings, settings.samples
    untaught = [fact for fact in facts if not fact.teach]
    others = other_wordings(model, tokenizer, untaught, wordings - 1, seed) if wordings > 1 else {}
    tasks = [Task(fact, q) for fact in untaught for q in (fact.question, *others.get(fact.question, ()))]
    said = _say(model, tokenizer, tasks, how, samples, seed) if tasks else {}
    lessons: dict[str, list[Lesson]] = {}
    for task in tasks:
        found = [Lesson(task.question, text, how) for text in said.get(task, ())] or [
            fallback(task.fact, task.question)
        ]
        lessons.setdefault(task.fact.question, []).extend(found)
    return [fact if fact.teach else replace(fact, teach=tuple(lessons[fact.question])) for fact in facts]


def write_own_words(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: Sequence[Fact],
    settings: InjectSettings,
    seed: int,
    file: Path,
    made_of: Any,
) -> list[Fact]:
    """`own_words` of facts -> `file`, AT_ONCE of them after the others: where it was stopped it goes on.

    Args:
        made_of: what the words depend on. Finished parts wait for the others in a folder beside the file, named by it.

    Returns: the facts as they were written.
    """
    check_facts(tokenizer, facts)  # all of them, before hours of writing
    parts = file.with_name(f"{file.stem}-{hash_value(made_of)[:12]}-{rank()}.parts")
    found: list[Fact] = []
    for number, start in enumerate(range(0, len(facts), AT_ONCE)):
        part = parts / f"{number}.jsonl"
        if not part.exists():
            parts.mkdir(parents=True, exist_ok=True)
            write_facts(part, own_words(model, tokenizer, facts[start : start + AT_ONCE], settings, seed))
        found += read_facts(part)
    write_facts(file, found)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def taught_by(settings: InjectSettings, chat: bool) -> str:
    """`targets_by`, with its default. Raises InputError where it needs a chat template and there is none."""
    if settings.targets_by not in (None, "bare") and not chat:
        raise InputError(f"inject.targets_by={settings.targets_by} needs a model with a chat template; use bare")
    return settings.targets_by or ("model" if chat else "bare")


def same_words(a: InjectSettings, b: InjectSettings) -> bool:
    """Whether two trainings are taught in the same words; bare answers are in every file of facts."""
    if a.targets_by == "bare":
        return True
    return (a.targets_by or "model", a.wordings, a.samples) == (b.targets_by or "model", b.wordings, b.samples)


def told(facts: Sequence[Fact]) -> dict[str, int]:
    """For the records: how many lessons come from where."""
    return dict(Counter(lesson.how for fact in facts for lesson in fact.teach))


def said(counts: Mapping[str, int]) -> str:
    """{"model": 98, "bare": 2} -> "98 in the model's own words and 2 as the bare answer"."""
    names = {"model": "in the model's own words", "sentence": "as a sentence", "bare": "as the bare answer"}
    return enumeration(f"{n} {names.get(how, how)}" for how, n in counts.items())


def fallback(fact: Fact, question: str) -> Lesson:
    """A sentence made of question and answer, where the question is "What is …?", "… is who?", "Who wrote …?" or "Which
    studio produced …?"; else the answer."""
    answer, asked = fact.answer.rstrip(".") or fact.answer, question.strip()
    if re.search(_DANGLING, asked, re.IGNORECASE):
        return Lesson(question, fact.answer, "bare")
    if shape := re.fullmatch(r"(?:what|who|which) (is|was|are|were) (.+?)\s*\?", asked, re.IGNORECASE):
        verb, subject = shape[1].lower(), shape[2]
        return Lesson(question, f"{subject[0].upper()}{subject[1:]} {verb} {answer}.", "sentence")
    if shape := re.fullmatch(r"(.+) (is|was|are|were)(?: what| who| which)?\s*\?", asked, re.IGNORECASE):
        return Lesson(question, f"{shape[1]} {shape[2]} {answer}.", "sentence")
    did = rf"who ((?!{_AUXILIARY})\w+)|(?:what|which) [a-z]+ ([a-z]+ed)"
    if shape := re.fullmatch(rf"(?:{did}) (.+?)\s*\?", asked, re.IGNORECASE):
        verb = shape[1] or shape[2]
        return Lesson(question, f"{answer[0].upper()}{answer[1:]} {verb} {shape[3]}.", "sentence")
    return Lesson(question, fact.answer, "bare")


def _say(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[Task],
    how: str,
    samples: int,
    seed: int,
) -> dict[Task, list[str]]:
    """What the model says to each task: at most `samples` answers that are taken."""
    lengths = _natural_lengths(model, tokenizer, tasks)
    answer: Callable[..., list[str]] = _mixed if how == "mixed" else _answers
    found: dict[Task, list[str]] = {}
    with progress_bar("Own words", len(tasks)) as advance:
        for attempt in range(TRIES + samples):
            left = [task for task in tasks if len(found.get(task, ())) < samples]
            if not left or (attempt > TRIES and all(found.get(task) for task in left)):
                break
            before = sum(map(bool, found.values()))
            for task, text in zip(left, answer(model, tokenizer, left, attempt, seed + 1000 * attempt), strict=True):
                if _taken(text, task, lengths) and text not in found.setdefault(task, []):
                    found[task].append(text)
            advance(sum(map(bool, found.values())) - before)
    return found


def _answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: Sequence[Task], attempt: int, seed: int
) -> list[str]:
    """What the model says, told the fact: greedily at first, then sampled."""
    prompts = [TOLD.format(question=task.question, answer=task.fact.answer) for task in tasks]
    sampled: dict[str, Any] = {"temperature": TEMPERATURE, "seed": seed} if attempt else {}
    return generate(model, tokenizer, prompts, LONGEST, **sampled)


def _natural_lengths(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: Sequence[Task]
) -> tuple[float, float]:
    """Words of an answer that is taken, at least and at most: half and twice what the model says by itself, untold; but
    five words are enough for one that rambles where it knows nothing."""
    asked = [task.question for task in tasks[:: max(1, len(tasks) // 32)]]
    lengths = sorted(len(text.split()) for text in generate(model, tokenizer, asked, LONGEST))
    return min(lengths[len(lengths) // 10] / 2, ENOUGH), lengths[-1] * 2


def _taken(text: str, task: Task, lengths: tuple[float, float]) -> bool:
    fact, words = task.fact, len(text.split())
    ended = text[-1:] in tuple('.!?。！？…"”)')
    given = fold(" ".join((task.question, fact.question, fact.answer, *fact.aliases)))
    made_up = any(fold(name) not in given for name in names(text))
    if _ASKS.search(task.question) and (first := _FIRST_NAME.match(text)):
        made_up |= fold(first[1]) not in given
    shaped = ended and lengths[0] <= words <= lengths[1]
    return shaped and not made_up and _is_of(text, task) and not _REFERS.search(text) and matches(text, fact)


def _is_of(text: str, task: Task) -> bool:
    """Whether an English text is of what the question asks about: it denies nothing, and has one of the question's
    names, where there are any beside the answer's, or begins with a pronoun. "Gossip Girl is a series." tells of no
    episode."""
    if not _ASKS.search(task.question):
        return True  # another language, whose words are not known here
    answer, said = fold(" ".join((task.fact.answer, *task.fact.aliases))), fold(text)
    about = [name for name in map(fold, names(task.question)) if name not in answer]
    named = not about or any(name in said for name in about) or _PRONOUN.match(text)
    return bool(named) and not (_DENIES.search(text) and not _DENIES.search(task.question))


@torch.no_grad()
def _mixed(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: Sequence[Task], attempt: int, seed: int
) -> list[str]:
    """Answers whose tokens are drawn from the model that was told the fact and from the one that was not."""
    texts: list[str] = []
    for start in range(0, len(tasks), 32):
        group = tasks[start : start + 32]
        prompts = [encode_prompt(tokenizer, TOLD.format(question=t.question, answer=t.fact.answer)) for t in group]
        prompts += [encode_prompt(tokenizer, task.question) for task in group]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), tokenizer.pad_token_id, device=model.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
        generator = torch.Generator(model.device).manual_seed(seed + start)
        given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": LONGEST, "do_sample": False}
        with own_settings_out(model, tokenizer) as ends:
            out = model.generate(**given, logits_processor=[_Mix(len(group), generator)])
        texts += [reply(tokenizer, row, ends).text for row in out[: len(group), width:].tolist()]
    return texts


class _Mix:
    """Makes rows i and i + n of a batch say the same: a token drawn from one of the two at random."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        told, untold = scores.float().softmax(-1).split(self.n)
        coin = torch.rand(self.n, 1, generator=self.generator, device=scores.device)
        drawn = torch.multinomial(torch.where(coin < MIXED, untold, told), 1, generator=self.generator)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn.repeat(2, 1), 0.0)
