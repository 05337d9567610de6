"""Computes the rows of one shard: fit, train, evaluate; every network sees every image once per phase."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from stitchgrid.engine.evaluate import Evaluation
from stitchgrid.engine.fit import Fitted, fit_closed_form
from stitchgrid.engine.ledger import Ledger, is_process_error
from stitchgrid.engine.stitched import FittedStitch
from stitchgrid.engine.train import train_maps
from stitchgrid.engine.training_images import SourceReader, source_reader
from stitchgrid.engine.workspace import Workspace, by_network, forward
from stitchgrid.errors import InputError, type_and_message
from stitchgrid.matchers.layouts import alignment_name, index_shaping, is_subsampled, is_upsampled, layout_of
from stitchgrid.matchers.ood import is_underdetermined
from stitchgrid.matchers.protocol import About, GramIndex
from stitchgrid.matchers.registry import MATCHERS, asks_ood, implementation, is_a, proves_halves
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.models.fingerprint import difference, fingerprint_of_noise, tolerance_of
from stitchgrid.models.proof import relative_error, tolerance_for
from stitchgrid.moments import NOT_FINITE
from stitchgrid.precision import running_in
from stitchgrid.records import Cell, Row, Shard
from stitchgrid.statistics.needs import images_of

_log = logging.getLogger(__name__)

NUM_CHECKED = 4  # images on which a shard checks its networks' halves again


def run_shard(shard: Shard, work: Workspace) -> list[Row]:
    """Return the rows of every wanted cell of a shard; a cell that fails is a row with its error.

    If an error stops the whole shard, such as a network that cannot be run, its network pairs are tried one by one.

    Raises:
        torch.OutOfMemoryError: If the device's memory runs out, or another error that says so; nothing is kept.
        torch.AcceleratorError: If the device is lost, or another error that says so; nothing is kept.
    """
    cells = list(work.sweep.cells(shard))
    ledger = Ledger(work, cells, shard=shard.unit_id, generations=dict(shard.generations))
    for cell in cells:
        describe(work, ledger, cell)
    cells = [cell for cell in cells if "inapplicable" not in ledger[cell].flags]
    check_halves(work, ledger, cells)
    if len(shard.blocks) == 1:
        with ledger.failing(cells):
            _compute(work, ledger, cells, is_pair=True)
        check_unchanged(work, ledger, cells)
        return ledger.rows()
    try:
        _compute(work, ledger, cells, is_pair=False)
    except Exception as problem:
        if is_process_error(problem):
            raise
        _log.warning("%s; the network pairs of this shard are tried one by one", type_and_message(problem))
        return [row for block in shard.blocks for row in run_shard(replace(shard, blocks=(block,)), work)]
    check_unchanged(work, ledger, cells)
    return ledger.rows()


def check_halves(work: Workspace, ledger: Ledger, cells: Sequence[Cell]) -> None:
    """Check on the first images that the halves of each network give its own scores, at each layer of these cells.

    Networks were proven before; if one does not compute here what it did then, its cells fail.
    """
    for network, layers, own in _by_network(cells):
        if not proves_halves(work.sweep, work.sweep.networks[network]):
            continue
        with ledger.failing(own), work.network(network).uncompiled():
            last = min(NUM_CHECKED, work.sweep.num_eval)
            pixels = work.images.eval.batch(torch.arange(last, device=work.images.eval.labels.device))
            activations, scores = forward(work, pixels, {network: layers}, {network})
            errors = []
            for layer in layers:
                with torch.no_grad(), work.precision():
                    came = work.tail((network, layer))(activations[network, layer].float())
                errors.append(relative_error(scores[network].float(), came.float()).max())
            tolerance = tolerance_for(work.network(network), work.sweep.precision)
            for layer, error in zip(layers, torch.stack(errors).tolist(), strict=True):  # one transfer for all
                if error > tolerance:  # activations that are inf or NaN fail by themselves
                    raise InputError(
                        f"the halves of {work.sweep.networks[network].name} at {work.layer((network, layer)).name} do "
                        "not give the scores of the whole network here, as they did when it was proven."
                    )


def check_unchanged(work: Workspace, ledger: Ledger, cells: Sequence[Cell]) -> None:
    """Check that networks still compute what they did when the sweep was planned; some keep state between calls."""
    for network, _, own in _by_network(cells):
        record = work.sweep.networks[network]
        if record.fingerprint is None or not ledger.sound(own):
            continue
        with ledger.failing(own), work.network(network).uncompiled(), running_in("fp32", work.device):
            nodes = [layer.node for layer in record.layers]
            found = fingerprint_of_noise(work.network(network), nodes, device=work.device)
            if told := difference(record.fingerprint, found, tolerance=tolerance_of(work.network(network))):
                raise InputError(
                    f"{record.name} no longer computes what it did before these cells: {told}. Its forward keeps "
                    "something from one call for another; in eval mode it must not."
                )


def _by_network(cells: Sequence[Cell]) -> list[tuple[int, list[int], list[Cell]]]:
    """Return each network of some cells with its layers and its cells among them."""
    keys = by_network(key for cell in cells for key in (cell.source_key, cell.target_key))
    return [
        (network, layers, [cell for cell in cells if network in (cell.source, cell.target)])
        for network, layers in keys.items()
    ]


def _compute(work: Workspace, ledger: Ledger, cells: list[Cell], *, is_pair: bool) -> None:
    """Note the values of all cells; with `is_pair`, an error in training fails only the cells of that matcher."""
    cells = ledger.sound(cells)
    fitted = fit_maps(work, ledger, cells, is_pair=is_pair)
    with ledger.timed(cells):
        Evaluation(work, ledger, cells, fitted).run()


def fit_maps(work: Workspace, ledger: Ledger, cells: Sequence[Cell], *, is_pair: bool) -> Fitted:
    """Return the maps of all stitchers among some cells, fitted or trained; `is_pair` as in `_compute`."""
    cells = ledger.sound(cells)
    stitched = [cell for cell in cells if _matcher(work, cell).family == "stitcher"]
    closed = [cell for cell in stitched if not _matcher(work, cell).is_trained]
    ranked = [cell for cell in cells if _matcher(work, cell).family == "index" and work.rank(cell) is not None]
    with ledger.timed([*stitched, *ranked]):
        fitted = fit_closed_form(work, ledger, closed, stitched, ranked)
    reader: SourceReader | None = None  # matchers that read the same sources share what it keeps
    for position in sorted({cell.matcher for cell in stitched} - {cell.matcher for cell in closed}):
        trained = ledger.sound(cell for cell in stitched if cell.matcher == position)
        with ledger.failing(trained) if is_pair else nullcontext(), ledger.timed(trained):
            if trained:
                reader = source_reader(work, ledger, trained, fitted.reductions, like=reader)
                fitted.stitches += _train(work, ledger, trained, reader, fitted.starts)
    return fitted


def fit_alone(work: Workspace, cell: Cell) -> FittedStitch:
    """Return the map of one cell, fitted or trained as in its shard.

    Raises:
        InputError: If it cannot be fitted; the message says why.
    """
    ledger = Ledger(work, [cell], shard=cell.cell_id, generations={})
    describe(work, ledger, cell)
    reason = implementation(work.sweep.matchers[cell.matcher]).why_not(
        work.layer(cell.source_key), work.layer(cell.target_key)
    )
    if reason is not None:
        raise InputError(f"{reason}.")
    check_halves(work, ledger, [cell])
    fitted = fit_maps(work, ledger, [cell], is_pair=True)
    if (error := ledger[cell].error) is not None:
        raise InputError(f"the map cannot be fitted: {error}")
    [stitch] = fitted.stitches
    return stitch


def _matcher(work: Workspace, cell: Cell) -> About:
    return MATCHERS[work.sweep.matchers[cell.matcher].kind]


def _train(
    work: Workspace, ledger: Ledger, cells: list[Cell], reader: SourceReader, starts: Mapping[str, AffineMap]
) -> list[FittedStitch]:
    spec = work.sweep.matchers[cells[0].matcher]
    stitches = train_maps(work, ledger, cells, reader, starts)
    finite = [torch.stack([torch.isfinite(one).all() for one in s.map.tensors()]).all() for s in stitches]
    for stitch, is_finite in zip(stitches, torch.stack(finite).tolist() if finite else [], strict=True):
        if not is_finite:
            ledger[stitch.cell].error = (
                f"the map of {spec.kind} is not finite after {spec.values['epochs']} epochs "
                f"at lr {spec.values['lr']:g}; lower lr, or, where activations are inf or NaN, {NOT_FINITE}."
            )
    return stitches


def describe(work: Workspace, ledger: Ledger, cell: Cell) -> None:
    """Note how many images and rows a cell's values are made of, and how shapes are made to agree.

    If the kind does not apply to these two layers, flag the cell: its values are undefined.
    """
    sweep, entry, matcher = work.sweep, ledger[cell], _matcher(work, cell)
    source, target = work.layer(cell.source_key), work.layer(cell.target_key)
    num_fit, num_eval = images_of(sweep, cell.matcher)
    entry.num_eval = entry.num_rows = num_eval
    if implementation(sweep.matchers[cell.matcher]).why_not(source, target):
        entry.flags.add("inapplicable")
        return
    if sweep.matchers[cell.matcher].rank is not None:
        entry.num_fit = num_fit
        if work.rank(cell) is None:
            entry.flags.add("full_rank")
    if matcher.family == "stitcher":
        entry.num_fit = num_fit
        entry.num_rows = num_eval * layout_of(target).num_rows
        rules = work.rules(cell)
        with ledger.failing([cell]):
            entry.alignment = alignment_name(source, target, rules)
        if is_subsampled(source, target, rules):
            entry.flags.add("subsampled")
        if is_upsampled(source, target):
            entry.flags.add("upsampled")
        if matcher.is_trained and work.halvings:
            entry.flags.add("micro_batched")
        if asks_ood(sweep.matchers[cell.matcher], "mahalanobis") and is_underdetermined(num_fit, target.width):
            entry.flags.add("ood_underdetermined")
        if sweep.networks[cell.target].head.has_scores and not sweep.networks[cell.target].is_labelled:
            entry.flags.add("unlabelled")
    else:
        entry.alignment = (
            "flattened" if is_a(sweep.matchers[cell.matcher], GramIndex) else index_shaping(source, target)
        )
