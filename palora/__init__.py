"""PALoRA: teach a language model new facts without losing the skills it has (arXiv 2605.24549).

The whole public API is what this module names; nothing else is promised. It is imported lazily, so that `import palora`
and the command line cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"

_PUBLIC = {
    "PaloraConfig": "palora.lora",
    "ProtectedSubspace": "palora.subspace",
    "ProtectedSubspaces": "palora.subspace",
    "Expert": "palora.svf",
    "Budget": "palora.rules",
    "Keep": "palora.keep",
    "Fact": "palora.facts",
    "read_facts": "palora.facts",
    "Problem": "palora.skills",
    "Skill": "palora.skills",
    "get_skill": "palora.skills",
    "Recipe": "palora.recipe",
    "load_recipe": "palora.recipe",
    "load_model": "palora.models",
    "train_expert": "palora.expert",
    "protect": "palora.protection",
    "inject": "palora.injection",
    "run": "palora.pipeline",
    "InputError": "palora.errors",
    "PaloraError": "palora.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from palora.errors import InputError as InputError
    from palora.errors import PaloraError as PaloraError
    from palora.expert import train_expert as train_expert
    from palora.facts import Fact as Fact
    from palora.facts import read_facts as read_facts
    from palora.injection import inject as inject
    from palora.keep import Keep as Keep
    from palora.lora import PaloraConfig as PaloraConfig
    from palora.models import load_model as load_model
    from palora.pipeline import run as run
    from palora.protection import protect as protect
    from palora.recipe import Recipe as Recipe
    from palora.recipe import load_recipe as load_recipe
    from palora.rules import Budget as Budget
    from palora.skills import Problem as Problem
    from palora.skills import Skill as Skill
    from palora.skills import get_skill as get_skill
    from palora.subspace import ProtectedSubspace as ProtectedSubspace
    from palora.subspace import ProtectedSubspaces as ProtectedSubspaces
    from palora.svf import Expert as Expert


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'palora' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
