"""The numbers of a figure as a table: exactly the drawn ones, with their layers, seeds and state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stitchgrid.atlas.figures.best import BestSource
from stitchgrid.atlas.figures.heatmap import Pairs
from stitchgrid.atlas.figures.scatter import MisleadingPairs, is_drawn
from stitchgrid.atlas.figures.scores import Averaged, Score
from stitchgrid.atlas.grids import NetworkInfo, SweepGrids

Columns = Mapping[str, Any]


def numbers_of_heatmap(grids: SweepGrids, score: Score, pairs: Pairs) -> pa.Table:
    """Return one row for each square."""
    parts = [
        _table(
            _layers(grids.networks[source], grids.networks[target]),
            {
                "value": found.values_ST,
                "num_seeds": found.num_seeds_ST,
                "is_best": found.panel.best(score.higher_is_similar),
                "state": _states(found),
            },
        )
        for (source, target), found in sorted(pairs.items())
    ]
    return pa.concat_tables(parts)


def numbers_of_profile(
    score: Score,
    found: Averaged,
    twin: Averaged | None,
    source: NetworkInfo,
    target: NetworkInfo,
    layers: Sequence[int],
) -> pa.Table:
    """Return one row for each point of the panels; `layers` are positions of the target layers with a panel."""
    columns = {
        "value": found.values_ST,
        "low": found.low_ST,
        "high": found.high_ST,
        "untrained": np.full(found.values_ST.shape, np.nan) if twin is None else twin.values_ST,
        "shuffled_low": found.null_low_ST,
        "shuffled_high": found.null_high_ST,
        "num_seeds": found.num_seeds_ST,
        "is_best": found.panel.best(score.higher_is_similar),
        "state": _states(found),
    }
    chosen = list(layers)
    table = {name: values_ST[:, chosen].T for name, values_ST in columns.items()}
    names = {name: values_ST[:, chosen].T for name, values_ST in _layers(source, target).items()}
    return _table(names, table)


def numbers_of_best(found: Sequence[BestSource]) -> pa.Table:
    """Return one row for each answer."""
    return pa.Table.from_pylist(
        [
            {
                "matcher": one.label,
                "seed": one.seed,
                "target_layer": one.target_layer,
                "target_depth": one.target_depth,
                "source_layer": one.source_layer,
                "source_depth": one.source_depth,
                "candidates": [name for name, _ in one.candidates],
                "low_depth": min((depth for _, depth in one.candidates), default=one.source_depth),
                "high_depth": max((depth for _, depth in one.candidates), default=one.source_depth),
                "margin": one.margin,
                "verdict": one.verdict,
            }
            for one in found
        ]
    )


def numbers_of_scatter(
    scores: tuple[Score, Score],
    found: tuple[Averaged, Averaged],
    judged: MisleadingPairs,
    source: NetworkInfo,
    target: NetworkInfo,
) -> pa.Table:
    """Return one row for each dot."""
    names = [f"{score.label} {score.metric}" for score in scores]
    if names[0] == names[1]:
        names[1] += " (y)"
    values = {name: one.values_ST for name, one in zip(names, found, strict=True)}
    table = _table(_layers(source, target), {**values, "misleading": judged.misleading_ST})
    return table.filter(pa.array(is_drawn(found).ravel()))


def _layers(source: NetworkInfo, target: NetworkInfo) -> dict[str, Any]:
    """Return names and depths of the source and target layer of every square, as arrays (S, T)."""
    shape = len(source.layers), len(target.layers)
    sides = {"source": (source, (-1, 1)), "target": (target, (1, -1))}
    columns: dict[str, Any] = {}
    for side, (network, turned) in sides.items():
        columns[f"{side}_model"] = np.full(shape, network.name, dtype=object)
        for name in ("name", "depth"):
            values = np.array([getattr(layer, name) for layer in network.layers], dtype=object)
            column = {"name": "layer", "depth": "depth"}[name]
            columns[f"{side}_{column}"] = np.broadcast_to(values.reshape(turned), shape)
    return columns


def _states(found: Averaged) -> Any:
    """Return the state of each square, (S, T): `diverged` if it cannot be a best source because training diverged."""
    diverged_ST = found.panel.diverged_ST
    return found.states_ST if diverged_ST is None else np.where(diverged_ST, "diverged", found.states_ST)


def _table(names: Columns, values: Columns) -> pa.Table:
    """Return matrices of one shape as columns; NaN becomes NULL."""
    columns = {name: pa.array(np.asarray(one).ravel().tolist()) for name, one in names.items()}
    for name, one in values.items():
        flat = np.asarray(one).ravel()
        columns[name] = pa.array(flat, from_pandas=True) if flat.dtype.kind == "f" else pa.array(flat.tolist())
    return pa.table(columns)
