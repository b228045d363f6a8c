"""The options of the command line, made from the settings: one list of names, defaults and help texts.

    InjectSettings.learning_rate        ->  --learning-rate, the key inject.learning_rate of a recipe
    ProtectSettings.keep.known_facts    ->  --keep-known-facts, the key protect.keep.known_facts
    FACTS, SKILLS                       ->  --columns, --templates, --scorer: how a file that is given is read

What is given on the command line changes the values of the recipe, if there is one, as `key=value` does.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from palora.common.errors import InputError
from palora.common.settings import BUDGET, PRESETS
from palora.common.threads import threads as working_threads
from palora.front.recipe import Plan, describe, merged, read_values

_COLUMNS = "the columns of --facts, where they have other names: question=Frage,answer=Antwort"
_TEMPLATES = "YAML of relation: question for triples; see palora facts templates"
_PUBLIC = "make the repository of --push-to-hub a public one"
_SCORER = "what marks the answers of a --skill of your own that names none: number, choice, contains, exact or math"


class Option(NamedTuple):
    """One option: its flag, the key of a recipe that it sets, and the field it is made from."""

    flag: str
    key: str
    field: FieldInfo

    @property
    def name(self) -> str:
        """As a parameter of a function."""
        return "set_" + self.flag.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """For typer: None where it is not given, so that a recipe's value, or the default, stands."""
        kind, many = _kind(self.field.annotation)
        default = None if self.field.is_required() else self.field.get_default(call_default_factory=True)
        shown = "" if default in (None, [], "") else f" [default: {_plain(default)}]"
        choices = f" ({', '.join(get_args(kind))})" if get_origin(kind) is Literal else ""
        said = self.field.description or self.key
        help_text = f"{said[0].upper()}{said[1:]}{choices if choices and ':' not in said else ''}.{shown}"
        flags = [f"{self.flag}/--no-{self.flag[2:]}"] if kind is bool else [self.flag]
        plain: Any = kind if kind in (int, float, bool) and not many else str
        hint: Any = list[str] if many and self.flag == "--skill" else plain
        option = typer.Option(*flags, help=help_text, show_default=False)
        annotation = Annotated[hint | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def value(self, given: Any) -> Any:
        """The value for the recipe; a list is given with commas, but skills by repeating the option."""
        if self.flag == "--columns":
            pairs = [part.partition("=") for part in str(given).split(",") if part.strip()]
            if not pairs or not all(own.strip() and name.strip() for own, _, name in pairs):
                raise InputError(f"--columns {given}: write OURS=THEIRS with commas, question=Frage,answer=Antwort")
            return {own.strip(): name.strip() for own, _, name in pairs}
        if _kind(self.field.annotation)[1] and self.flag != "--skill":
            return [part.strip() for part in str(given).split(",") if part.strip()]
        return given


# Of the files that are named beside them. In a recipe they are part of the value: {file: F, question: Frage}, F#number.
FACTS = [
    Option("--columns", "facts.columns", FieldInfo(annotation=str | None, default=None, description=_COLUMNS)),
    Option("--templates", "facts.templates", FieldInfo(annotation=str | None, default=None, description=_TEMPLATES)),
]
PUBLIC = Option("--public", "public", FieldInfo(annotation=bool, default=False, description=_PUBLIC))
SCORER = Option("--scorer", "scorer", FieldInfo(annotation=str | None, default=None, description=_SCORER))


def options(settings: type[BaseModel], prefix: str = "", only: Sequence[str] | None = None) -> Iterator[Option]:
    """The options of a settings class, whose key in a recipe is `prefix`, for `only` some of its fields; those of a
    class within it carry its name (`--keep-text`)."""
    for name, field in settings.model_fields.items():
        if only is not None and name not in only:
            continue
        key = f"{prefix}.{name}" if prefix else name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            for option in options(inner, key):
                named = option.flag if _flag(option.field) else f"--{name}-{option.flag[2:]}"
                yield option._replace(flag=named)
        else:
            yield Option(_flag(field) or "--" + name.replace("_", "-"), key, field)


def computing(body: Callable[..., None]) -> Callable[..., None]:
    """A command that computes: it takes --threads beside the parameters of `body`."""
    option = typer.Option("--threads", min=1, help="CPU threads. [default: the cores that are free]")
    threads = inspect.Parameter("threads", inspect.Parameter.KEYWORD_ONLY, default=None)
    threads = threads.replace(annotation=Annotated[int | None, option])

    @wraps(body)
    def run(**values: Any) -> None:
        with working_threads(values.pop("threads")):
            body(**values)

    own = inspect.signature(body).parameters.values()
    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*shown, threads])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return run


def command(body: Callable[..., None], made: Sequence[Option]) -> Callable[..., None]:
    """A function for typer: `body(given=…, **its own parameters)`, with the options `made` after its own."""
    own = [p for p in inspect.signature(body).parameters.values() if p.name != "given"]
    made = list({option.flag: option for option in made}.values())

    def run(**values: Any) -> None:
        given = {o: v for o in made if (v := values.pop(o.name)) not in (None, [])}
        body(given=given, **values)

    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*shown, *(o.parameter() for o in made)])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = body.__doc__, body.__name__
    return run


def plan_of(
    recipe: Sequence[str] | None,
    given: Mapping[Option, Any],
    preset: str | None = None,
    needs: Sequence[str] = ("model",),
) -> Plan:
    """The plan of a stage: a recipe (or none), its changes, and what was given as options.

    Args:
        recipe: `RECIPE.yaml key=value …`, as they stand on the command line.
        needs: the keys without which the stage cannot be.

    Raises: InputError that names the option, or the file and key.
    """
    changes = list(recipe or [])
    file = changes.pop(0) if changes and changes[0] and "=" not in changes[0] else None
    if preset is not None and file:
        raise InputError("--preset and a recipe both say the settings; give one of them")
    values = read_values(Path(file) if file else None, changes)
    values.pop("arms", None)  # of a whole run
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset: there is no {preset!r}; there are {', '.join(PRESETS)}")
    values = merged(PRESETS[preset], values) if preset else values
    protect = {o.key.removeprefix("protect.") for o in given if o.key.startswith("protect.")}
    if protect & {"rule", *BUDGET}:  # another rule or budget takes the place of the one that was there
        old = dict(values.get("protect") or {})
        values["protect"] = {key: value for key, value in old.items() if key not in (*BUDGET, "sides")}
    flags = {option.key: option.flag for option in given}
    for option, value in given.items():
        node = values
        *parents, last = option.key.split(".")
        for parent in parents:
            known = node.get(parent)
            if isinstance(known, list):
                raise InputError(
                    f"{option.flag} says the columns of one file; write {{file: …, …}} in the recipe's list"
                )
            node[parent] = {"file": known} if isinstance(known, str) else dict(known or {})
            node = node[parent]
        node[last] = option.value(value)
    if scorer := values.pop("scorer", None):
        values["skills"] = [f"{s}#{scorer}" if _own_file(s) else s for s in values.get("skills") or []]
    for key in needs:
        if not values.get(key):
            flag = _flag(Plan.model_fields[key]) or "--" + key.replace("_", "-")
            raise InputError(f"Missing option '{flag}'. Give it, or a recipe with {key} (see palora --help)")
    values.setdefault("model", "")
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise InputError(describe(error, lambda key: flags.get(key, key))) from None


def settings_of(kind: type[BaseModel], given: Mapping[Option, Any]) -> Any:
    """Settings of a class from its options alone. Raises InputError that names the option."""
    flags = {option.key: option.flag for option in given}
    try:
        return kind.model_validate({option.key: option.value(value) for option, value in given.items()})
    except ValidationError as error:
        raise InputError(describe(error, lambda key: flags.get(key.partition(".")[0], key))) from None


def _own_file(skill: Any) -> bool:
    """Whether a skill is a file of one's own that says no scorer."""
    return isinstance(skill, str) and "#" not in skill and skill.endswith((".jsonl", ".jsonl.gz"))


def _flag(field: FieldInfo) -> str | None:
    extra = field.json_schema_extra
    return str(extra["flag"]) if isinstance(extra, dict) and "flag" in extra else None


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of a field without None, and whether it is a list."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(a for a in get_args(annotation) if a is not NoneType)
    if get_origin(annotation) in (list, tuple):
        return get_args(annotation)[0], True
    return annotation, False


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
