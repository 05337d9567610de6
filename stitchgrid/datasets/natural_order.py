"""Names in natural order: 1, 2, 10."""

import re
from collections.abc import Sequence


def natural_order(class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of the names in natural order, in which numbers count by their value.

    >>> natural_order(["1", "10", "2", "20"])
    (0, 2, 1, 3)
    """
    return tuple(sorted(range(len(class_names)), key=lambda position: _natural(class_names[position])))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"([0-9]+)", name)  # every second one is a number
    digits = [part.lstrip("0") if position % 2 else "" for position, part in enumerate(parts)]
    return [
        (len(number), number) if position % 2 else (0, part)
        for position, (part, number) in enumerate(zip(parts, digits, strict=True))
    ], name
