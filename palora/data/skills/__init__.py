"""Skills: problems whose answers can be checked. One file a skill, loaded when it is asked for.

    get_skill("gsm8k")              the published rows, from the Hugging Face hub
    get_skill("gsm8k:DIR")          the same rows, from a folder with a local copy of the published files
    get_skill("mine.jsonl")         your own: rows with prompt, answer, scorer (see `local.py`)
    get_skill("mine.jsonl#number")  the scorer named here instead

A new skill is a file with a function `skill(folder) -> Skill`, and a line in `BUILTIN`.
"""

from importlib import import_module
from pathlib import Path

from palora.common.errors import InputError
from palora.data.skills.base import SPLITS, Problem, Scorer, Skill, Split, few_shot

__all__ = ["BUILTIN", "SPLITS", "Problem", "Scorer", "Skill", "Split", "few_shot", "get_skill"]

# Name -> module and attribute: a Skill, or a function that makes it from a folder (None: from the hub).
BUILTIN = {
    "gsm8k": "gsm8k:skill",
    "math": "math:skill",
    "mbpp": "mbpp:skill",
    "humaneval": "humaneval:skill",
    "arc_easy": "arc:easy",
    "arc_challenge": "arc:challenge",
    "chain": "palora.testbed.chain:SKILL",
    "minmax": "palora.testbed.minmax:SKILL",
}


def get_skill(spec: str) -> Skill:
    """The skill that `spec` names.

    Args:
        spec: a name of `BUILTIN`; `name:DIR`, the same from local files; or the path of a JSON Lines file,
            with `#scorer` behind it or not.

    Raises:
        InputError: there is no such skill, folder or file, or what it holds is wrong.
    """
    name, _, folder = spec.partition(":")
    if name in BUILTIN:
        module, attribute = BUILTIN[name].split(":")
        made = getattr(import_module(module if "." in module else f"{__name__}.{module}"), attribute)
        if not isinstance(made, Skill):
            return made(Path(folder).expanduser() if folder else None)
        if folder:
            raise InputError(f"{spec}: the problems of {name} are generated, so it takes no folder; say just {name}")
        return made
    path, _, scorer = spec.partition("#")
    if path.endswith((".jsonl", ".jsonl.gz")) or Path(path).is_file():
        from palora.data.skills import local

        return local.skill(Path(path).expanduser(), scorer or None)
    raise InputError(
        f"unknown skill '{spec}'; there are {', '.join(BUILTIN)}, name:DIR for a local copy of its files,"
        " or the path of a .jsonl file of your own"
    )
