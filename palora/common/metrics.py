"""A stage's training curve: one JSON object a line, in a file that a resumed run continues."""

import json
from pathlib import Path
from typing import Any

from palora.common.errors import InputError
from palora.common.files import atomic_write_text, clear_errors


class MetricsLog:
    """Appends rows `{"stage": …, "step": …, …}` to a JSONL file.

    Args:
        path: the file; its folder must exist.
        stage: the name in every row.
        resume_step: the step a resumed run starts from: later rows are of work that is done again, and are dropped.
    """

    def __init__(self, path: Path, stage: str, resume_step: int = 0) -> None:
        self.path, self.stage = Path(path), stage
        kept = [row for row in read_metrics(path) if row.get("step", 0) <= resume_step] if resume_step else []
        write_metrics(self.path, kept)
        self.rows = len(kept)  # that the file has

    def write(self, step: int, **values: Any) -> None:
        """Append one row."""
        with clear_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")
        self.rows += 1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; none where it is missing. A line that was cut short is left out."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def check_curve(path: Path, step: int, rows: int) -> None:
    """Raise InputError where fewer than `rows` rows up to a step are left: without them nobody knows what was reached,
    and the report would show a part for the whole."""
    left = sum(row.get("step", 0) <= step for row in read_metrics(path))
    if left < rows:
        raise InputError(f"{path} has {left} of the {rows} rows that were there at step {step}")


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a whole metrics file, atomically."""
    atomic_write_text(Path(path), "".join(json.dumps(row) + "\n" for row in rows))
