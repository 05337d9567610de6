"""One shard from start to rows: fit, train, evaluate, every image seen by every network once per phase."""

import torch

from stitchgrid.engine.evaluate import Evaluation
from stitchgrid.engine.fit import fit_closed_form
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.stitched import Stitch
from stitchgrid.engine.train import train_task_loss
from stitchgrid.engine.workspace import Workspace
from stitchgrid.matchers.alignment import alignment_name, index_shaping, is_subsampled, is_upsampled, layout_of
from stitchgrid.matchers.catalogue import MATCHERS, Matcher
from stitchgrid.plan import images_of
from stitchgrid.records import Cell, Row, Shard


def run_shard(shard: Shard, work: Workspace) -> list[Row]:
    """Return the rows of every wanted cell of a shard; a cell that fails is a row with its error.

    Raises:
        torch.OutOfMemoryError: If the device's memory does not suffice, or another error that says so; nothing is kept.
    """
    cells = list(work.sweep.cells(shard))
    ledger = Ledger(work, cells, shard=shard.unit_id)
    for cell in cells:
        _describe(work, ledger, cell)
    with ledger.failing(cells):
        stitched = [cell for cell in cells if _matcher(work, cell).family == "stitcher"]
        closed = [cell for cell in stitched if not _matcher(work, cell).trained]
        with ledger.timed(stitched):
            fitted = fit_closed_form(work, ledger, closed, stitched)
        for position in sorted({cell.matcher for cell in stitched} - {cell.matcher for cell in closed}):
            trained = [cell for cell in stitched if cell.matcher == position]
            with ledger.failing(trained), ledger.timed(trained):
                fitted.stitches += _train(work, ledger, trained)
        with ledger.timed(cells):
            Evaluation(work, ledger, cells, fitted).run()
    return ledger.rows()


def _matcher(work: Workspace, cell: Cell) -> Matcher:
    return MATCHERS[work.sweep.matchers[cell.matcher].kind]


def _train(work: Workspace, ledger: Ledger, cells: list[Cell]) -> list[Stitch]:
    spec = work.sweep.matchers[cells[0].matcher]
    stitches = train_task_loss(work, ledger, cells)
    for stitch in stitches:
        if not (torch.isfinite(stitch.map.weight_DE).all() and torch.isfinite(stitch.map.bias_E).all()):
            ledger[stitch.cell].error = (
                f"{spec.kind} diverged: the map is not finite after {spec.values['epochs']} epochs "
                f"at lr {spec.values['lr']:g}; lower lr."
            )
    return stitches


def _describe(work: Workspace, ledger: Ledger, cell: Cell) -> None:
    """Note how many images and rows a cell's values are made of, and how shapes are made to agree."""
    sweep, entry, matcher = work.sweep, ledger[cell], _matcher(work, cell)
    source, target = work.layer(cell.source_key), work.layer(cell.target_key)
    num_fit, num_eval = images_of(sweep, cell.matcher)
    entry.num_eval = entry.num_rows = num_eval
    if matcher.family == "stitcher":
        entry.num_fit = num_fit
        entry.num_rows = num_eval * layout_of(target).num_rows
        rules = work.rules(cell)
        entry.alignment = alignment_name(source, target, rules)
        if is_subsampled(source, target, rules):
            entry.flags.add("subsampled")
        if is_upsampled(source, target):
            entry.flags.add("upsampled")
        if matcher.trained and work.halvings:
            entry.flags.add("micro_batched")
        if not sweep.networks[cell.target].is_labelled:
            entry.flags.add("unlabelled")
    else:
        entry.alignment = "flattened" if matcher.gram else index_shaping(source, target)
