"""Where a label goes: beside its point, where it covers least of what is drawn already. Geometry only, in pixels."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def best_place(
    x: float, y: float, width: float, height: float, taken: Sequence[Box], frame: Box
) -> tuple[float, float, Box]:
    """The offset of a text's centre from (x, y), and its box, with the least overlap, near before far."""
    best_cost, best = math.inf, (0.0, 0.0, (x, y, x, y))
    for radius in (12, 18, 28, 40, 55, 75, 100):
        for side, up in ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            dx = side * (radius + width / 2)
            dy = up * ((radius - 9 if side else radius) + height / 2)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            cost = radius + 5 * (width * height - _overlap(box, frame)) + sum(_overlap(box, b) for b in taken)
            if is_far(x, y, box):  # the thin line it then gets should not run through others
                path = [(x + dx * step / 20, y + dy * step / 20) for step in range(3, 20)]
                cost += 20 * sum(b[0] < u < b[2] and b[1] < v < b[3] for b in taken for u, v in path)
            if cost < best_cost:
                best_cost, best = cost, (dx, dy, box)
    return best


def is_far(x: float, y: float, box: Box) -> bool:
    """Whether a label is too far from its point to be told as its own without a line."""
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3])) > 20


def _overlap(a: Box, b: Box) -> float:
    """The area two boxes (x0, y0, x1, y1) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
