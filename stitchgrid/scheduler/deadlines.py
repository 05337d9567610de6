"""After how many seconds a worker counts as hanging: learned from finished units of the same run.

A unit is expected to take as long per FLOP as the slowest finished unit that cost at least about an eighth as much: the
start-up time of a small unit says nothing about a large one. The deadline is 20 times the expected time, and at least
ten minutes: a machine that others use too, or one that swaps, must not lose its workers. Until such a unit has
finished, the deadline is an hour plus the time of the unit's cost at 1 GFLOP/s. New deadlines hold for units in flight
too. Each deadline that a unit misses doubles its next one.
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
    """How long a unit may take."""

    first: Callable[[Unit], float] = generous_deadline  # while nothing is known
    factor: float = 20.0  # times the expected time
    floor_s: float = 600.0


class Deadlines:
    """Deadlines, learned from the finished units of one run."""

    def __init__(self, rule: DeadlineRule):
        self.rule = rule
        self._slowest: dict[int, float] = {}  # binary order of magnitude of the cost -> most seconds per FLOP

    def learn(self, unit: Unit, seconds: float) -> bool:
        """Note how long a unit took; return whether deadlines of other units may now be earlier."""
        size = _size(unit)
        is_new = size not in self._slowest
        self._slowest[size] = max(self._slowest.get(size, 0.0), seconds / max(unit.flops, 1.0))
        return is_new

    def allowed(self, unit: Unit, *, num_missed: int = 0) -> float:
        """Return the seconds that a unit may take after it has missed some deadlines."""
        rates = [rate for size, rate in self._slowest.items() if size >= _size(unit) - COMPARABLE]
        if not rates:
            seconds = self.rule.first(unit)
        else:
            seconds = max(self.rule.floor_s, self.rule.factor * max(rates) * max(unit.flops, 1.0))
        return seconds * 2.0**num_missed


def _size(unit: Unit) -> int:
    return frexp(max(unit.flops, 1.0))[1]
