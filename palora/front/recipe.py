"""The one typed configuration: a *plan* is what any stage works from, a *recipe* a whole run of them.

`recipes/*.yaml` are its instances, and the command line's options are its fields. The defaults are what we recommend;
the published settings are a preset.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from palora.common.errors import InputError
from palora.common.files import check_path
from palora.common.plain_yaml import YamlProblem, dump_yaml, parse_yaml
from palora.common.settings import (
    PLAIN,
    Bits,
    Dtype,
    EvaluateSettings,
    ExpertSettings,
    InjectSettings,
    ProtectSettings,
    Settings,
)
from palora.data.sources import sources

FACTS = ("facts", "known_facts", "kept_facts")
FactFiles = str | dict[str, str] | list[str | dict[str, str]]  # as `palora.data.sources` reads them
MOST_EXTENDED = 20
ARM_NAME = r"\w[\w.-]*"  # it names a folder


class ArmSettings(Settings):
    """One more arm: the same facts and budget under another protection or other settings."""

    protect: dict[str, Any] | None = Field(None, description="replaces `protect`; none is plain LoRA")
    inject: dict[str, Any] = Field(default_factory=dict, description="changes to `inject`")


class Plan(Settings):
    """What a stage works from: a model, what is to be kept, facts, and the settings of every stage."""

    model: str = Field(description="a folder or a hub name")
    dtype: Dtype = Field("auto", description="of the base weights")
    load: Bits | None = Field(
        None, description="quantise the base weights when they are loaded, by bitsandbytes; not with an expert"
    )
    device: str | None = Field(None, description="where to run, cpu or cuda; by default the first GPU, if there is one")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    targets: list[str] | None = Field(
        None, description="endings of the targeted matrices, with commas; the MLP matrices by default"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None,
        description="variables of the chat template, {enable_thinking: true}; one that can think is told not to by "
        "default",
    )
    system_message: str | None = Field(None, description="a system message before every question; none by default")
    skills: list[str] = Field(
        default_factory=list,
        description="a built-in skill, name:DIR with its files, or a JSONL file; the first trains the expert",
        json_schema_extra={"flag": "--skill"},
    )
    facts: FactFiles | None = Field(
        None, description="the new facts: CSV, JSONL, Excel, Parquet, … with question and answer, or a hub name"
    )
    known_facts: FactFiles | None = Field(None, description="facts the model knows, in the same form")
    kept_facts: FactFiles | None = Field(None, description="known facts to keep; by default known_facts")
    text: str | None = Field(None, description="plain text to keep, a passage a line")
    prompts: str | None = Field(None, description="prompts, one a line: what the model answers to them is to be kept")
    expert: ExpertSettings | None = Field(None, description="stage 1; without it the facts go on the model itself")
    protect: ProtectSettings = Field(default_factory=ProtectSettings)  # type: ignore[arg-type]
    inject: InjectSettings = Field(default_factory=InjectSettings)  # type: ignore[arg-type]
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)  # type: ignore[arg-type]

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        """An option's text is YAML, as an override's is. A template takes any text for true: no and off are refused."""
        try:
            value = parse_yaml(value) if isinstance(value, str) else value
        except YamlProblem:
            return value
        for key, given in value.items() if isinstance(value, dict) else ():
            if isinstance(given, str) and given.lower() in ("yes", "no", "on", "off", "y", "n"):
                raise ValueError(f"{key}: write true or false, not {given}")
        return value

    @field_validator("model", "device", "text", "prompts")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return value if value is None else check_path(value)

    @field_validator("skills")
    @classmethod
    def _paths(cls, value: list[str]) -> list[str]:
        return [check_path(one) for one in value]

    @field_validator("targets")
    @classmethod
    def _some(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not [ending for ending in value if ending.strip()]:
            raise ValueError("names no matrix; leave it out for the MLP matrices")
        return value

    @field_validator(*FACTS, mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            if cls.model_fields[str(info.field_name)].is_required():
                raise ValueError("is missing")
            return None
        try:
            named = [source.value for source in sources(value)]
        except InputError as error:
            raise ValueError(str(error)) from None
        return named if isinstance(value, list) else named[0]


class Recipe(Plan):
    """A whole run: model, skill and facts in; adapter and report out. Made by `load_recipe`, or of keywords:
    `Recipe(model="M", skills=["gsm8k"], facts="facts.jsonl")`."""

    skills: list[str] = Field(
        min_length=1, description="built-in names, name:DIR or JSONL files; the first trains the expert"
    )
    facts: FactFiles = Field(description="a file with question and answer, {file, question, answer, …}, or a list")
    arms: dict[str, ArmSettings | None] = Field(
        default_factory=dict, description="more arms beside base, expert, lora, palora; `lora: null` leaves it out"
    )

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        for name, own in self.arms.items():
            if name in ("base", "expert", "palora"):
                raise ValueError(f"arms.{name} is always there; only lora and new names can be set")
            if not re.fullmatch(ARM_NAME, name):
                raise ValueError(f"arms: {name!r} is no name; use letters, digits, - and _")
            if own is None and name != "lora":
                raise ValueError(f"arms.{name}: it has no settings; only lora, which is there by default, can be null")
            try:
                self.arm(name)
            except ValidationError as error:
                raise ValueError(f"arms.{name}: {describe(error)}") from None
        return self

    def arm(self, name: str) -> tuple[ProtectSettings, InjectSettings]:
        """The settings of a trained arm: `palora`, the control `lora` (no protection), or one of `arms`."""
        if name == "palora":
            return self.protect, self.inject
        own = self.arms.get(name) or ArmSettings()  # type: ignore[call-arg]
        protect = ProtectSettings.model_validate(own.protect or {"rule": "none"})
        # The control is what people do without us: bare answers. Other arms differ by what they say alone.
        plain = PLAIN if name == "lora" else {key: value for key, value in PLAIN.items() if key != "targets_by"}
        return protect, InjectSettings.model_validate(merged(self.inject.model_dump() | plain, own.inject))

    @property
    def trained_arms(self) -> list[str]:
        """The arms that are trained, in the order of the report: lora, the extra ones, palora."""
        control = [] if "lora" in self.arms and self.arms["lora"] is None else ["lora"]
        return [*control, *(name for name in self.arms if name != "lora"), "palora"]


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe.

    Args:
        path: the file. Paths of files in it that exist beside it are taken from there.
        overrides: changes, `key=value`: `["inject.r=8", "arms.svf.protect.k=64"]`.

    Returns:
        The recipe, checked; every key that it leaves out has its default.

    Raises:
        InputError: the file cannot be read, or a key or a value is wrong. The line names it, and what may stand there.
    """
    return parse_recipe(read_values(path, overrides), str(path))


def read_values(path: str | Path | None, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """The plain values of a YAML recipe (none: no values), with its overrides and the paths of its files resolved.

    A bare name that is no file is a recipe that comes with palora: default, 8b, 24gb, paper.

    `extends: FILE` takes the values of another recipe first (a path beside this one): mappings are merged key by key
    (`null` takes one back), everything else is replaced.

    Raises: InputError.
    """
    values = _read(_shipped(Path(path)), ()) if path is not None else {}
    for override in overrides or []:
        _override(values, override)
    return values


def _shipped(path: Path) -> Path:
    """The recipe that comes with palora, where a bare name (`default`) is no file here: of the package, or of the
    source tree."""
    here = Path(__file__).parent
    folders = () if path.exists() or path.suffix or path.parent != Path() else (here, here.parents[1])
    found = [file for folder in folders if (file := folder / "recipes" / f"{path}.yaml").is_file()]
    return found[0] if found else path


def _read(path: Path, extended: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a recipe that the recipes `extended` are made of."""
    if path.resolve() in extended:
        raise InputError(f"{path}: extends itself")
    if len(extended) > MOST_EXTENDED:
        raise InputError(f"{path}: more than {MOST_EXTENDED} recipes extend each other; write them as fewer")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; with palora come default, 8b, 24gb and paper") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except YamlProblem as problem:
        mend = "; check the indentation and the quotes there" if problem.syntax else ""
        raise InputError(f"{problem.where(path)}: {problem}{mend}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a YAML mapping (model: …, skills: …, facts: …)")
    for key in ("model", *FACTS, "text", "prompts"):
        beside(values, key, path.parent)
    if isinstance(values.get("evaluate"), dict):
        beside(values["evaluate"], "harness_tasks", path.parent)
    for key in ("skills", "keep_skills"):
        for index, skill in enumerate(values[key] if isinstance(values.get(key), list) else ()):
            file, sign, scorer = skill.partition("#") if isinstance(skill, str) else ("", "", "")
            if file.endswith(".jsonl") and not Path(file).is_absolute() and (path.parent / file).exists():
                values[key][index] = f"{path.parent / file}{sign}{scorer}"
    if (other := values.pop("extends", None)) is None:
        return values
    if not isinstance(other, str):
        raise InputError(f"{path}: extends must be the path of a recipe, not {other!r}")
    if not check_path(other).endswith((".yaml", ".yml", ".json")):  # what stands in another file is not to be told of
        raise InputError(f"{path}: extends names a recipe, *.yaml, *.yml or *.json, not {other!r}")
    return merged(_read(path.parent / other, (*extended, path.resolve())), values)


def merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the values of `new`: mappings key by key, everything else replaced."""
    both = {k: merged(old[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return {**old, **new, **both}


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from plain values. Raises InputError naming the first wrong key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from None


def describe(error: ValidationError, called: Callable[[str], str] = str) -> str:
    """The first problem of a validation in one line: the key, what is wrong, how many more there are.

    Args:
        called: what to call a key (`protect.keep.skills`).
    """
    first, *rest = error.errors()
    key, given = ".".join(str(part) for part in first["loc"]), first["input"]
    message = first["msg"].splitlines()[0].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "extra_forbidden":
        message = "no such key; recipes/default.yaml shows all there are"
    elif first["type"] == "missing":
        message = "is missing"
    elif message.startswith("must") and isinstance(given, str | int | float | None):
        message += f", not {given!r}"
    return (f"{called(key)}: " if key else "") + message + (f" (and {len(rest)} more to mend)" if rest else "")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return dump_yaml(recipe.model_dump(mode="json"))


def beside(container: Any, key: Any, folder: Path) -> None:
    """Take a path in a recipe from `folder`, where it exists there; also those of a mapping, or of a list of them."""
    value = container.get(key) if isinstance(container, dict) else container[key]
    if isinstance(value, str) and not Path(value).is_absolute() and (folder / value).exists():
        container[key] = str(folder / value)
    elif isinstance(value, list):
        for index in range(len(value)):
            beside(value, index, folder)
    elif isinstance(value, dict):
        for name in ("file", "templates"):
            beside(value, name, folder)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: overrides look like key=value, for example inject.r=8")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        if node is values and parent in FACTS and isinstance(node.get(parent), str):
            node[parent] = {"file": node[parent]}  # facts.question=Frage
        node[parent] = {} if node.get(parent) is None else node[parent]
        node = node[parent]
        if not isinstance(node, dict):
            raise InputError(f"{override!r}: {parent} has no keys of its own")
    try:
        node[last] = parse_yaml(text)
    except YamlProblem:
        raise InputError(f"{override[:80]!r}: the value is not valid YAML") from None
