"""The proof: facts learned and skill kept, for every arm, by free greedy generation.

    recall             share of the new facts whose answer or an alias the model gives in the first thing that it says
    recall_exact       … whose answer is all that the model says
    recall_f1          token F1 of what the model says and the answer, as SQuAD counts it, mean over the new facts
    paraphrase_recall  recall on the facts' paraphrases, which are not trained on by default
    updated_recall     recall on the facts that replace an old answer
    old_answer         share of these on which the old answer is still said (…_paraphrased: of their paraphrases)
    locality           share of the known facts (untouched by training) that are answered right
    words              words an answer to a skill's problems, where the model writes its answers
    retention          an arm's accuracy on a skill over the expert's (vs_expert) or the base's (vs_base)
    harness            lm-eval's own figures of the tasks that it was asked for (`harness.py`): an outside judge

Intervals are Wilson's 95%. Arms: `base`, `expert`, and every trained adapter (`lora` is the control, `palora` ours).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peft import PeftModel

from palora.common.files import read_json, write_json
from palora.common.progress import progress_bar
from palora.common.settings import EvaluateSettings
from palora.data.facts import Fact
from palora.data.marking import matches
from palora.data.skills import Problem, Skill
from palora.language.scoring import Answer, ask_facts, beside_recall, share_correct, solve, wilson
from palora.results.answers import drawn, side_by_side
from palora.results.harness import judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Questions:
    """What every arm is asked."""

    skills: Mapping[str, tuple[Skill, Sequence[Problem]]]
    facts: Sequence[Fact] = ()
    known_facts: Sequence[Fact] = ()


@dataclass(frozen=True)
class Base:
    """A model that is an arm itself (`base`, `expert`), and the adapters that go on it."""

    arm: str
    load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"
    adapters: Mapping[str, Path]


class Said(NamedTuple):
    """The answers of one arm by kind, and what lm-eval found of it."""

    answers: dict[str, list[Answer]]
    harness: dict[str, Any]


def evaluate(
    bases: Sequence[Base],
    questions: Questions,
    settings: EvaluateSettings,
    order: Sequence[str] = (),
    work: Path | None = None,
    identity: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Ask every arm the same questions.

    Args:
        bases: the original model as `base`, and the expert where there is one. A model is loaded when it is needed.
        order: of the trained arms, in the report.
        work: a folder where each finished arm is written, so that an interrupted evaluation continues.
        identity: of everything that was asked and of whom; finished arms of another identity are done again.

    Returns: the keys arms, retention and answers of `evaluation.json` (docs/design.md); and as `asked` the rows of
    `answers.jsonl`, of which `answers` are some.
    """
    marked: dict[str, dict[str, list[Answer]]] = {}
    judged: dict[str, dict[str, Any]] = {}

    def heard(model: Any, tokenizer: Any, arm: str) -> Said:
        answers = _ask(model, tokenizer, questions, settings, arm)
        return Said(answers, judge(model, tokenizer, settings, arm) if settings.harness else {})

    def adapted(base: Base, folder: Path, arm: str) -> Said:
        model, tokenizer = base.load()
        tuned = PeftModel.from_pretrained(model, str(folder)).eval()
        try:
            return heard(tuned, tokenizer, arm)
        finally:
            tuned.unload()

    def itself(base: Base) -> Said:
        return heard(*base.load(), base.arm)

    for base in bases:
        marked[base.arm], judged[base.arm] = _resumable(work, base.arm, identity, partial(itself, base))
        for arm, folder in base.adapters.items():
            marked[arm], judged[arm] = _resumable(work, arm, identity, partial(adapted, base, folder, arm))
    order = [*(base.arm for base in bases), *(order or [arm for base in bases for arm in base.adapters])]
    results: dict[str, Any] = {}
    for name in order:
        own = {"harness": judged[name]} if settings.harness else {}
        results[name] = {**_summary(marked[name], questions.facts), **own}
    asked = side_by_side({name: marked[name] for name in order}, questions.facts, questions.known_facts)
    return {
        "arms": results,
        "retention": _retention(results),
        "answers": drawn(asked, settings.answers, seed),
        "asked": asked,
    }


def measure(
    model: Any, tokenizer: "PreTrainedTokenizerBase", questions: Questions, settings: EvaluateSettings, arm: str
) -> dict[str, Any]:
    """One arm of `evaluation.json`, of a model as it is."""
    return _summary(_ask(model, tokenizer, questions, settings, arm), questions.facts)


def _ask(
    model: Any, tokenizer: "PreTrainedTokenizerBase", questions: Questions, settings: EvaluateSettings, arm: str
) -> dict[str, list[Answer]]:
    """Every answer of one arm, by kind: `skill:<name>`, `facts`, `paraphrases`, `known`."""
    paraphrased = [(fact, p) for fact in questions.facts for p in fact.paraphrases]
    total = sum(len(problems) for _, problems in questions.skills.values())
    total += len(questions.facts) + len(paraphrased) + len(questions.known_facts)
    with progress_bar(f"Evaluating {arm}", total) as advance:
        rest: dict[str, Any] = {
            "max_new_tokens": settings.max_answer_tokens,
            "batch_size": settings.batch_size,
            "progress": advance,
        }
        answers = {
            f"skill:{name}": solve(model, tokenizer, skill, problems, settings.batch_size, advance)
            for name, (skill, problems) in questions.skills.items()
        }
        answers["facts"] = ask_facts(model, tokenizer, questions.facts, **rest)
        answers["paraphrases"] = ask_facts(
            model, tokenizer, [fact for fact, _ in paraphrased], [p for _, p in paraphrased], **rest
        )
        answers["known"] = ask_facts(model, tokenizer, questions.known_facts, **rest)
    return answers


def _resumable(work: Path | None, arm: str, identity: str, compute: Callable[[], Said]) -> Said:
    """What an arm said, from `work` if this very evaluation wrote it there before."""
    if work is None:
        return compute()
    path = work / f"{arm}.json"
    if path.exists() and (stored := read_json(path))["identity"] == identity:
        answers = {kind: [Answer(**a) for a in answers] for kind, answers in stored["answers"].items()}
        return Said(answers, stored.get("harness", {}))
    said = compute()
    told = {kind: [asdict(a) for a in given] for kind, given in said.answers.items()}
    write_json(path, {"identity": identity, "answers": told, "harness": said.harness})
    return said


def _summary(answers: Mapping[str, Sequence[Answer]], asked: Sequence[Fact]) -> dict[str, Any]:
    """One arm of evaluation.json."""
    skills: dict[str, dict[str, Any]] = {}
    for kind, marked in answers.items():
        if kind.startswith("skill:"):
            right = sum(a.correct for a in marked)
            skills[kind.removeprefix("skill:")] = {
                "accuracy": right / len(marked),
                "n": len(marked),
                "ci95": list(wilson(right, len(marked))),
            }
            if not marked[0].chosen:
                skills[kind.removeprefix("skill:")]["words"] = sum(len(a.text.split()) for a in marked) / len(marked)
    facts = answers["facts"]
    return {
        "skills": skills,
        "recall": _share(facts),
        **beside_recall(facts),
        "recall_ci95": _interval(facts),
        "paraphrase_recall": _share(answers["paraphrases"]),
        **_updated(answers, asked),
        "locality": _share(answers["known"]),
        "locality_ci95": _interval(answers["known"]),
        "n_facts": len(facts),
        "n_paraphrases": len(answers["paraphrases"]),
        "n_known": len(answers["known"]),
    }


def _updated(answers: Mapping[str, Sequence[Answer]], asked: Sequence[Fact]) -> dict[str, Any]:
    """Of the facts that replace an old answer: whether the new one is said, and the old one still is."""
    facts = [(fact, a) for fact, a in zip(asked, answers["facts"], strict=True) if fact.replaces]
    phrased = [fact for fact in asked for _ in fact.paraphrases]
    others = [(fact, a) for fact, a in zip(phrased, answers["paraphrases"], strict=True) if fact.replaces]

    def said(pairs: list[tuple[Fact, Answer]]) -> float | None:
        return sum(says_old(a.text, fact) for fact, a in pairs) / len(pairs) if pairs else None

    return {
        "updated_recall": _share([a for _, a in facts]),
        "old_answer": said(facts),
        "old_answer_paraphrased": said(others),
        "n_updated": len(facts),
    }


def says_old(text: str, fact: Fact) -> bool:
    """Whether the answer that a fact replaces is still said. Where the new answer holds the old one ("New York City",
    once "New York"), who says the new one has not said the old."""
    old = fact.replaced
    if old is None or not matches(text, old):
        return False
    return not any(matches(right, old) and matches(text, fact) for right in (fact.answer, *fact.aliases))


def _share(answers: Sequence[Answer]) -> float | None:
    return share_correct(answers) if answers else None


def _interval(answers: Sequence[Answer]) -> list[float] | None:
    return list(wilson(sum(a.correct for a in answers), len(answers))) if answers else None


def _retention(arms: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Each arm's accuracy over the expert's and over the base's; null where that one solves nothing."""

    def ratio(arm: Any, reference: Any, skill: str) -> float | None:
        if reference is None or not reference["skills"][skill]["accuracy"]:
            return None
        return arm["skills"][skill]["accuracy"] / reference["skills"][skill]["accuracy"]

    return {
        name: {
            skill: {"vs_expert": ratio(arm, arms.get("expert"), skill), "vs_base": ratio(arm, arms["base"], skill)}
            for skill in arm["skills"]
        }
        for name, arm in arms.items()
    }
