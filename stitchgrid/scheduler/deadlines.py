"""After how long a worker is taken to hang: learned from the units of the same run that have finished.

A unit is expected to take as long per FLOP as the slowest finished unit that cost at least an eighth as much, about:
what a small unit spends on getting started says nothing of a large one. It may take 20 times that, and never less than
ten minutes: a machine that others use too, or one that swaps, must not lose its workers. Until such a unit has
finished, an hour plus the unit's cost at 1 GFLOP/s is allowed. What is learned holds for units in flight too. Each
deadline that a unit misses doubles its next one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp

from stitchgrid.records import Unit

COMPARABLE = 3  # binary orders of magnitude: a unit teaches about those that cost up to eight times as much


def generous_deadline(unit: Unit) -> float:
    """Return the seconds allowed while nothing is known: an hour, plus the unit's cost at 1 GFLOP/s."""
    return 3600.0 + unit.flops / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineRule:
    """How patient to be."""

    first: Callable[[Unit], float] = generous_deadline  # while nothing is known
    factor: float = 20.0  # times what is expected
    floor_s: float = 600.0


class Deadlines:
    """What the units of one run have taught so far."""

    def __init__(self, rule: DeadlineRule):
        self.rule = rule
        self._slowest: dict[int, float] = {}  # binary order of magnitude of the cost -> most seconds per FLOP

    def learn(self, unit: Unit, seconds: float) -> bool:
        """Take in how long a unit took; return whether others may be overdue earlier than it seemed before."""
        size = _size(unit)
        is_new = size not in self._slowest
        self._slowest[size] = max(self._slowest.get(size, 0.0), seconds / max(unit.flops, 1.0))
        return is_new

    def allowed(self, unit: Unit, *, num_missed: int = 0) -> float:
        """Return the seconds a unit may take that has missed some deadlines already."""
        rates = [rate for size, rate in self._slowest.items() if size >= _size(unit) - COMPARABLE]
        if not rates:
            seconds = self.rule.first(unit)
        else:
            seconds = max(self.rule.floor_s, self.rule.factor * max(rates) * max(unit.flops, 1.0))
        return seconds * 2.0**num_missed


def _size(unit: Unit) -> int:
    return frexp(max(unit.flops, 1.0))[1]
