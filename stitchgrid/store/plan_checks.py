"""Checks of the tables of a plan before anything relies on them: names, positions, parameters and numbers.

Readers look up layers by name and squares by position: entries that are missing, repeated or out of range are damage.
Measured numbers that are not finite count as undefined (NULL): a network that overflows may have written them.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.duplicates import Numbers, as_numbers, encoded
from stitchgrid.store.limits import KB, MOST
from stitchgrid.store.schemas import TEXT

LONGEST_PARAMS = 10 * KB
DEEPEST_PARAMS = 4  # objects and lists in one another
LARGEST_PARAM = 1e300
MOST_SHOWN = 80  # characters of what is wrong
LONGEST_SHAPE = 32  # sides of a layer
LARGEST = MOST  # of a side of a layer, and of any count
COUNTS = ("generation", "num_fit", "num_eval", "num_rows", "num_parameters", "num_classes", "num_cuts", "num_iter")
DEPTHS = ("depth", "layer_depth", "source_depth", "target_depth")
SHARES = ("accuracy", "fit_accuracy", "chance")  # of images
MEASURED = (*SHARES, "loss", "flops")
SIDES = ("source", "target")


def check_values(table: pa.Table) -> None:
    """Check single columns of any table of a store.

    Raises:
        DamagedFileError: If parameters are not a JSON object of sane size, or a count, a depth, a shape, a number of
            seconds or an interval is invalid.
    """
    names = frozenset(table.column_names)
    if "params" in names:
        _check_params(table["params"])
    for name in COUNTS:
        if name in names:
            _check_range(name, table[name], 0, LARGEST)
    for name in DEPTHS:
        if name in names:
            _check_range(name, table[name], 0, 1)
            if table[name].null_count:
                raise DamagedFileError(f"has no {name} in {table[name].null_count} rows")
    if "shape" in names:
        _check_shapes(table["shape"])
    if "seconds" in names:
        _check_range("seconds", table["seconds"], 0, sys.float_info.max)
    if {"low", "high"} <= names:
        _check_intervals(table["low"], table["high"])


def _check_range(name: str, column: pa.ChunkedArray, low: float, high: float) -> None:
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        raise DamagedFileError(f"has a {name} that is no number")
    found = pc.min_max(column).as_py()
    if found["min"] is not None and not low <= found["min"] <= found["max"] <= high:
        raise DamagedFileError(f"has a {name} of {found['min']} to {found['max']}; wanted {low} to {high}")


def _check_intervals(low: pa.ChunkedArray, high: pa.ChunkedArray) -> None:
    """Check that each interval has either two ends in order or none."""
    if pc.any(pc.not_equal(pc.is_null(low), pc.is_null(high))).as_py():
        raise DamagedFileError("has an interval of one end")
    for name, column in (("low", low), ("high", high)):
        _check_range(name, column, -sys.float_info.max, sys.float_info.max)
    if pc.any(pc.less(high, low)).as_py():
        raise DamagedFileError("has an interval whose low end is above its high end")


def _check_shapes(column: pa.ChunkedArray) -> None:
    if column.null_count:
        raise DamagedFileError(f"has no shape in {column.null_count} rows")
    longest = pc.max(pc.list_value_length(column)).as_py() or 0
    if longest > LONGEST_SHAPE:
        raise DamagedFileError(f"has a shape of {longest} sides; none has more than {LONGEST_SHAPE}")
    sides = pc.list_flatten(column)
    if sides.null_count:
        raise DamagedFileError("has a shape of which a side is NULL")
    _check_range("shape", sides, 0, LARGEST)


def _check_params(column: pa.ChunkedArray) -> None:
    for text in encoded(column).dictionary.drop_null().to_pylist():
        if wrong := params_problem(text):
            raise DamagedFileError(f"has params {_cut(text)} ({wrong})")


def params_problem(text: str) -> str:
    """Return what is wrong with the parameters of a matcher, "" if nothing is.

    >>> params_problem('{"k":10}'), params_problem("[]")
    ('', 'not a JSON object')
    """
    if len(text) > LONGEST_PARAMS:
        return f"{len(text)} characters; none have more than {LONGEST_PARAMS}"
    try:
        value = from_json(text, allow_inf_nan=False)
        json.loads(text)  # readers use this parser, which accepts fewer digits
    except (ValueError, RecursionError):
        return "not readable as JSON"
    if not isinstance(value, dict):
        return "not a JSON object"
    rank = value.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        return "the rank is no number of axes"
    return _value_problem(value, DEEPEST_PARAMS)


def _value_problem(value: Any, depth: int) -> str:
    if isinstance(value, dict | list):
        if not depth:
            return f"nested more than {DEEPEST_PARAMS} deep"
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, (_value_problem(one, depth - 1) for one in inner)), "")
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= LARGEST_PARAM):
        return "a number is too large"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number is too large"
    return ""


def _cut(text: str) -> str:
    return repr(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}...")


def with_undefined(table: pa.Table) -> pa.Table:
    """Return a table of a plan with NULL for every measured number that is not finite.

    Raises:
        DamagedFileError: If a share of images is not between 0 and 1.
    """
    for name in MEASURED:
        if name not in table.column_names:
            continue
        column = table[name]
        is_number = pc.fill_null(pc.is_finite(column), True)
        if not pc.all(is_number).as_py():
            column = pc.if_else(is_number, column, pa.scalar(None, column.type))
            table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
        if name in SHARES:
            _check_range(name, column, 0, 1)
    return table


def check_plan(tables: Mapping[str, pa.Table]) -> None:
    """Check that the given tables of a plan fit one another.

    Raises:
        DamagedTableError: With the first table that does not fit.
    """
    models, layers = tables.get("models"), tables.get("layers")
    if models is not None and len(pc.unique(models["model"])) < models.num_rows:
        raise DamagedTableError("models", "has the name of a network twice")
    if layers is None:
        return
    if models is not None and not pc.all(pc.is_in(_texts(layers["model"]), _texts(models["model"]))).as_py():
        raise DamagedTableError("layers", "has layers of a network that is not in models.parquet")
    try:
        places = LayerPositions(layers)
    except DamagedFileError as problem:
        raise DamagedTableError("layers", str(problem)) from problem
    if "cells" in tables:
        try:
            places.check_cells(tables["cells"])
        except DamagedFileError as problem:
            raise DamagedTableError("cells", str(problem)) from problem
    if "probes" in tables and not places.have(tables["probes"], "model", "layer", "layer_index"):
        raise DamagedTableError("probes", "has a probe of a layer that is not in layers.parquet, or not at its place")


class DamagedTableError(DamagedFileError):
    """A table of a plan that contradicts the other tables."""

    def __init__(self, table: str, problem: str):
        self.file = f"{table}.parquet"
        self.problem = problem
        super().__init__(f"{self.file} {problem}")


class LayerPositions:
    """Which layers the networks of a sweep have, and the position of each; looked up a million at a time."""

    def __init__(self, layers: pa.Table):
        self._models, self._layers = pc.unique(_texts(layers["model"])), pc.unique(_texts(layers["layer"]))
        model = self._positions(layers["model"], self._models)
        keys = self._keys(layers, "model", "layer")
        order = np.argsort(keys)
        self._sorted, self._index = keys[order], as_numbers(layers["layer_index"])[order]
        if (self._sorted[1:] == self._sorted[:-1]).any():
            raise DamagedFileError("has the name of a layer twice")
        found = as_numbers(layers["layer_index"])
        first = np.concatenate([[0], np.bincount(model, minlength=len(self._models)).cumsum()])
        by_place = np.lexsort((found, model))
        if not np.array_equal(found[by_place], np.arange(len(found)) - first[model[by_place]]):
            raise DamagedFileError("has layers of a network that are not numbered 0, 1, 2, ...")

    def check_cells(self, cells: pa.Table) -> None:
        """Check the layers that cells, or results, name.

        Raises:
            DamagedFileError: If a network does not have a layer, or has it at another position.
        """
        for side in SIDES:
            if not self.have(cells, f"{side}_model", f"{side}_layer", f"{side}_index"):
                raise DamagedFileError(f"has cells whose {side} is not in layers.parquet, or not at its place")

    def have(self, table: pa.Table, model: str, layer: str, index: str) -> bool:
        """Return whether all layers that a table names in these columns are there, at these positions."""
        keys = self._keys(table, model, layer)
        if not len(keys):
            return True
        if not len(self._sorted):
            return False
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return bool(np.all((self._sorted[at] == keys) & (self._index[at] == as_numbers(table[index]))))

    def _keys(self, table: pa.Table, model: str, layer: str) -> Numbers:
        """Return a number for each named layer; -1 where there is no such network or layer."""
        models, layers = (
            self._positions(table[name], known) for name, known in ((model, self._models), (layer, self._layers))
        )
        found: Numbers = np.where((models < 0) | (layers < 0), -1, models * len(self._layers) + layers)
        return found

    @staticmethod
    def _positions(column: pa.ChunkedArray, known: pa.Array) -> Numbers:
        names = encoded(column)
        found = as_numbers(pc.fill_null(pc.index_in(names.dictionary, value_set=known), -1)).astype(np.int64)
        position: Numbers = found[as_numbers(names.indices)] if len(names) else np.zeros(0, np.int64)
        return position


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Return a column of texts as they are."""
    return encoded(column).cast(TEXT)
