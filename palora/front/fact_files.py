"""`palora facts check | classify | templates`: fact files, before they are taught."""

from collections import Counter
from pathlib import Path
from typing import Any

from palora.common.errors import InputError
from palora.common.files import atomic_write_text
from palora.data.checking import Fix, check, mend
from palora.data.facts import read, read_facts, write_facts
from palora.data.sources import Given, files_of, sources
from palora.data.templates import read_templates, relation_words, templates_text
from palora.front.recipe import Plan

FIXES = {"merge": "joins them", "first": "keeps the first", "drop": "leaves out what contradicts itself"}


def check_file(given: Given, fix: Fix | None, out: Path | None) -> dict[str, Any]:
    """`palora facts check`: what is wrong or odd with facts; with `fix`, those that can be taught in a new file.

    Args:
        out: the new file. Default: the facts' name with `.fixed.jsonl`, in the folder where we are if they have none.

    Raises: InputError where a file cannot be read, or the new file would take the place of one of them.
    """
    if fix is None and out is not None:
        raise InputError("--out is for what --fix writes; add --fix merge, first or drop")
    if fix is not None and fix not in FIXES:
        raise InputError(f"--fix: there is no {fix!r}; there are {', '.join(FIXES)}")
    if fix:
        file = out or _beside(given, "fixed")
        if file.resolve() in [Path(name).resolve() for name in files_of(given)]:
            raise InputError(f"{file} is what is to be mended; name a new file: --out FILE.jsonl")
        if out is None and file.exists():
            raise InputError(f"{file} is there already; name the new file: --out FILE.jsonl")
        if file.suffix != ".jsonl":
            raise InputError(f"{file}: facts are written as JSONL; name the file *.jsonl")
    checked = check(given)
    found = {
        "facts": len(checked.facts),
        "read_as": checked.said,
        "counts": checked.counts,
        "findings": [finding._asdict() for finding in checked.findings],
    }
    if fix:
        mended = mend(checked.facts, fix)
        if not mended:
            raise InputError(f"{files_of(given)[0]}: --fix {fix} leaves no facts; nothing was written")
        write_facts(file, mended)
        found |= {"written": str(file), "left": len(mended)}
    return found


def check_text(found: dict[str, Any]) -> str:
    """What `check_file` found, for people."""
    lines = [*found["read_as"], *(f"{f['where']}: {f['kind']}: {f['text']}" for f in found["findings"])]
    counts = ", ".join(f"{n:,} {kind}" for kind, n in found["counts"].items())
    lines.append(f"{found['facts']:,} facts; {counts or 'nothing is wrong or odd'}")
    if "written" in found:
        lines.append(f"{found['left']:,} facts are in {found['written']}")
    elif {"repeated", "several answers"} & set(found["counts"]):
        said = ", ".join(f"{how} {does}" for how, does in FIXES.items())
        lines.append(f"--fix writes a new file without facts that ask the same: {said}")
    return "\n".join(lines)


def classify_file(plan: Plan, out: Path | None) -> dict[str, Any]:
    """`palora facts classify`: which facts the model knows -> a file each of unknown, maybe and known ones.

    Args:
        out: the folder of these files. Default: that of the facts.

    Returns: how many facts are in each, and the files.
    """
    assert plan.facts is not None
    from palora.front.stages import Models
    from palora.language.knowing import KINDS, classify

    facts = read_facts(plan.facts)
    files = {kind: _beside(plan.facts, kind, out) for kind in KINDS}
    if taken := [f for f in files.values() if f.resolve() in [Path(n).resolve() for n in files_of(plan.facts)]]:
        raise InputError(f"{taken[0]} would be written over; name another folder: --out DIR")
    model, tokenizer = Models().load(plan)
    kinds = classify(model, tokenizer, facts, plan.seed)
    for kind, file in files.items():
        write_facts(file, [fact for fact, own in zip(facts, kinds, strict=True) if own == kind])
    counts = Counter(kinds)
    return {"facts": len(facts)} | {kind: {"n": counts[kind], "file": str(file)} for kind, file in files.items()}


def templates_of(given: Given | None, templates: str | None, out: Path | None) -> str:
    """`palora facts templates`: the questions that triples are asked by; of a file of triples, those that it needs."""
    relations = None if given is None else _relations(given)
    text = templates_text(relations, read_templates(templates))
    if out is not None:
        atomic_write_text(out, text)
    return text


def _relations(given: Given) -> list[str]:
    """The relations of files of triples, the most frequent first: their facts have them as the category."""
    counts: Counter[str] = Counter()
    for source in sources(given):
        reading = read(source)
        if reading.problems and not reading.facts:
            number, text = reading.problems[0]
            raise InputError(f"{reading.where(number)}: {text}")
        if "triples" not in reading.said:
            raise InputError(f"{source.file}: these are no triples; templates are for subject, relation and object")
        counts.update(relation_words(fact.category) for fact in reading.facts if fact.category)
    return [relation for relation, _ in counts.most_common()]


def _beside(given: Given, name: str, folder: Path | None = None) -> Path:
    """A new file named after the (first) file of facts, in its folder or in `folder`."""
    first = Path(files_of(given)[0])
    stem = first.name if first.is_dir() or not first.suffix else first.stem
    return (folder or (first.parent if first.exists() else Path())) / f"{stem}.{name}.jsonl"
