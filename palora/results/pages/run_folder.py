"""Reading a run folder: what its files hold, as far as they are there and can be read."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palora.common.errors import InputError
from palora.common.files import load_tensors, read_json
from palora.common.metrics import read_metrics
from palora.common.module_names import by_depth
from palora.results.answers import FILE as ANSWERS
from palora.results.answers import read_answers


@dataclass(frozen=True)
class Run:
    """What a run folder holds. `missing` has, for each file that could not be read, a line that says so; `files` are
    those that hold its data."""

    name: str
    evaluation: dict[str, Any]
    recipe: str | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    expert: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    protection: dict[str, Any] = field(default_factory=dict)
    singular_values: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, dict[str, Any]]:
        """What protection.json says of every matrix, in the order of the network."""
        modules = mapping(self.protection.get("modules"))
        return {name: mapping(modules[name]) for name in by_depth(modules)}

    @property
    def constrained(self) -> bool:
        """Whether a rule stands between the update and some directions."""
        return self.protection.get("rule", "none") != "none"

    @property
    def hard(self) -> bool:
        """Whether the protection removes directions; a soft one damps them."""
        return bool(self.protection.get("hard", self.protection.get("rule") != "covariance"))


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises InputError where evaluation.json is missing or is not an evaluation."""
    folder = Path(folder)
    path = folder / "evaluation.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `palora evaluate --out {folder}` first")
    evaluation = read_json(path)
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("arms"), dict) or not measured(evaluation):
        raise InputError(f'{path}: not an evaluation (it has no "arms"); run `palora evaluate` again')
    missing: dict[str, str] = {}
    with_expert = "expert" in measured(evaluation)

    def optional(name: str, read: Callable[[Path], Any], otherwise: Any) -> Any:
        if not (folder / name).is_file():
            missing[name] = f"This run has no {name}."
            return otherwise
        try:
            return read(folder / name)
        except (InputError, OSError, UnicodeDecodeError) as error:
            missing[name] = f"{name} cannot be read: {error}."
            return otherwise

    return Run(
        name=folder.resolve().name,
        evaluation=evaluation,
        recipe=optional("recipe.yaml", lambda file: file.read_text(encoding="utf-8"), None),
        metrics=optional("metrics.jsonl", read_metrics, []),
        answers=optional(ANSWERS, read_answers, []),
        files=[
            name for name in ("evaluation.json", ANSWERS, "metrics.jsonl", "recipe.yaml") if (folder / name).is_file()
        ],
        expert=mapping(optional("expert/expert.json", read_json, {})) if with_expert else {},
        scales=optional("expert/scales.safetensors", _read_vectors, {}) if with_expert else {},
        protection=mapping(optional("protection/protection.json", read_json, {})),
        singular_values=optional("expert/singular_values.safetensors", _read_vectors, {}),
        missing=missing,
    )


def _read_vectors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy().ravel() for name, tensor in load_tensors(path).items()}


def measured(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of an evaluation. Up to version 0.8 an expert that was not there stood among them, as null."""
    return {arm: values for arm, values in evaluation["arms"].items() if isinstance(values, dict)}


# --- whatever a JSON file may hold ----------------------------------------------------------------


def mapping(value: Any) -> dict[str, Any]:
    """An object, or an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> float | None:
    """A finite number, or None for everything else: null, NaN, text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(value: Any) -> tuple[float, float] | None:
    """[low, high], or None for everything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = finite(value[0]), finite(value[1])
    return None if low is None or high is None else (low, high)
