"""The settings of a simulated run, and its report."""

from dataclasses import dataclass, field, fields
from math import isfinite
from typing import NamedTuple

from stitchgrid.errors import InputError, nearest
from stitchgrid.scheduler.deadlines import DeadlineRule

MOST_WORKERS = 1_000_000  # each of them is an object in memory
POSITIVE = ("num_workers", "workers_per_node", "flops_per_second")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """Workers, their speed, and how often failures happen."""

    num_workers: int = 512
    workers_per_node: int = 8
    flops_per_second: float = 1e12  # of one worker
    spread: float = 0.3  # standard deviation of the logarithm of a unit's time; stragglers have 1 and more
    start_s: float = 30.0  # until a worker is ready
    crashes_per_hour: float = 0.0  # of a busy worker, not caused by its unit
    hangs_per_hour: float = 0.0  # of a busy worker
    node_losses_per_hour: float = 0.0  # of a node
    detection_s: float = 15.0  # until the loss of a node's workers is noticed
    node_return_s: float = 300.0  # until a lost node, or its replacement, is available
    num_poison: int = 0  # cells that kill every worker that computes them
    deadlines: DeadlineRule = field(default_factory=DeadlineRule)
    seed: int = 0


KNOWN = ", ".join(one.name for one in fields(SimulationSettings) if one.name != "deadlines")


def parse_settings(text: str) -> dict[str, float]:
    """Return the settings that a text names, such as "num_workers=64,crashes_per_hour=0.1".

    >>> parse_settings("num_workers=64, spread=1")
    {'num_workers': 64, 'spread': 1.0}

    Raises:
        InputError: If it names an unknown setting, or a value is not a possible number.
    """
    given: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in KNOWN.split(", "):
            raise InputError(f"--simulate has no setting {name!r}; {nearest(name, KNOWN.split(', '))}.")
        try:
            given[name] = (int if name.startswith(("num_", "workers_", "seed")) else float)(value)
        except ValueError as problem:
            raise InputError(f"--simulate {name} wants a number, got {value!r}.") from problem
        is_low = given[name] <= 0 if name in POSITIVE else given[name] < 0
        if is_low or not isfinite(given[name]) or ("workers" in name and given[name] > MOST_WORKERS):
            raise InputError(f"--simulate {name} cannot be {value}.")
    return given


class SimulatedPiece(NamedTuple):
    """Some of the cells of a unit of the plan."""

    unit_id: str
    start: int
    stop: int


@dataclass(kw_only=True)
class SimulationReport:
    """The results of a simulated run; seconds of work are summed over all workers."""

    num_units: int
    num_workers: int
    start_s: float
    makespan_s: float = 0.0
    useful_s: float = 0.0  # on attempts that finished
    lost_s: float = 0.0  # on attempts that did not
    longest_s: float = 0.0  # of an attempt that finished
    num_attempts: int = 0
    num_lost: int = 0  # attempts
    num_bisected: int = 0
    num_started: int = 0  # workers
    num_nodes_lost: int = 0
    finished: list[SimulatedPiece] = field(default_factory=list)
    quarantined: list[SimulatedPiece] = field(default_factory=list)
    unavailable: list[SimulatedPiece] = field(default_factory=list)  # lost with their nodes again and again
    poison: set[tuple[str, int]] = field(default_factory=set)  # (unit, cell)

    @property
    def utilisation(self) -> float:
        """Share of all workers' time that went into attempts that finished."""
        return self.useful_s / (self.makespan_s * self.num_workers) if self.makespan_s else 1.0

    @property
    def bound_s(self) -> float:
        """Seconds before which no order of the same work on as many workers could end."""
        return self.start_s + max(self.useful_s / self.num_workers, self.longest_s) if self.num_attempts else 0.0

    def __str__(self) -> str:
        """Return the report as text.

        >>> print(SimulationReport(num_units=0, num_workers=2, start_s=1.0))
        simulated: 0 units on 2 workers end after 0.0 h (no order could end before 0.0 h)
        workers are at useful work 100.0 % of the time; 0.0 worker hours are lost in 0 of 0 attempts
        0 workers started, 0 nodes lost, 0 units cut in two, 0 cells quarantined, 0 unavailable
        """
        return "\n".join(
            [
                f"simulated: {self.num_units:,} units on {self.num_workers:,} workers end after "
                f"{self.makespan_s / 3600:.1f} h (no order could end before {self.bound_s / 3600:.1f} h)",
                f"workers are at useful work {100 * self.utilisation:.1f} % of the time; {self.lost_s / 3600:,.1f} "
                f"worker hours are lost in {self.num_lost:,} of {self.num_attempts:,} attempts",
                f"{self.num_started:,} workers started, {self.num_nodes_lost:,} nodes lost, {self.num_bisected:,} "
                f"units cut in two, {num_cells(self.quarantined):,} cells quarantined, {num_cells(self.unavailable):,} "
                "unavailable",
            ]
        )


def num_cells(pieces: list[SimulatedPiece]) -> int:
    """Return how many cells some pieces hold.

    >>> num_cells([SimulatedPiece("u", 0, 4), SimulatedPiece("v", 2, 3)])
    5
    """
    return sum(piece.stop - piece.start for piece in pieces)
