"""Which versions of what made a result."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of palora, Python and the libraries whose behaviour a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("palora", "torch", "transformers", "peft", "trl", "accelerate", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
