"""What the fit images tell: closed-form maps, by one pass that serves every layer pair, and how low targets reach."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from stitchgrid.engine.gather import TargetRows, gatherers_by_count
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.stitched import Stitch
from stitchgrid.engine.workspace import Batch, LayerKey, Workspace, batches, by_network
from stitchgrid.matchers.alignment import layout_of
from stitchgrid.matchers.stitchers.direct import DirectFit, fit_direct
from stitchgrid.records import Cell


@dataclass(kw_only=True)
class ClosedForm:
    """What the fit images told."""

    stitches: list[Stitch] = field(default_factory=list)
    fits: dict[str, DirectFit] = field(default_factory=dict)  # by cell id
    minima: "Minima"


class Minima:
    """The lowest value of target representations on the first n fit images, for every n that a map is fitted on."""

    def __init__(self, work: Workspace, keys: Iterable[tuple[LayerKey, int]]):
        self.lowest = {key: torch.full((), torch.inf, device=work.device) for key in keys}

    def take(self, batch: Batch) -> None:
        """Look at the images of a batch."""
        for (layer, count), lowest in self.lowest.items():
            if layer in batch.activations and batch.count_below(count):
                seen = batch.activations[layer][: batch.count_below(count)]
                self.lowest[layer, count] = torch.minimum(lowest, seen.min().float())

    def open_after(self, num_seen: int) -> list[LayerKey]:
        """Return the layers that were never negative on the images seen, where more images belong to them."""
        return [layer for (layer, count), lowest in self.lowest.items() if count > num_seen and lowest >= 0]


def fit_closed_form(work: Workspace, ledger: Ledger, closed: Sequence[Cell], stitched: Sequence[Cell]) -> ClosedForm:
    """Fit every least-squares cell, and note how low the targets of all stitched cells reach on their fit images."""
    counts = {cell.cell_id: ledger[cell].num_fit or 0 for cell in stitched}
    found = ClosedForm(minima=Minima(work, {(cell.target_key, counts[cell.cell_id]): None for cell in stitched}))
    spaces = {
        cell.cell_id: TargetRows(layout=layout_of(work.layer(cell.target_key)), rules=work.rules(cell))
        for cell in closed
    }
    gatherers = gatherers_by_count(
        work,
        ((counts[cell.cell_id], spaces[cell.cell_id], cell.source_key, cell.target_key) for cell in closed),
    )
    num_seen = max(gatherers, default=0)
    wanted = by_network([*(cell.target_key for cell in stitched), *(cell.source_key for cell in closed)])
    for batch in batches(work, work.images.fit, wanted, stop=num_seen):
        found.minima.take(batch)
        for gatherer in gatherers.values():
            gatherer.take(batch)
    if targets := by_network(found.minima.open_after(num_seen)):
        for batch in batches(work, work.images.fit, targets, start=num_seen, stop=max(counts.values())):
            found.minima.take(batch)
    for cell in closed:
        with ledger.failing([cell]):
            gatherer = gatherers[counts[cell.cell_id]]
            moments = gatherer.pair(spaces[cell.cell_id], cell.source_key, cell.target_key)
            fit = fit_direct(moments, rcond=work.sweep.matchers[cell.matcher].values["rcond"])
            found.fits[cell.cell_id] = fit
            found.stitches.append(Stitch(cell=cell, map=fit.stitch, rules=spaces[cell.cell_id].rules))
    return found
