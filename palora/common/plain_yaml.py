"""YAML as it looks: what YAML 1.1 makes of a text that only looks like one is left out.

`010` is not 8, `1:30` not 90, `no` not false, 2020-01-01 no date: they stay text, of which a setting makes a number or
a yes where it is one. Numbers, true, false and null are those of YAML 1.2. A key stands once. Messages name a line, and
hold nothing that stands there: the file may not be the one that was meant.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

DEEPEST = 50  # levels; recipes have five
MOST = 100_000  # values, with every alias written out


class YamlProblem(Exception):
    """What is wrong with a YAML text, its line (None: with all of it), and whether it is no YAML at all."""

    def __init__(self, text: str, line: int | None = None, syntax: bool = False) -> None:
        super().__init__(text)
        self.line, self.syntax = line, syntax

    def where(self, file: object) -> str:
        """The place, for a message."""
        return str(file) if self.line is None else f"{file}, line {self.line}"


_FORMS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would read as no text."""


for _name, _form in _FORMS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_form})\Z"), None)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FORMS['float']})\Z"), list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises YamlProblem."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, ())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        reason = re.sub(r"(tag|alias|handle|anchor) '.*'", r"\1", reason)
        raise YamlProblem(f"not valid YAML ({reason})", mark and mark.line + 1, syntax=True) from None
    except RecursionError:
        raise YamlProblem("nested too deeply to be read") from None
    except (ValueError, ArithmeticError):  # of a value with a tag, or a number of 5,000 digits
        raise YamlProblem("not valid YAML (a value is not what it says that it is)", syntax=True) from None


def dump_yaml(value: Any, **form: Any) -> str:
    """A value as YAML that `parse_yaml` gives back."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **form))


def _check(node: yaml.Node, sizes: dict[int, int], within: tuple[int, ...]) -> int:
    """How many values a node holds, aliases written out. Raises YamlProblem where that is no plain value."""
    line = node.start_mark.line + 1
    if id(node) in within:
        raise YamlProblem("an alias stands within what it is an alias of", line)
    if len(within) > DEEPEST:
        raise YamlProblem(f"nested more than {DEEPEST} levels deep", line)
    if id(node) not in sizes:
        inner = sum(_check(child, sizes, (*within, id(node))) for child in _children(node))
        if inner > MOST:
            raise YamlProblem(f"more than {MOST:,} values, with its aliases written out", line)
        sizes[id(node)] = inner + 1
    return sizes[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in seen:
                    first = seen[key.tag, key.value]
                    raise YamlProblem(f"a key stands there a second time (first in line {first}); keep one", line)
                seen[key.tag, key.value] = line
            yield from (key, value)
