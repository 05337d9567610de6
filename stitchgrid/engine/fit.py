"""Fits closed-form maps in one pass over the fit images for all layer pairs, and finds the lowest values of targets."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stitchgrid.engine.fit_moments import FitMoments
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.low_rank import Reductions
from stitchgrid.engine.ood import Gaussians
from stitchgrid.engine.stitched import FittedStitch
from stitchgrid.engine.workspace import Batch, Workspace, batches, by_network
from stitchgrid.matchers.protocol import Fit
from stitchgrid.matchers.stitchers.affine import AffineMap, is_exact_enough
from stitchgrid.moments import PairMoments
from stitchgrid.records import Cell
from stitchgrid.statistics.base import LayerKey

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Fitted:
    """What was found on the fit images."""

    stitches: list[FittedStitch] = field(default_factory=list)
    fits: dict[str, Fit] = field(default_factory=dict)  # by cell id
    shuffled: dict[str, list[AffineMap]] = field(default_factory=dict)  # by cell id, a map of each draw
    starts: dict[str, AffineMap] = field(default_factory=dict)  # of maps that are trained from least squares
    #: Ids of cells whose maps are so exact and determined that rows T(A) can replace moments of evaluation rows.
    by_rows: set[str] = field(default_factory=set)
    minima: "Minima"
    reductions: Reductions
    gaussians: Gaussians


class Minima:
    """The lowest value of each target layer on the fit images of the maps into it, if a metric asks for it.

    Maps into one layer that have the same number of fit images share one value.
    """

    def __init__(self, work: Workspace, ledger: Ledger, cells: Iterable[Cell]):
        self.ledger = ledger
        self.none = torch.full((), torch.inf, device=work.device)
        asking = (cell for cell in cells if "negative_mass" in work.sweep.matchers[cell.matcher].metrics)
        self.lowest = {self._key(cell): self.none for cell in asking}

    def _key(self, cell: Cell) -> tuple[LayerKey, int]:
        return cell.target_key, self.ledger[cell].num_fit or 0

    def __getitem__(self, cell: Cell) -> Tensor:
        return self.lowest.get(self._key(cell), self.none)

    @property
    def layers(self) -> list[LayerKey]:
        """The layers looked at."""
        return [layer for layer, _ in self.lowest]

    def take(self, batch: Batch) -> None:
        """Look at the images of a batch."""
        for (layer, count), lowest in self.lowest.items():
            if layer in batch.activations and batch.count_below(count):
                seen = batch.activations[layer][: batch.count_below(count)]
                self.lowest[layer, count] = torch.minimum(lowest, seen.min().float())

    def unfinished(self, num_seen: int) -> list[tuple[LayerKey, int]]:
        """Return layers without a negative value so far that need more images, each with its number of images."""
        asked = {key: lowest for key, lowest in self.lowest.items() if key[1] > num_seen}
        told = torch.stack(list(asked.values())).tolist() if asked else []  # one transfer for all
        return [key for key, lowest in zip(asked, told, strict=True) if lowest >= 0]


def fit_closed_form(
    work: Workspace, ledger: Ledger, closed: Sequence[Cell], stitched: Sequence[Cell], indices: Sequence[Cell] = ()
) -> Fitted:
    """Fit the maps of all `closed` cells, and find the lowest fit values of the targets of all `stitched` cells.

    Also find the projections of sources of low rank, of `stitched` cells and of `indices`.
    """
    reductions = Reductions(work, ledger, [*stitched, *indices])
    axes = reductions.axes
    found = Fitted(
        minima=Minima(work, ledger, stitched),
        reductions=reductions,
        gaussians=Gaussians(work, ledger, stitched),
    )
    starting = [cell for cell in stitched if work.sweep.matchers[cell.matcher].values.get("init") == "direct"]
    closed = [*closed, *starting]
    moments = FitMoments(work, ledger, closed)
    num_seen = max(moments.num_images, axes.num_images)
    pairs = (key for cell in closed for key in (cell.source_key, cell.target_key))
    wanted = by_network([*found.minima.layers, *found.gaussians.layers, *axes.layers, *pairs])
    for batch in batches(work, work.images.fit, wanted, stop=num_seen):
        found.minima.take(batch)
        found.gaussians.take(batch)
        axes.take(batch)
        moments.take(batch)
    _look_further(work, found, num_seen)
    reductions.find()
    moments.find_axes()
    exact: dict[str, Tensor] = {}
    for cell in ledger.sound(closed):
        with ledger.failing([cell]):
            of_pair, folds = moments.of(cell, reductions)
            fit = moments.kinds[cell.matcher].fit(of_pair, folds)
            if cell in starting:
                found.starts[cell.cell_id] = fit.map
                continue
            found.fits[cell.cell_id] = fit
            if fit.span is None or fit.span.is_whole:
                exact[cell.cell_id] = is_exact_enough(fit.map, of_pair)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s", _conditioning(work, cell, of_pair))
            found.stitches.append(FittedStitch(cell=cell, map=fit.map, rules=work.rules(cell)))
            kind, draws = moments.kinds[cell.matcher], moments.shuffled(cell, reductions)
            found.shuffled[cell.cell_id] = [kind.refit(fit, draw) for draw in draws]
    told = torch.stack(list(exact.values())).tolist() if exact else []
    found.by_rows = {cell_id for cell_id, is_exact in zip(exact, told, strict=True) if is_exact}
    _note_fits(ledger, found)
    return found


def _note_fits(ledger: Ledger, found: Fitted) -> None:
    """Note what fits come with: the metrics that only their kind has, and flags."""
    for cell_id, name, value in _read(found.fits, lambda fit: fit.values):
        ledger.entries[cell_id].values[name] = value
    for cell_id, name, is_set in _read(found.fits, lambda fit: fit.doubts):
        ledger.entries[cell_id].flags |= {name} if is_set else set()


def _read(fits: Mapping[str, Fit], what: Callable[[Fit], Mapping[str, Tensor]]) -> Iterator[tuple[str, str, float]]:
    """Yield numbers of fits by cell and name, read from the device in one transfer."""
    numbers = {(cell_id, name): value for cell_id, fit in fits.items() for name, value in what(fit).items()}
    told = torch.stack([value.double() for value in numbers.values()]).tolist() if numbers else []
    for (cell_id, name), value in zip(numbers, told, strict=True):
        yield cell_id, name, value


def _look_further(work: Workspace, found: Fitted, num_seen: int) -> None:
    """Pass more fit images for the statistics that read targets alone, until none of them needs more."""
    stop_gaussians = max((count for _, count in found.gaussians.unfinished(num_seen)), default=0)
    if left := [*found.minima.unfinished(num_seen), *found.gaussians.unfinished(num_seen)]:
        layers = by_network(layer for layer, _ in left)
        for batch in batches(work, work.images.fit, layers, start=num_seen, stop=max(count for _, count in left)):
            found.minima.take(batch)
            found.gaussians.take(batch)
            if batch.start + len(batch.labels_N) >= stop_gaussians and not found.minima.unfinished(batch.start):
                break


def _conditioning(work: Workspace, cell: Cell, moments: PairMoments) -> str:
    """Return how well the fit rows determine a map, in words."""
    source, target = work.layer(cell.source_key), work.layer(cell.target_key)
    values_K, _ = moments.x.axes
    condition = float((values_K[0] / values_K[-1]).sqrt()) if len(values_K) else float("nan")
    names = [work.sweep.networks[position].name for position in (cell.source, cell.target)]
    return (
        f"{work.sweep.matchers[cell.matcher].kind} {names[0]} {source.name} -> {names[1]} {target.name}: "
        f"{moments.num_rows} rows, rank {len(values_K)} of {source.width}, condition number {condition:.3g}"
    )
