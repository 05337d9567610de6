"""Waiting units: those never tried come first, by affinity and cost; then those to be tried again, in their order."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence

from stitchgrid.records import Unit

_Place = tuple[float, int]  # (-flops, position in the input): least first


class UnitQueue:
    """Waiting units; taking one looks only at groups of units that need a network which the worker holds."""

    def __init__(self, units: Sequence[Unit]):
        places = [((-unit.flops, position), unit) for position, unit in enumerate(units)]
        self._fresh: dict[_Place, Unit] = dict(sorted(places, key=lambda item: item[0]))
        self._by_cost = deque(self._fresh)  # most costly first; units that affinity took are dropped later
        self._groups: dict[frozenset[int], deque[_Place]] = {}  # units that need the same networks, most costly first
        self._touching: dict[int, dict[frozenset[int], None]] = {}  # network -> groups that need it
        for place, unit in self._fresh.items():
            self._groups.setdefault(unit.networks, deque()).append(place)
        for group in self._groups:
            for network in group:
                self._touching.setdefault(network, {})[group] = None
        self._flops = sum(unit.flops for unit in units)  # of fresh units
        self._tail: deque[Unit] = deque()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._tail)

    def __iter__(self) -> Iterator[Unit]:
        yield from self._fresh.values()
        yield from self._tail

    def put_back(self, unit: Unit) -> None:
        """Let a unit wait behind all others."""
        self._tail.append(unit)

    def take(self, held: Collection[int], num_workers: int) -> Unit | None:
        """Return the next unit for a worker that holds some networks, most recently used last; None when none waits.

        Among the units that need a network the worker holds, it is the one that needs the fewest networks the worker
        lacks. Among several that lack none, units with the most recently used network come first, and among these the
        most costly. The most costly unit of all goes first when it would take longer than a worker's share of all
        waiting units: if it began later, it would still run when all others have ended.
        """
        if not self._fresh:
            return self._tail.popleft() if self._tail else None
        while self._by_cost[0] not in self._fresh:
            self._by_cost.popleft()
        costly = self._by_cost[0]
        near = self._nearest(held)
        if near is None or (costly[0] < near[0] and -costly[0] * num_workers > self._flops):
            near = costly
        return self._remove(near)

    def _nearest(self, held: Collection[int]) -> _Place | None:
        best: tuple[int, _Place] | None = None
        at_hand = frozenset(held)
        for network in reversed(list(held)):
            groups = self._touching.get(network, ())
            found = ((len(group - at_hand), self._groups[group][0]) for group in groups)
            best = min(found if best is None else (best, *found), default=None)
            if best is not None and best[0] == 0:  # nothing is nearer
                break
        return None if best is None else best[1]

    def _remove(self, place: _Place) -> Unit:
        unit = self._fresh.pop(place)
        self._flops -= unit.flops
        group = unit.networks
        self._groups[group].popleft()  # both ways of choosing take the most costly unit of its group
        if not self._groups[group]:
            del self._groups[group]
            for network in group:
                del self._touching[network][group]
        return unit
