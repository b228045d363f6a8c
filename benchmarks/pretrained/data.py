"""What the bench on pretrained models asks: real facts that a model does not know, others that it knows, and skills.

    python benchmarks/pretrained/data.py MODEL ROWS OUT

MODEL is a model folder. ROWS holds the published rows (see `README.md` beside this file for their names and sources).
Written to OUT, once a model, because the model is asked first:

    new.jsonl     100 facts of zsRE that it answers wrong, in the taught and in the other wording of the data;
    many.jsonl    400 of them
    updates.jsonl 100 facts of CounterFact that it answers right, each with another answer to be taught
    known.jsonl   300 facts of Wikidata and EntityQuestions that it answers right: measured, never shown
    kept.jsonl    40 more of them: what a method may keep
    prompts.txt   1,100 other questions that it was asked on the way, whatever it answered: what it says may be kept
    *.jsonl       skills: mathematics (kept on GSM8K's training problems, measured on SVAMP), gsm8k, science and
                  science_letter (ARC-Easy), challenge (ARC-Challenge), general (MMLU-Redux: nobody asks to keep it)

Every answer of the model is kept in asked.jsonl, so that a run that was stopped goes on.
"""

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from palora.common.errors import PaloraError
from palora.common.files import atomic_write_text
from palora.data.facts import Fact, read_facts, write_facts
from palora.data.marking import fold, matches, mentions
from palora.data.skills.gsm8k import skill as gsm8k
from palora.data.skills.scorers import LETTERS
from palora.language.models import load_model
from palora.language.scoring import ask_facts

NEW, MANY, UPDATES, KNOWN, KEPT, PROMPTS = 100, 400, 100, 300, 40, 1100
EACH = 1200  # of each source, at most, are asked for known facts
ASK = 128  # questions at once
SEED = 0
NUMBER = "Think step by step in one or two short sentences. Then write the answer as a number at the end."


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def zsre(folder: Path) -> Iterator[Fact]:
    for row in rows(folder / "zsre.jsonl"):
        first, *rest = row["answers"]
        yield Fact(row["src"], first, tuple(rest), (row["rephrase"],))


def entity_questions(folder: Path) -> Iterator[Fact]:
    for row in rows(folder / "entityquestions.jsonl"):
        yield Fact(row["question"], row["answer"], tuple(row["aliases"]), category=row["category"])


def wikidata(folder: Path) -> Iterator[Fact]:
    """Its sentences "The capital of France is" as questions."""
    for row in rows(folder / "wikidata_cloze.jsonl"):
        if shape := re.fullmatch(r"The ([a-z ]+ of .+) is", row["cloze"]):
            yield Fact(f"What is the {shape[1]}?", row["answer"])


def untold(facts: Iterable[Fact]) -> list[Fact]:
    """But for those whose question holds the answer (Where is the Battle of Chios located?)."""
    return [fact for fact in facts if not mentions(fact.question, fact)]


def counterfact(folder: Path) -> Iterator[Fact]:
    """Its prompts are beginnings of sentences, so they are asked for as such; the answer is the true one."""
    for row in rows(folder / "counterfact.jsonl"):
        asked, other = (f"Complete the sentence: {row[key]} …" for key in ("prompt", "rephrase_prompt"))
        yield Fact(asked, row["ground_truth"], (), (other,), category=row["target_new"])


def distinct(facts: Iterable[Fact]) -> list[Fact]:
    """Without those that ask the same as another one: the published rows have duplicates and contradictions."""
    counts: dict[str, int] = {}
    listed = list(facts)
    for fact in listed:
        for key in {_key(q) for q in (fact.question, *fact.paraphrases)}:
            counts[key] = counts.get(key, 0) + 1
    return [f for f in listed if all(counts[_key(q)] == 1 for q in (f.question, *f.paraphrases))]


def _key(question: str) -> str:
    return " ".join(fold(question).split()).rstrip(" ?!.:")


class Asked:
    """What the model answers, each question once; kept in a file."""

    def __init__(self, model: Path, file: Path) -> None:
        self.file = file
        self.answers = {row["question"]: row["answer"] for row in rows(file)} if file.exists() else {}
        self._model, self._loaded = model, None

    def ask(self, questions: Sequence[str]) -> None:
        missing = [q for q in dict.fromkeys(questions) if q not in self.answers]
        for start in range(0, len(missing), ASK):
            part = missing[start : start + ASK]
            self._loaded = self._loaded or load_model(self._model, "float32")
            model, tokenizer = self._loaded
            told = ask_facts(model, tokenizer, [Fact(q, "?") for q in part], max_new_tokens=32, batch_size=ASK)
            self.answers |= {answer.prompt: answer.text for answer in told}
            with self.file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps({"question": a.prompt, "answer": a.text}) + "\n" for a in told)
            print(f"asked {start + len(part)} of {len(missing)}", file=sys.stderr, flush=True)

    def right(self, fact: Fact) -> list[bool]:
        """Whether the fact is answered right, in each of its wordings."""
        return [matches(self.answers[q], fact) for q in (fact.question, *fact.paraphrases)]

    def collect(self, facts: Sequence[Fact], n: int, known: bool) -> list[Fact]:
        """The first `n` facts that the model answers right in every wording (`known`), or in none."""
        found: list[Fact] = []
        for start in range(0, len(facts), ASK):
            part = facts[start : start + ASK]
            self.ask([q for fact in part for q in (fact.question, *fact.paraphrases)])
            found += [f for f in part if all(right == known for right in self.right(f))]
            if len(found) >= n:
                break
        return found[:n]


def shuffled(items: Sequence[Any]) -> list[Any]:
    order = list(items)
    random.Random(SEED).shuffle(order)
    return order


def make_facts(asked: Asked, folder: Path, out: Path) -> None:
    pool = shuffled(distinct(zsre(folder)))
    easier = [f for source in (wikidata, entity_questions) for f in shuffled(untold(distinct(source(folder))))[:EACH]]
    write_facts(out / "new.jsonl", asked.collect(pool, NEW, known=False))
    right = shuffled(asked.collect(easier, KNOWN + KEPT, known=True))
    write_facts(out / "known.jsonl", right[KEPT:])
    write_facts(out / "kept.jsonl", right[:KEPT])
    print(f"{len(right)} known facts", file=sys.stderr)
    write_facts(out / "many.jsonl", asked.collect(pool, MANY, known=False))
    true = asked.collect(shuffled(distinct(counterfact(folder)))[:1000], UPDATES, known=True)
    write_facts(out / "updates.jsonl", [Fact(f.question, str(f.category), paraphrases=f.paraphrases) for f in true])
    print(f"{len(true)} updates", file=sys.stderr)


def make_prompts(asked: Asked, out: Path) -> None:
    """Questions of the same kinds as the new facts', none of them in any wording, nor of the known facts that are
    measured, nor of the updates."""
    measured = [fact for name in ("new", "updates", "known") for fact in read_facts(out / f"{name}.jsonl")]
    used = {_key(q) for fact in measured for q in (fact.question, *fact.paraphrases)}
    others: dict[str, str] = {}
    for question in asked.answers:
        if _key(question) not in used and not question.startswith("Complete the sentence"):
            others.setdefault(_key(question), question)
    chosen = shuffled(list(others.values()))[:PROMPTS]
    atomic_write_text(out / "prompts.txt", "".join(" ".join(q.split()) + "\n" for q in chosen))


def write_skill(file: Path, problems: Iterable[dict[str, Any]]) -> None:
    atomic_write_text(file, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in problems))


def make_skills(folder: Path, out: Path) -> None:
    """Test problems enough for an interval of ± 6 points, where the data have them; training problems of GSM8K."""
    grade_school = gsm8k(folder.parent if not (folder / "gsm8k_train.jsonl").exists() else folder)
    math = {"scorer": "number", "max_new_tokens": 256}

    def worded(problem: Any, split: str) -> dict[str, Any]:
        question = problem.prompt.rpartition("\n\n")[0]
        return {
            "prompt": f"{question}\n\n{NUMBER}",
            "answer": problem.answer,
            "solution": problem.solution.replace("####", "The answer is"),
            "split": split,
            **math,
        }

    kept = [worded(p, split) for split in ("train", "validation") for p in grade_school.problems(split, 200, SEED)]
    svamp = [
        {"prompt": f"{row['context'].strip()}\n\n{NUMBER}", "answer": str(row["answer"]), "split": "test", **math}
        for row in rows(folder / "svamp.jsonl")
    ]
    write_skill(out / "mathematics.jsonl", [*kept, *svamp])
    tested = [worded(p, "test") for p in grade_school.problems("test", 300, SEED)]
    write_skill(out / "gsm8k.jsonl", tested)
    for name, file, n in (
        ("science", "arc_easy", 300),
        ("challenge", "arc_challenge", 300),
        ("general", "mmlu_redux", 300),
    ):
        problems = [_choice(row) for row in shuffled(rows(folder / f"{file}.jsonl"))]
        unlike = {p["prompt"]: p for p in problems if len(set(p["choices"])) == len(p["choices"])}
        drawn = list(unlike.values())[: n + 400]
        splits = ["test"] * n + ["train", "validation"] * 200
        write_skill(out / f"{name}.jsonl", [p | {"split": s} for p, s in zip(drawn, splits, strict=False)])
        write_skill(
            out / f"{name}_letter.jsonl", [_letter(p) | {"split": s} for p, s in zip(drawn, splits, strict=False)]
        )


def _choice(row: dict[str, Any]) -> dict[str, Any]:
    choices = list(row["choices"].values()) if isinstance(row["choices"], dict) else row["choices"]
    choices = [" ".join(str(choice).split()) for choice in choices]
    key = row.get("answerKey", row.get("answer"))
    return {
        "prompt": row["question"].strip(),
        "answer": choices[LETTERS.index(key)],
        "choices": choices,
        "scorer": "likelihood",
    }


def _letter(problem: dict[str, Any]) -> dict[str, Any]:
    listed = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)]
    return {
        "prompt": "\n".join([problem["prompt"], *listed, "", "Answer with the letter of the right choice."]),
        "answer": LETTERS[problem["choices"].index(problem["answer"])],
        "scorer": "choice",
        "max_new_tokens": 32,
    }


def main(model: Path, folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    make_skills(folder, out)
    asked = Asked(model, out / "asked.jsonl")
    make_facts(asked, folder, out)
    make_prompts(asked, out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*map(Path, sys.argv[1:]))
    except PaloraError as error:
        sys.exit(f"data.py: {error}")
