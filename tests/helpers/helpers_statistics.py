"""How each statistic is found by the engine, and by its definition in numpy from the activations of all its images.

Shape suffixes: N images, P rows of an image, D features of a source, E of a target, r directions kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from helpers_engine import matcher, ranked
from numpy.typing import NDArray
from torch import Tensor

from stitchgrid.engine.gram_matrices import GramGatherer
from stitchgrid.engine.groups import GroupedGatherer, Groups
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.low_rank import AxesGatherer
from stitchgrid.engine.ood import Gaussians
from stitchgrid.engine.pair_moments import MomentGatherer
from stitchgrid.engine.row_errors import RowErrors as RowErrorSums
from stitchgrid.engine.shuffles import ShuffledGatherer, shuffled_orders
from stitchgrid.engine.workspace import Workspace, batches, by_network
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.matchers.registry import default_metrics
from stitchgrid.moments import PairMoments, pair_moments
from stitchgrid.records import Cell
from stitchgrid.reference import rows as textbook
from stitchgrid.statistics.base import LayerKey, Statistic
from stitchgrid.statistics.gram import Grams
from stitchgrid.statistics.layers import PooledGaussian, RowAxes
from stitchgrid.statistics.moments import GroupedMoments, Moments, ShuffledMoments
from stitchgrid.statistics.passes import Pass, SourceReading, TargetReading
from stitchgrid.statistics.planner import evaluation_moments, evaluation_shuffles, gaussians, grams_of, row_axes
from stitchgrid.statistics.residuals import row_errors
from stitchgrid.statistics.stitched_network import Distances, Energies, RowErrorStatistic, TailStatistic, Training

Matrix = NDArray[np.float64]
Values = dict[str, Matrix]
FIELDS = ("mean_x_D", "mean_y_E", "xx_DD", "xy_DE", "yy_EE")
MAHALANOBIS = (*default_metrics("direct"), "ood_mahalanobis_auroc")
DIRECT, PWCCA = matcher("direct", metrics=MAHALANOBIS), matcher("pwcca")
PAIRS = [("conv", "conv_again"), ("conv", "view"), ("token", "conv"), ("view", "token")]


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a statistic is found by the engine, and by its definition from the activations of all its images."""

    specs: tuple[object, ...]
    statistic: Callable[[Workspace, list[Cell]], Statistic]
    found: Callable[[Workspace, list[Cell], Statistic], Values]
    wanted: Callable[[Workspace, list[Cell], Statistic, Mapping[LayerKey, Tensor]], Values]
    evidence: Mapping[str, int]
    tolerance: float = 1e-10


def taken(work: Workspace, statistic: Statistic, takers: list[object]) -> None:
    """Let the images pass to some accumulators, with no other layers than the statistic names."""
    for batch in batches(work, work.images.eval, by_network(statistic.layers), stop=statistic.num_images):
        for taker in takers:
            taker.take(batch)


def all_activations(work: Workspace, statistic: Statistic) -> Mapping[LayerKey, Tensor]:
    """Return the layers that a statistic names on all its images, from batches of the same size: these move them."""
    seen = batches(work, work.images.eval, by_network(statistic.layers), stop=statistic.num_images)
    parts = [batch.activations for batch in seen]
    return {key: torch.cat([part[key] for part in parts]).double() for key in statistic.layers}


def of_cells(cells: list[Cell], of: Callable[[Cell], list[PairMoments]]) -> Values:
    return {
        f"{cell.cell_id} {number} {name}": getattr(one, name).numpy()
        for cell in cells
        for number, one in enumerate(of(cell))
        for name in FIELDS
    }


def sides(work: Workspace, cell: Cell, activations: Mapping[LayerKey, Tensor]) -> tuple[Matrix, Matrix]:
    """Return the rows of both layers as a matcher compares them: (N, P, D), (N, P, E)."""
    source, target = work.layer(cell.source_key), work.layer(cell.target_key)
    a, b = activations[cell.source_key], activations[cell.target_key]
    x, y = textbook.rows(a, source), textbook.rows(b, target)
    if (rules := work.needs[cell.matcher].rules) is not None:
        x = textbook.lay(a, source, target, rules)
    elif work.space(cell).pools:
        x, y = (textbook.pooled(*one).unsqueeze(1) for one in ((x, source), (y, target)))
    return x.numpy(), y.numpy()


def explicit(x_NPD: Matrix, y_NPE: Matrix) -> Matrix:
    """Return moments by their definition, side by side in the order of `FIELDS`."""
    x, y = x_NPD.reshape(-1, x_NPD.shape[-1]), y_NPE.reshape(-1, y_NPE.shape[-1])
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    return [x.mean(0), y.mean(0), x_c.T @ x_c, x_c.T @ y_c, y_c.T @ y_c]


def explicit_of_cells(work, cells, activations, variants: Callable[[Matrix, Matrix], list[tuple[Matrix, Matrix]]]):
    return {
        f"{cell.cell_id} {number} {name}": matrix
        for cell in cells
        for number, both in enumerate(variants(*sides(work, cell, activations)))
        for name, matrix in zip(FIELDS, explicit(*both), strict=True)
    }


def found_moments(work, cells, statistic):
    gatherer = MomentGatherer(work, statistic)
    taken(work, statistic, [gatherer])
    return of_cells(cells, lambda cell: [gatherer.pair(work.space(cell), cell.source_key, cell.target_key)])


def found_groups(work, cells, statistic):
    gatherer = GroupedGatherer(work, statistic)
    taken(work, statistic, [gatherer])

    def of(cell: Cell) -> list[PairMoments]:
        pair = work.space(cell), cell.source_key, cell.target_key
        return [gatherer.pair(*pair), *gatherer.parts(*pair), *gatherer.without(*pair)]

    return of_cells(cells, of)


def in_groups(x: Matrix, y: Matrix) -> list[tuple[Matrix, Matrix]]:
    group_N = np.arange(len(x)) % 4
    parts = [group_N == group for group in range(4)]
    return [(x, y), *((x[one], y[one]) for one in parts), *((x[~one], y[~one]) for one in parts)]


def found_draws(work, cells, statistic):
    gatherer, whole = ShuffledGatherer(work, statistic), all_activations(work, statistic)
    taken(work, statistic, [gatherer])

    def of(cell: Cell) -> list[PairMoments]:
        x, y = (torch.from_numpy(one).flatten(0, 1) for one in sides(work, cell, whole))
        return gatherer.of(work.space(cell), cell.source_key, cell.target_key, pair_moments(x, y))

    return of_cells(cells, of)


def drawn(x: Matrix, y: Matrix) -> list[tuple[Matrix, Matrix]]:
    return [(x[order], y) for order in shuffled_orders(len(x), 3).numpy()]


def reductions(work: Workspace, statistic: Grams) -> dict[tuple[LayerKey, int], Reduction]:
    """Return a projection on any two directions, about any mean, for every layer that is reduced."""
    found = {}
    for key, layer in statistic.of_layers.items():
        for rank in layer.ranks - {None}:
            width, generator = work.layer(key).width, torch.Generator().manual_seed(sum(key))
            mixed = torch.randn(width, rank, generator=generator, dtype=torch.float64)
            mean_D = torch.randn(width, generator=generator, dtype=torch.float64)
            basis_Dr = torch.linalg.qr(mixed).Q
            found[key, rank] = Reduction(mean_D=mean_D, basis_Dr=basis_Dr, is_tied=False, is_short=False)
    return found


def found_grams(work, cells, statistic):
    gatherer = GramGatherer(work, statistic, statistic.layers, reductions(work, statistic))
    taken(work, statistic, [gatherer])
    return {
        f"{key} {name}": getattr(gram, name).numpy()
        for key, gram in gatherer.grams.items()
        for name in ("centred_NN", "mean_N", "spread_N")
    }


def wanted_grams(work, cells, statistic, activations):
    found, projections = {}, reductions(work, statistic)
    for key, layer in statistic.of_layers.items():
        for rank in layer.ranks:
            rows = textbook.rows(activations[key], work.layer(key)).numpy()
            if rank is not None:
                basis, mean = projections[key, rank].basis_Dr.numpy(), projections[key, rank].mean_D.numpy()
                rows = (rows - mean) @ basis @ basis.T + mean
            flat = rows.reshape(len(rows), -1)
            centred, own = flat - flat.mean(0), flat - flat.mean(1, keepdims=True)
            values = centred @ centred.T, flat.mean(1), (own**2).sum(1)
            names = ("centred_NN", "mean_N", "spread_N")
            found |= {f"{(key, rank)} {name}": value for name, value in zip(names, values, strict=True)}
    return found


def found_axes(work, cells, statistic):
    gatherer = AxesGatherer(work, [statistic])
    taken(work, statistic, [gatherer])
    found = gatherer.reduction(statistic.key, statistic.num_images, 2)
    return {"projection": (found.basis_Dr @ found.basis_Dr.mT).numpy(), "mean": found.mean_D.numpy()}


def wanted_axes(work, cells, statistic, activations):
    rows = textbook.rows(activations[statistic.key], work.layer(statistic.key)).numpy().reshape(-1, statistic.width)
    _, axes = np.linalg.eigh(np.cov(rows.T, bias=True))
    return {"projection": axes[:, -2:] @ axes[:, -2:].T, "mean": rows.mean(0)}


def found_gaussian(work, cells, statistic):
    gatherer = Gaussians(work, Ledger(work, cells, shard="s", generations={}), cells)
    gatherer.sums = {key: sums for key, sums in gatherer.sums.items() if key[0] == statistic.key}
    taken(work, statistic, [gatherer])
    found = gatherer.fitted((statistic.key, statistic.num_images))
    return {"mean": found.mean_E.numpy(), "inverse": (found.whitening_EE @ found.whitening_EE.mT).numpy()}


def wanted_gaussian(work, cells, statistic, activations):
    layer = work.layer(statistic.key)
    pooled = textbook.pooled(textbook.rows(activations[statistic.key], layer), layer).numpy()
    covariance = np.atleast_2d(np.cov(pooled.T, bias=True))
    shrunken = 0.99 * covariance + 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return {"mean": pooled.mean(0), "inverse": np.linalg.inv(shrunken)}


def stitched(b_NPE: Tensor) -> Tensor:
    """Return any T(A) for B."""
    return (0.8 * b_NPE.float() + 0.3).square()


def found_errors(work, cells, statistic):
    sums = RowErrorSums([0], groups=Groups(4), device=work.device)
    for batch in batches(work, work.images.eval, by_network(statistic.layers), stop=statistic.num_images):
        b_NPE = textbook.rows(batch.activations[statistic.key], work.layer(statistic.key))
        sums.begin(b_NPE, batch.start)
        sums.add(0, stitched(b_NPE), b_NPE)
    return {
        name: np.array([sums.metrics()[0][name], *sums.replicates()[0][name]]) for name in ("residual", "r2")
    }  # of all images, and without each group


def wanted_errors(work, cells, statistic, activations):
    b_NPE = textbook.rows(activations[statistic.key], work.layer(statistic.key))
    t, b = stitched(b_NPE).double().numpy(), b_NPE.numpy()
    group_N, found = np.arange(len(b)) % 4, {"residual": [], "r2": []}
    for kept in (group_N >= 0, *(group_N != group for group in range(4))):
        error = ((t[kept] - b[kept]) ** 2).sum()
        found["residual"].append(error / (b[kept] ** 2).sum())
        found["r2"].append(1 - error / ((b[kept] - b[kept].mean((0, 1))) ** 2).sum())
    return {name: np.array(values) for name, values in found.items()}


def only(of: Callable[..., Mapping[object, Statistic]]) -> Callable[[Workspace, list[Cell]], Statistic]:
    """Return a call for the only statistic that cells ask for."""

    def one(work: Workspace, cells: list[Cell]) -> Statistic:
        [found] = of(work.geometry, work.asked(cells)).values()
        return found

    return one


def first(of: Callable[..., tuple[Statistic, ...]]) -> Callable[[Workspace, list[Cell]], Statistic]:
    """Return a call for the statistic of one of the layers that cells name, the second."""
    return lambda work, cells: sorted(of(work.geometry, work.asked(cells)), key=lambda one: one.key)[1]


CASES = {
    Moments: Case(
        specs=(DIRECT, PWCCA),
        evidence={},
        statistic=only(evaluation_moments),
        found=found_moments,
        wanted=lambda work, cells, _, a: explicit_of_cells(work, cells, a, lambda x, y: [(x, y)]),
    ),
    GroupedMoments: Case(
        specs=(DIRECT, PWCCA),
        evidence={"groups": 4},
        statistic=only(evaluation_moments),
        found=found_groups,
        wanted=lambda work, cells, _, a: explicit_of_cells(work, cells, a, in_groups),
    ),
    ShuffledMoments: Case(
        specs=(DIRECT, PWCCA),
        evidence={"shuffles": 3},
        statistic=only(evaluation_shuffles),
        found=found_draws,
        wanted=lambda work, cells, _, a: explicit_of_cells(work, cells, a, drawn),
    ),
    Grams: Case(
        specs=(matcher("rsa"), ranked(matcher("cka"), 2)),
        evidence={},
        statistic=only(grams_of),
        found=found_grams,
        wanted=wanted_grams,
        tolerance=1e-5,  # products of float32
    ),
    RowAxes: Case(
        specs=(ranked(matcher("direct", samples=90), 2),),
        evidence={},
        statistic=first(row_axes),
        found=found_axes,
        wanted=wanted_axes,
    ),
    PooledGaussian: Case(
        specs=(matcher("direct", metrics=MAHALANOBIS, samples=90),),
        evidence={},
        statistic=first(gaussians),
        found=found_gaussian,
        wanted=wanted_gaussian,
        tolerance=1e-9,  # an inverse
    ),
    RowErrorStatistic: Case(
        specs=(DIRECT,),
        evidence={},
        statistic=first(row_errors),
        found=found_errors,
        wanted=wanted_errors,
        tolerance=1e-6,  # differences of float32
    ),
}
WITHOUT_VALUES = {Pass, SourceReading, TargetReading, TailStatistic, Training, Distances, Energies}
