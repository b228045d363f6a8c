"""What the name of a matrix says: its layer, and what it is within the layer."""

import re
from collections.abc import Iterable


def split_module(name: str) -> tuple[int | None, str]:
    """model.layers.3.mlp.down_proj -> (3, "down_proj"): the layer, and what the matrix is within it."""
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", name)
    if not match:
        return None, name
    return int(match[1]), re.sub(r"^(mlp|self_attn|attn)\.", "", match[2])


def module_label(name: str) -> str:
    """model.layers.3.mlp.down_proj -> "layer 3 · down_proj"."""
    layer, kind = split_module(name)
    return kind if layer is None else f"layer {layer} · {kind}"


def by_depth(names: Iterable[str]) -> list[str]:
    """Names in the order of the network: by layer, then as given."""
    return sorted(names, key=lambda name: split_module(name)[0] or 0)
