"""PALoRA: teach a language model new facts without losing the skills it has (arXiv 2605.24549).

The whole public API is what this module names; nothing else is promised. It is imported lazily, so that `import palora`
and the command line cost nothing; `__init__.pyi` has the same names for type checkers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.8.0"

_ROOMS = {
    "algebra.subspace": "ProtectedSubspace ProtectedSubspaces",
    "common.errors": "InputError PaloraError",
    "common.settings": "EvaluateSettings ExpertSettings InjectSettings ProtectSettings",
    "data.facts": "Fact read_facts",
    "data.skills": "Problem Skill get_skill",
    "front.pipeline": "run",
    "front.recipe": "Recipe load_recipe",
    "language.keep": "Keep",
    "language.models": "load_model",
    "training.expert": "train_expert",
    "training.injection": "Beside inject",
    "training.keeping": "keeping",
    "training.lora": "PaloraConfig",
    "training.protection": "protect",
    "training.svf": "Expert",
}
_PUBLIC = {name: f"palora.{module}" for module, names in _ROOMS.items() for name in names.split()}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'palora' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
