"""PALoRA: teach a language model new facts without losing the skills it has (arXiv 2605.24549).

The whole public API is what this module names; nothing else is promised. It is imported lazily, so that `import palora`
and the command line cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"

_PUBLIC = {
    "PaloraConfig": "palora.training.lora",
    "ProtectedSubspace": "palora.algebra.subspace",
    "ProtectedSubspaces": "palora.algebra.subspace",
    "Expert": "palora.training.svf",
    "Budget": "palora.algebra.rules",
    "Keep": "palora.language.keep",
    "Fact": "palora.data.facts",
    "read_facts": "palora.data.facts",
    "Problem": "palora.data.skills",
    "Skill": "palora.data.skills",
    "get_skill": "palora.data.skills",
    "Recipe": "palora.front.recipe",
    "load_recipe": "palora.front.recipe",
    "load_model": "palora.language.models",
    "train_expert": "palora.training.expert",
    "protect": "palora.training.protection",
    "inject": "palora.training.injection",
    "run": "palora.front.pipeline",
    "InputError": "palora.common.errors",
    "PaloraError": "palora.common.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from palora.algebra.rules import Budget as Budget
    from palora.algebra.subspace import ProtectedSubspace as ProtectedSubspace
    from palora.algebra.subspace import ProtectedSubspaces as ProtectedSubspaces
    from palora.common.errors import InputError as InputError
    from palora.common.errors import PaloraError as PaloraError
    from palora.data.facts import Fact as Fact
    from palora.data.facts import read_facts as read_facts
    from palora.data.skills import Problem as Problem
    from palora.data.skills import Skill as Skill
    from palora.data.skills import get_skill as get_skill
    from palora.front.pipeline import run as run
    from palora.front.recipe import Recipe as Recipe
    from palora.front.recipe import load_recipe as load_recipe
    from palora.language.keep import Keep as Keep
    from palora.language.models import load_model as load_model
    from palora.training.expert import train_expert as train_expert
    from palora.training.injection import inject as inject
    from palora.training.lora import PaloraConfig as PaloraConfig
    from palora.training.protection import protect as protect
    from palora.training.svf import Expert as Expert


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'palora' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
