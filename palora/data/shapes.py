"""The forms in which questions and answers are kept, told by their columns, and each as our own: question and answer.

    {"instruction": "Name the capital.", "input": "France", "output": "Paris"}     Alpaca
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", …}]}     chat
    {"subject": "France", "relation": "capital", "object": "Paris"}                a triple

Which columns hold what can be said instead: `question=Frage,answer=Antwort`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palora.data.sources import BESIDE, COLUMNS
from palora.data.tables import Problem, Row, parse_json
from palora.data.templates import Templates, ask_statement, ask_triple

LISTS = ("aliases", "paraphrases", "teach")
_MAIN = tuple(name for name in COLUMNS if name not in BESIDE)


@dataclass(frozen=True)
class Form:
    """A form: what it is called, the columns it is told by, those it may have, and (row, templates) -> our row."""

    said: str
    needs: tuple[str, ...]
    ours: Callable[[Row, Templates], Row]
    may: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A form as one file has it: the file's name of each column."""

    form: Form
    columns: Mapping[str, str]
    templates: Templates = field(default_factory=dict)
    cells: bool = False

    def row(self, row: Row) -> Row:
        """A row of the file as question, answer and what is beside them. Raises Problem."""
        named = {own: row[name] for own, name in self.columns.items() if name in row}
        if self.cells:
            named |= {name: _cell_list(name, named[name]) for name in LISTS if isinstance(named.get(name), str)}
        return self.form.ours(named, self.templates)

    def fits(self, row: Row) -> bool:
        """Whether a row has what the form is told by, or a part of it."""
        return any(self.columns[name] in row for name in self.form.needs)

    @property
    def plain(self) -> bool:
        """Whether the rows are as ours already."""
        named = all(own == name for own, name in self.columns.items())
        return self.form is PLAIN and named and not (self.cells and set(LISTS) & set(self.columns))


def shape_of(
    names: Sequence[str], mapped: Mapping[str, str], templates: Templates, cells: bool = False
) -> Shape | None:
    """The shape of rows with these columns; None where they are of no form that is known.

    Args:
        mapped: the file's name of our columns, where that is another.
        cells: whether a list is the text of a cell.

    Raises: Problem where a column that is mapped is not there, or one that is used is there twice.
    """
    actual = {name.strip().lower(): name for name in reversed(names)} | {name: name for name in names}
    columns = {name: actual[name] for name in actual if name == name.lower()}
    for own, name in mapped.items():
        if name not in actual and name.strip().lower() not in actual:
            raise Problem(f"no column {name!r}, which is to be the {own}, among {shown(names)}; name one of them")
        columns[own] = actual.get(name) or actual[name.strip().lower()]
    main = [name for name in mapped if name in _MAIN]
    for form in FORMS:
        every = (*form.needs, *form.may)
        if all(name in columns for name in form.needs) and all(name in every for name in main):
            used = {name: columns[name] for name in (*every, *BESIDE) if name in columns}
            if twice := [own for own in used.values() if names.count(own) > 1]:
                raise Problem(f"the column {twice[0]} appears twice; rename one of them")
            return Shape(form, used, templates, cells)
    return None


def unknown(names: Sequence[str], mapped: Mapping[str, str], keys: bool = False) -> Problem:
    """What is said of columns (or of the keys of a row) that are of no form: what there is, and what to write."""
    have = {name.strip().lower() for name in names} | set(mapped)
    missing = [name for name in ("question", "answer") if name not in have] or ["question", "answer"]
    free = [name for name in names if name.strip() and name.strip().lower() not in ("question", "answer", *BESIDE)]
    given = [f"{own}={name}" for own, name in mapped.items()]
    guess = free if len(free) == len(missing) else [f"{name.upper()}S_COLUMN" for name in missing]
    told = ",".join([*given, *(f"{own}={name}" for own, name in zip(missing, guess, strict=True))])
    none = f"no {' and '.join(missing)} among the keys" if keys else f"no column {' and '.join(missing)} among"
    recipe = told.replace("=", ": ").replace(",", ", ")
    return Problem(f"{none} {shown(names)}; name them: --columns {told} (in a recipe {{file: …, {recipe}}})")


def shown(names: Sequence[str]) -> str:
    """Names for a message, the first twelve."""
    listed = ", ".join(repr(name[:40]) for name in names[:12])
    return f"[{listed}{f', … {len(names)} in all' if len(names) > 12 else ''}]"


def quoted(value: object) -> str:
    """`value` for a message: on one line and not too long."""
    try:
        text = repr(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= 80 else f"{text[:77]}..."


# The forms


def _same(row: Row, _: Templates) -> Row:
    return row


def _several(row: Row, _: Templates) -> Row:
    """`answers`: {"text": [...]} (SQuAD), {"value", "aliases"} (TriviaQA), a list of texts, or of {"text": ...}."""
    found = _structure(row.pop("answers", None))
    if isinstance(found, dict):
        found = found["text"] if "text" in found else [found.get("value"), *(found.get("aliases") or [])]
    listed = found if isinstance(found, list) else [found]
    texts = [one.get("text") if isinstance(one, dict) else one for one in listed]
    first, *others = dict.fromkeys(text for text in texts if isinstance(text, str)) or [None]
    return {**row, "answer": first, **_more(row, aliases=others)}


def _chat(row: Row, _: Templates) -> Row:
    question, answer = _exchange(_first(row, "messages", "conversations"))
    return {**row, "question": question, "answer": answer}


def _instruction(row: Row, _: Templates) -> Row:
    asked, more = _first(row, "instruction"), _first(row, "input", "context")
    if isinstance(asked, str) and isinstance(more, str) and more.strip():
        asked = f"{asked.strip()}\n\n{more.strip()}"
    return {**row, "question": asked, "answer": _first(row, "output", "response")}


def _prompt(row: Row, _: Templates) -> Row:
    prompt, said = _first(row, "prompt"), _first(row, "completion", "response")
    if isinstance(prompt, list) and isinstance(said, list):
        prompt, said = _exchange([*prompt, *said])
    return {**row, "question": prompt, "answer": said}


def _triple(row: Row, templates: Templates) -> Row:
    subject, relation = _first(row, "subject", "head"), _first(row, "relation", "predicate")
    answer = _first(row, "object", "tail")
    for name, value in (("subject", subject), ("relation", relation), ("object", answer)):
        if value is None or not str(value).strip():
            raise Problem(f"no {name}; fill it in")
        if name != "object" and not isinstance(value, str | int):
            raise Problem(f"the {name} must be text, not {quoted(value)}; put it in quotes")
    relation = str(relation).strip()
    question, *others = ask_triple(str(subject).strip(), relation, templates)
    first, *aliases = answer if isinstance(answer, list) and answer else [answer]
    more = _more(row, aliases=aliases, paraphrases=others)
    return {"category": relation, **row, "question": question, "answer": first, **more}


def _statement(row: Row, templates: Templates) -> Row:
    statement, answer = _first(row, "statement", "masked_sentence", "cloze"), _first(row, "answer", "obj_label")
    if statement is None or not str(statement).strip():
        raise Problem("no statement; fill it in")
    statement = " ".join(str(statement).split())
    found = ask_statement(statement, None if answer is None else str(answer).strip() or None, templates)
    if found is None:
        raise Problem(f"no answer is seen in {quoted(statement)}; mark it: The capital of France is [[Paris]].")
    (question, *others), answer = found
    return {**row, "question": question, "answer": answer, **_more(row, paraphrases=others)}


def _first(row: Row, *names: str) -> Any:
    """Take these columns out of a row: the value of the first that has one."""
    values = [row.pop(name, None) for name in names]
    return next((value for value in values if value is not None), None)


def _more(row: Row, **lists: list[Any]) -> Row:
    """The lists of a row with what is added to them."""
    made = {}
    for name, added in lists.items():
        own = row.get(name)
        if added and (own is None or isinstance(own, list)):  # another value is refused where lists are read
            made[name] = [*(own or []), *added]
    return made


def _cell_list(name: str, cell: str) -> list[Any]:
    """A list in a cell: JSON, or separated by |. Raises Problem."""
    cell = cell.strip()
    if not cell.startswith("["):
        return [part for part in cell.split("|") if part.strip()]
    try:
        return list(parse_json(cell))  # type: ignore[call-overload]
    except Problem:
        wrong = f"{name}: {quoted(cell)} is not a JSON list"
        raise Problem(f"{wrong}; write [...], and what is text in quotes") from None


def _exchange(turns: Any) -> tuple[Any, Any]:
    """The first question of a conversation, and the answer to it."""
    turns = _structure(turns)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Problem('a conversation must be a list of turns: [{"role": "user", "content": …}, …]')
    said = [(str(t.get("role", t.get("from"))).lower(), t.get("content", t.get("value"))) for t in turns]
    asked = next((i for i, (who, _) in enumerate(said) if who in _USER), len(said))
    answer = next((text for who, text in said[asked + 1 :] if who in _ASSISTANT), None)
    if answer is None:
        raise Problem("a conversation without a question of the user and an answer to it; it needs both")
    return _joined(said[asked][1]), _joined(answer)


def _joined(content: Any) -> Any:
    """The text of a message whose content is a list of parts."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(str(part.get("text") or "") for part in content)
    return content


def _structure(value: Any) -> Any:
    """A list or object that may be a cell of JSON."""
    return parse_json(value) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


_USER, _ASSISTANT = ("user", "human", "prompter"), ("assistant", "gpt", "chatgpt", "model", "bot")
_TRIPLE = "triples, with a question made of the relation (palora facts templates shows them)"
_STATEMENT = "plain statements, whose answer is asked for"
_INSTRUCTION = "instruction and {}: the instruction is the question, with its input where there is one"
PLAIN = Form("question and answer", ("question", "answer"), _same)
FORMS = (
    PLAIN,
    Form("SQuAD's answers: the first is the answer, the others are aliases", ("question", "answers"), _several),
    Form("chat messages: the first question and the answer to it", ("messages",), _chat),
    Form("ShareGPT conversations: the first question and the answer to it", ("conversations",), _chat),
    Form(f"Alpaca's {_INSTRUCTION.format('output')}", ("instruction", "output"), _instruction, ("input",)),
    Form(_INSTRUCTION.format("response"), ("instruction", "response"), _instruction, ("context", "input")),
    Form("prompt and completion", ("prompt", "completion"), _prompt),
    Form("prompt and response", ("prompt", "response"), _prompt),
    Form(_TRIPLE, ("subject", "relation", "object"), _triple),
    Form(_TRIPLE, ("subject", "predicate", "object"), _triple),
    Form(_TRIPLE, ("head", "relation", "tail"), _triple),
    Form(_STATEMENT, ("statement",), _statement, ("answer",)),
    Form(_STATEMENT, ("cloze",), _statement, ("answer",)),
    Form(_STATEMENT, ("masked_sentence", "obj_label"), _statement),
)
KNOWN = frozenset(COLUMNS) | {name for form in FORMS for name in (*form.needs, *form.may)}
