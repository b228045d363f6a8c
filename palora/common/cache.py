"""The cache: decompositions of matrices, which take long and are used by every run on the same model.

A folder of safetensors files: `$PALORA_CACHE`, by default `~/.cache/palora`; set `PALORA_CACHE=` (empty) for none. It
can be deleted at any time.
"""

import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path | None:
    """Where it is; None for none."""
    folder = os.environ.get("PALORA_CACHE", str(Path.home() / ".cache" / "palora"))
    return Path(folder) if folder else None


def cached(clear: bool = False) -> dict[str, Any]:
    """What is in it: `{"folder", "files", "bytes"}`; with `clear` it is deleted, and these are what it was."""
    folder = cache_folder()
    files = [file for file in folder.glob("svd-*.safetensors") if file.is_file()] if folder else []
    found = {"folder": str(folder or "none"), "files": len(files), "bytes": sum(f.stat().st_size for f in files)}
    for file in files if clear else []:
        file.unlink()
    return {**found, "cleared": clear}
