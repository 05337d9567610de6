"""Cells, and the units of work that compute them."""

from dataclasses import dataclass

from stitchgrid.records.specs import DataSpec, NetworkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One ordered layer pair times one matcher (times one seed, for trained kinds), by position in its sweep."""

    cell_id: str  # digest of everything that decides its values
    source: int  # position of the network in the sweep
    source_layer: int  # position among the network's selected layers
    target: int
    target_layer: int
    matcher: int

    @property
    def source_key(self) -> tuple[int, int]:
        """Where the stitch starts: (network, layer)."""
        return self.source, self.source_layer

    @property
    def target_key(self) -> tuple[int, int]:
        """Where the stitch ends: (network, layer)."""
        return self.target, self.target_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some layers of one source network, paired with some layers of one target network."""

    source: int
    target: int
    source_layers: tuple[int, ...]
    target_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of work of one worker: some blocks times some matchers."""

    unit_id: str
    blocks: tuple[Block, ...]
    matchers: tuple[int, ...]
    flops: float  # by the cost model
    num_cells: int  # cells to compute, after finished ones are taken out
    wanted: frozenset[str] | None = None  # cell ids to compute; None: all
    #: Cell id -> generation, of cells that are, or were, computed again; others have 0.
    generations: tuple[tuple[str, int], ...] = ()

    @property
    def networks(self) -> frozenset[int]:
        """Positions of the networks the shard needs."""
        return frozenset(i for block in self.blocks for i in (block.source, block.target))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNetwork:
    """The unit of work that makes one trained network of a recipe."""

    unit_id: str  # also the key of the artefact it writes
    spec: NetworkSpec
    data: DataSpec
    flops: float = 0.0
    num_cells: int = 1  # networks made, for progress
    generation: int = 0  # of the cells for which it is made anew

    @property
    def networks(self) -> frozenset[int]:
        """Empty: a training needs none of the sweep's networks."""
        return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class OfNetwork:
    """A unit of work about one network of a sweep; it writes one artefact."""

    unit_id: str  # also the key of the artefact
    network: int
    flops: float = 0.0
    num_cells: int = 1  # artefacts made, for progress
    generation: int = 0  # of the cells for which it is made anew

    @property
    def networks(self) -> frozenset[int]:
        """The network it is about."""
        return frozenset({self.network})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateNetwork(OfNetwork):
    """The unit of work that measures one network, unstitched, on the evaluation images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNetwork(OfNetwork):
    """The unit of work that probes all selected layers of one network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDetector(OfNetwork):
    """The unit of work that makes the detector by energy of one target layer."""

    layer: int


Unit = Shard | TrainNetwork | EvaluateNetwork | ProbeNetwork | TrainDetector


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """What a worker reports when a unit is finished; it has written everything else to the store itself."""

    unit_id: str
    num_cells: int = 0  # with values
    num_failed: int = 0  # with an error
    seconds: float = 0.0
    part: str | None = None  # name of the part written
