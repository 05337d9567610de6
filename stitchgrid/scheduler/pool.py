"""The workers of a run: which of them are starting, idle or busy, and what they hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from stitchgrid.records import Unit


@dataclass(slots=True)
class Member:
    """A worker that was started and is not known to be gone."""

    name: str
    since: float  # when its present state began: starting, idle, or busy with its unit
    node: str = ""
    ready: bool = False
    unit: Unit | None = None
    held: dict[int, None] = field(default_factory=dict)  # networks, least recently used first


class WorkerPool:
    """All members, with counts; the time of an answer does not grow with their number."""

    def __init__(self, *, max_held: int):
        self.max_held = max_held  # networks a worker is taken to hold
        self.num_starting = 0
        self.idle: dict[str, Member] = {}  # longest idle first
        self._members: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, name: str) -> Member | None:
        """Return a member, None for one that is gone or never was."""
        return self._members.get(name)

    @property
    def num_busy(self) -> int:
        """Number of members that have a unit."""
        return len(self._members) - len(self.idle) - self.num_starting

    def add(self, name: str, *, now: float) -> Member:
        """Take in a worker that is starting."""
        assert name not in self._members, "two workers of one name"
        self.num_starting += 1
        member = self._members[name] = Member(name=name, since=now)
        return member

    def welcome(self, member: Member, node: str, *, now: float) -> None:
        """Note that a worker is ready."""
        if not member.ready:
            self.num_starting -= 1
            self.idle[member.name] = member
            member.since = now
        member.ready, member.node = True, node

    def give(self, member: Member, unit: Unit, *, now: float) -> None:
        """Note that an idle worker has got a unit, and holds its networks from now on."""
        del self.idle[member.name]
        member.unit, member.since = unit, now
        for network in sorted(unit.networks):
            member.held.pop(network, None)
            member.held[network] = None
        while len(member.held) > self.max_held:
            del member.held[next(iter(member.held))]

    def release(self, member: Member, *, now: float) -> Unit:
        """Note that a worker is done with its unit, and return it."""
        assert member.unit is not None
        unit, member.unit, member.since = member.unit, None, now
        self.idle[member.name] = member
        return unit

    def remove(self, member: Member) -> None:
        """Note that a worker is gone."""
        del self._members[member.name]
        self.idle.pop(member.name, None)
        self.num_starting -= not member.ready
