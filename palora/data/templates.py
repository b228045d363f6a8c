"""Questions made of triples and of plain statements, by templates that can be read and changed (`templates.yaml`).

(Bern, capital of, Switzerland)      ->  What is Bern the capital of?                 Switzerland
(Bern, twin_town, Kraków)            ->  What is the twin town of Bern?               Kraków
The capital of France is Paris.      ->  Complete the sentence: The capital of France is ___.   Paris
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from palora.common.errors import InputError
from palora.common.plain_yaml import YamlProblem, dump_yaml, parse_yaml

OTHER, VERB, STATEMENT = "(other)", "(verb)", "(statement)"
BUILTIN = Path(__file__).with_name("templates.yaml")
# What a template must hold to be a question about anything.
_HOLDS = {STATEMENT: "{statement}"}

_BEGINS = frozenset("is was are were has had have can does did became won wrote made".split())
_ENDS = frozenset("in on at by of to from for with as into over after".split())
_BLANK = re.compile(r"_{2,}|\[(?:MASK|BLANK)\]|<(?:mask|blank)>|…{2,}|\.{4,}", re.IGNORECASE)
_MARKED = re.compile(r"\[\[(.+?)\]\]|\{\{c\d+::(.+?)(?:::.*?)?\}\}")  # the second is Anki's
_COPULA = re.compile(r"^(.*?\s(?:is|was|are|were))\s+(.+?)([.!]?)$", re.DOTALL)

Templates = Mapping[str, tuple[str, ...]]


def read_templates(file: str | None = None) -> Templates:
    """The templates by relation: the built-in ones, and over them those of a file.

    Raises: InputError where the file is no mapping of relations to questions with {subject}.
    """
    return {**_builtin(), **_read(Path(file))} if file else _builtin()


@lru_cache(maxsize=1)
def _builtin() -> Templates:
    return _read(BUILTIN)


def _read(path: Path) -> Templates:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of templates; palora facts templates --out FILE writes one") from None
    except YamlProblem as problem:
        wrong = "not YAML" if problem.syntax else problem
        said = f'{problem.where(path)}: {wrong}; write relation: "question about {{subject}}", with the quotes'
        raise InputError(said) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); save it as UTF-8") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: templates are a YAML mapping, relation: question about {{subject}}")
    found: dict[str, tuple[str, ...]] = {}
    for names, given in values.items():
        asked = given if isinstance(given, list) else [given]
        holds = _HOLDS.get(names, "{subject}")
        if not asked or not all(isinstance(text, str) and holds in text for text in asked):
            raise InputError(f"{path}: {names}: write a question with {holds}, or a list of them, not {given!r}")
        keys = [names] if names in (OTHER, VERB, STATEMENT) else map(relation_words, str(names).split(","))
        found |= dict.fromkeys(keys, tuple(asked))
    return found


def relation_words(relation: str) -> str:
    """A relation in plain words: `birthPlace`, `place_of_birth` and `/people/person/place_of_birth` in small letters.

    Identifiers of Wikidata (P19) stay as they are.
    """
    last = re.split(r"[/#]", relation.strip().rstrip("/#"))[-1]
    if re.fullmatch(r"P\d+", last):
        return last
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", last).lower().split())


def templates_for(relation: str, templates: Templates) -> tuple[str, ...]:
    """The questions for a relation, of which the first is asked: its own, or a plain one with its words in it."""
    words = relation_words(relation)
    if words in templates:
        return templates[words]
    verb = words.split(" ")[0] in _BEGINS or words.split(" ")[-1] in _ENDS
    return tuple(text.replace("{relation}", words) for text in templates[VERB if verb else OTHER])


def ask_triple(subject: str, relation: str, templates: Templates) -> tuple[str, ...]:
    """The question for the object of a triple, and other wordings of it."""
    return tuple(text.replace("{subject}", subject) for text in templates_for(relation, templates))


def ask_statement(statement: str, answer: str | None, templates: Templates) -> tuple[tuple[str, ...], str] | None:
    """The question for a plain statement, other wordings of it, and the answer; None where no answer is seen in it.

    The answer is what is marked, `[[Paris]]` or `{{c1::Paris}}`; what stands in the blank, `___` or `[MASK]`; the
    given answer where it stands last; or without one what follows is, was, are or were.
    """
    if marked := _MARKED.search(statement):
        answer = answer or marked[1] or marked[2]
        blanked = statement[: marked.start()] + "___" + statement[marked.end() :]
        blanked = _MARKED.sub(lambda other: other[1] or other[2], blanked)
    elif answer and _BLANK.search(statement):
        blanked = _BLANK.sub("___", statement)
    elif answer and (at := list(re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", statement))):
        blanked = statement[: at[-1].start()] + "___" + statement[at[-1].end() :]
    elif not answer and not _BLANK.search(statement) and (parts := _COPULA.match(statement)):
        blanked, answer = f"{parts[1]} ___{parts[3]}", parts[2]
    else:
        return None
    return tuple(text.replace("{statement}", blanked) for text in templates[STATEMENT]), answer


def templates_text(relations: Iterable[str] | None, templates: Templates) -> str:
    """Templates as YAML to be changed: those that these relations need, in their words. None: the built-in file."""
    if relations is None:
        return BUILTIN.read_text(encoding="utf-8")
    needed = {relation_words(relation): templates_for(relation, templates) for relation in relations}
    needed |= {name: templates[name] for name in (OTHER, VERB, STATEMENT)}
    plain = {name: asked[0] if len(asked) == 1 else list(asked) for name, asked in needed.items()}
    return dump_yaml(plain, width=1000)
