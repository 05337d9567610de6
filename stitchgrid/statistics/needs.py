"""What each matcher of a sweep reads, looked up once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stitchgrid.matchers.metrics import WITHOUT_TAIL
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import ClosedForm, GramIndex, Kind, MomentIndex, Trained
from stitchgrid.matchers.registry import asks_ood, images_used, implementation, is_shuffled
from stitchgrid.matchers.stitchers.direct import Direct, DirectParams
from stitchgrid.records import Block, MatcherSpec, Sweep
from stitchgrid.statistics.base import LayerKey


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Needs:
    """What a matcher reads."""

    position: int  # in the sweep
    spec: MatcherSpec
    kind: Kind[Any]
    num_fit: int
    num_eval: int
    rank: int | None
    rules: Rules | None  # of a stitcher
    #: The closed form that computes the maps, or from whose maps training starts.
    closed: ClosedForm[Any] | None
    is_shuffled: bool
    runs_tail: bool
    has_rows: bool  # whether its values are computed from second moments of evaluation rows
    is_affine: bool  # a stitcher whose residual follows from these moments
    asks_distances: bool
    asks_energies: bool
    epochs: int
    batch_size: int
    augment: str

    @property
    def is_stitcher(self) -> bool:
        """Whether it computes maps."""
        return self.rules is not None

    @property
    def is_gram(self) -> bool:
        """Whether it is an index of Gram matrices."""
        return isinstance(self.kind, GramIndex)

    @property
    def is_trained(self) -> bool:
        """Whether its maps are trained."""
        return isinstance(self.kind, Trained)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a stitcher whose maps are not affine: T(A) is compared with B row by row."""
        return self.is_stitcher and not self.is_affine

    @property
    def may_go_by_rows(self) -> bool:
        """Whether residuals may be computed row by row: maps are affine, and T(A) is computed for the tail anyway."""
        return self.is_affine and self.runs_tail and not self.is_shuffled

    @property
    def num_folds(self) -> int:
        """Number of groups of fit images with moments of their own; 0: moments are of all fit images."""
        return 0 if self.closed is None else min(self.closed.num_folds, self.num_fit)

    def rank_of(self, width: int) -> int | None:
        """Return how many directions of a source of this width are kept, None for all of them."""
        return None if self.rank is None or self.rank >= width else self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGrid:
    """Cells of one matcher: each of some sources with each of some targets."""

    needs: Needs
    sources: tuple[LayerKey, ...]
    targets: tuple[LayerKey, ...]


def images_of(sweep: Sweep, matcher: int) -> tuple[int, int]:
    """Return how many fit and evaluation images a matcher of a sweep looks at."""
    spec = sweep.matchers[matcher]
    return images_used(spec, num_fit=sweep.num_fit, num_fit_closed=sweep.num_fit_closed, num_eval=sweep.num_eval)


def all_needs(sweep: Sweep) -> tuple[Needs, ...]:
    """Return what each matcher of a sweep reads; matchers with equal rules share one object for them."""
    rules: dict[Rules, Rules] = {}
    return tuple(_needs(sweep, position, rules) for position in range(len(sweep.matchers)))


def _needs(sweep: Sweep, position: int, known: dict[Rules, Rules]) -> Needs:
    spec = sweep.matchers[position]
    kind, values = implementation(spec), spec.values
    num_fit, num_eval = images_of(sweep, position)
    is_stitcher = kind.about.family == "stitcher"
    is_affine = is_stitcher and values.get("adapter", "affine") == "affine"
    closed = kind if isinstance(kind, ClosedForm) else None
    if values.get("init") == "direct":
        closed = Direct(DirectParams())
    rules = Rules.of(spec) if is_stitcher else None
    return Needs(
        position=position,
        spec=spec,
        kind=kind,
        num_fit=num_fit,
        num_eval=num_eval,
        rank=values.get("rank"),
        rules=None if rules is None else known.setdefault(rules, rules),
        closed=closed,
        is_shuffled=is_shuffled(sweep, spec),
        runs_tail=is_stitcher and (not is_affine or not WITHOUT_TAIL.issuperset(spec.metrics)),
        has_rows=is_affine or isinstance(kind, MomentIndex),
        is_affine=is_affine,
        asks_distances=asks_ood(spec, "mahalanobis"),
        asks_energies=asks_ood(spec, "energy"),
        epochs=values.get("epochs", 0),
        batch_size=values.get("batch_size", 0),
        augment=values.get("augment", "none"),
    )


def of_blocks(needs: Iterable[Needs], blocks: Iterable[Block]) -> Iterator[CellGrid]:
    """Yield the cells of whole blocks, matcher by matcher."""
    sides = [
        (
            tuple((block.source, layer) for layer in block.source_layers),
            tuple((block.target, layer) for layer in block.target_layers),
        )
        for block in blocks
    ]
    for one in needs:
        for sources, targets in sides:
            yield CellGrid(needs=one, sources=sources, targets=targets)
