"""What the numbers of a run say, in sentences: by fixed rules, which do not care whether the numbers are good."""

from dataclasses import dataclass

from palora.common.wording import capital, enumeration, percent, significant
from palora.results.pages.page import words
from palora.results.pages.results import GOAL, Results
from palora.results.pages.run_folder import Run, finite, mapping


def headline(results: Results) -> str:
    """One sentence: facts learned, skill and known facts kept, for palora and for plain LoRA. The numbers as they
    are."""

    def clause(arm: str, full: bool) -> str | None:
        recall, facts = results.measure(arm, "recall"), results.measure(arm, "n_facts")
        of_facts = f" of {facts:,.0f} facts" if facts else " of the facts"
        if results.learned_none(arm):
            none = f"{results.label(arm)} learned none{of_facts}" if full else f"{results.label(arm)} none either"
            return f"{none}: raise inject.epochs or inject.learning_rate" if full else none
        parts = [] if recall is None else [f"learned {percent(recall)}{of_facts if full else ''}"]
        kept = [(s, share) for s in results.skills if (share := results.kept(arm, s)) is not None]
        whose = [f"the {results.reference(s)}'s" for s, _ in kept]
        whose = ["its" if own == before else own for before, own in zip(["", *whose], whose, strict=False)]
        told = [
            f"{percent(share)} of {own} {s} skill" if full else percent(share)
            for own, (s, share) in zip(whose, kept, strict=True)
        ]
        if (known := results.known(arm)) is not None:
            told.append(percent(known) + (" of the facts that the base knows" if full else ""))
        if told:
            parts.append("kept " + enumeration(told))
        return f"{results.label(arm)} {' and '.join(parts)}" if parts else None

    sentence = clause(results.subject, full=True)
    if sentence is None:
        return f"For {results.label(results.subject)} neither recall nor a skill was measured."
    if results.control and (control := clause(results.control, full=False)):
        sentence += f"; {control}"
    return capital(sentence) + "."


@dataclass(frozen=True)
class Finding:
    """A sentence under the headline; `mark` is ✓ (in palora's favour), ✗ (against it) or • (neither)."""

    mark: str
    text: str


def findings(results: Results) -> list[Finding]:
    """What the numbers mean, by fixed rules: goals reached or missed, better or worse than the control."""
    if results.learned_none(results.subject):
        none = f"{capital(results.label(results.subject))} learned no fact: what it kept says nothing about the method."
        return [Finding("✗", none)]
    return [
        *_recall_findings(results),
        *_skill_findings(results),
        *_length_findings(results),
        *_locality_findings(results),
    ]


def _recall_findings(results: Results) -> list[Finding]:
    name, recall = results.label(results.subject), results.measure(results.subject, "recall")
    if recall is None:
        return []
    found = []
    if recall < GOAL:
        found.append(Finding("✗", f"{name} did not reach {percent(GOAL)} recall."))
    other = results.measure(results.control, "recall") if results.control else None
    if results.control and other is not None and abs(other - recall) > 0.03:
        less, mark = ("fewer", "✗") if recall < other else ("more", "✓")
        text = (
            f"{name} learned {less} facts than {results.label(results.control)} ({percent(recall)} against "
            f"{percent(other)}), so what they kept is not compared at equal recall."
        )
        found.append(Finding(mark, text))
    return found


def _skill_findings(results: Results) -> list[Finding]:
    found = []
    name = results.label(results.subject)
    for skill in results.skills:
        kept = results.kept(results.subject, skill)
        if kept is None:
            continue
        if kept < GOAL:
            lost = f"{name} kept less than {percent(GOAL)} of the {results.reference(skill)}'s {skill} skill."
            found.append(Finding("✗", lost))
        other = results.kept(results.control, skill) if results.control else None
        if results.control and other is not None:
            found.append(_compared(results, results.control, skill, kept, other))
        found.extend(_rivals(results, skill, kept))
        before, after = results.accuracy("base", skill), results.accuracy("expert", skill)
        if skill == results.expert_skill and before is not None and after is not None and after <= before:
            text = (
                f"The expert is no better at {skill} than the base ({percent(after, 1)} against "
                f"{percent(before, 1)}): its scales may be mostly noise."
            )
            found.append(Finding("•", text))
    return found


def _compared(results: Results, control: str, skill: str, kept: float, other: float) -> Finding:
    name, rival = results.label(results.subject), results.label(control)
    ours, theirs = (results.accuracy_interval(arm, skill) for arm in (results.subject, control))
    overlap = bool(ours and theirs and ours[0] <= theirs[1] and theirs[0] <= ours[1])
    if kept < other:
        tail = "; the 95% intervals overlap" if overlap else ""
        return Finding(
            "✗", f"{name} kept less of {skill} than {rival} did ({percent(kept)} against {percent(other)}{tail})."
        )
    if overlap:
        text = f"On {skill} the 95% intervals of {name} and {rival} overlap: the difference may be chance."
        return Finding("•", text)
    if other >= GOAL:
        return Finding("•", f"{capital(rival)} kept {percent(other)} of {skill} too: there was little to protect.")
    apart = " and the 95% intervals do not overlap" if ours and theirs else ""
    return Finding("✓", f"On {skill}, {name} kept {percent(kept)} where {rival} kept {percent(other)}{apart}.")


def _rivals(results: Results, skill: str, kept: float) -> list[Finding]:
    """The other trained arms, besides the control, that kept more of a skill and learned about as much."""
    recall = results.measure(results.subject, "recall")
    found = []
    for arm in results.arms:
        other, learned = results.kept(arm, skill), results.measure(arm, "recall")
        if arm in ("base", "expert", results.subject, results.control) or other is None or learned is None:
            continue
        if other > kept and (recall is None or learned > recall - 0.03):
            text = f"{results.label(arm)} kept more of {skill}: {percent(other)}, and learned {percent(learned)}."
            found.append(Finding("✗", text))
    return found


def _length_findings(results: Results) -> list[Finding]:
    """Answers to the skills' problems that got much shorter or longer: the first sign of a model that has collapsed."""
    found = []
    for skill in results.skills:
        before = results.answer_words("base", skill)
        for arm in (results.subject, results.control):
            after = results.answer_words(arm, skill) if arm else None
            if arm and before and after is not None and before >= 3 and abs(after / before - 1) > 0.25:
                changed = "shorter" if after < before else "longer"
                told = f"{capital(results.label(arm))}'s answers to {skill} are {changed} than the base's: "
                mark = "✗" if arm == results.subject else "•"
                found.append(Finding(mark, f"{told}{significant(after)} words, not {significant(before)}."))
    return found


def _locality_findings(results: Results) -> list[Finding]:
    before, after = results.measure("base", "locality"), results.measure(results.subject, "locality")
    if before is None or after is None or before - after <= 0.02:
        return []
    text = (
        f"Known facts were lost: the base answers {percent(before)} of them, "
        f"{results.label(results.subject)} {percent(after)}"
    )
    other = results.measure(results.control, "locality") if results.control else None
    if results.control and other is not None:
        text += f" ({results.label(results.control)} {percent(other)})"
    return [Finding("✗", text + ".")]


def limits(results: Results, run: Run) -> list[str]:
    """What the run does and does not show, with the run's own numbers."""
    notes = []
    name = results.label(results.subject)
    for skill in results.skills:
        count, interval = results.problems(skill), results.accuracy_interval(results.subject, skill)
        if count and interval:
            half = 50 * (interval[1] - interval[0])
            notes.append(
                f"The {skill} skill was measured on {count:,} problems: the accuracy of {name} is known to about "
                f"±{half:.1f} points (95%). A smaller difference is not shown by this run."
            )
    said, leak = words("limits"), finite(results.update(results.subject, "leak"))
    references = list(dict.fromkeys(results.reference(skill) for skill in results.skills))
    notes.append(said["luck"].format(reference=" or ".join(references) or "base"))
    if leak is not None:
        notes.append(said["hard"].format(leak=significant(leak)))
    elif run.protection:
        notes.append(said["soft" if run.constrained else "free"])
    return [*notes, said["answers"]]


def expert_training(run: Run) -> str:
    """One sentence on how the expert was trained, as far as the run says."""
    rows = [row for row in run.metrics if row.get("stage") == "expert"]
    method = str(run.expert.get("objective") or run.evaluation.get("objective") or "")
    if not method and rows:
        method = "reward" if any("reward" in row for row in rows) else "next_token"
    if not method:
        return ""
    if method == "reward":
        return "The expert was trained by reward on its own, freely generated answers: SVF's published way."
    return f"The expert was trained by {method.replace('_', ' ')}: the cheap option; SVF's published way is by reward."


RULES = words("rules")


def protection_summary(run: Run, results: Results) -> str:
    """One line: the rule, what it protects, its budget, the mean coverage, and a warning where that is too little."""
    from palora.training.protection import coverage_warning

    rule, sides = run.protection.get("rule"), run.protection.get("sides")
    if not rule:
        return ""
    if not run.constrained:
        added = results.loss(results.subject)
        held = f"What is to be kept is held by the loss: {enumeration(added)}." if added else "This is plain LoRA."
        return f"No constraint: the update may go in any direction. {held}"
    text = f"Rule {rule}: {RULES[rule]}." if rule in RULES else f"Rule {rule}."
    budget = [f"{key} = {value}" for key, value in mapping(run.protection.get("budget")).items() if value is not None]
    sided = {"both": "both sides", "input": "input side", "output": "output side"}.get(str(sides), "")
    matrices = len(run.modules)
    details = ", ".join(part for part in (sided, *budget, f"{matrices} matrices" if matrices else "") if part)
    text += f" {capital(details)}." if details else ""
    means = {kind: finite(value) for kind, value in mapping(run.protection.get("coverage")).items()}
    covered = [f"{percent(value)} of the {kind}'s" for kind, value in means.items() if value is not None]
    if covered:
        covered = [part.replace("facts's", "facts'") for part in covered]
        text += f" On average the protected input directions hold {enumeration(covered)} input energy."
        if {"skill", "facts"} <= means.keys() and (warning := coverage_warning(run.protection | {"coverage": means})):
            text += f" {capital(warning)}."
    return text
