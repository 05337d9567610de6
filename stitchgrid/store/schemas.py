"""The columns of every Parquet file of a store; those of a part are the fields of `records.Row`."""

from collections.abc import Container, Iterable, Mapping
from functools import lru_cache

import pyarrow as pa

TEXT = pa.string()
TEXTS = pa.list_(pa.string())
NUMBERS = pa.list_(pa.float32())

# Of rows that hold the evidence for a metric (`matchers.evidence`): its 95 % interval, its values without each group of
# images, and with images shuffled.
EVIDENCE = (("low", pa.float64()), ("high", pa.float64()), ("replicates", NUMBERS), ("null", NUMBERS))

# The computation of its cell that a row comes from, if the cell was computed again: the highest number counts, and NULL
# is 0. And the versions of the libraries that computed the row.
ORIGIN = (("generation", pa.int64()), ("libraries", TEXT))

PART = pa.schema(
    [
        pa.field("cell_id", TEXT, nullable=False),
        pa.field("status", TEXT, nullable=False),
        ("metric", TEXT),
        ("value", pa.float64()),
        ("higher_is_similar", pa.bool_()),
        ("error", TEXT),
        ("source_network", TEXT),
        ("source_layer", TEXT),
        ("target_network", TEXT),
        ("target_layer", TEXT),
        ("matcher", TEXT),
        ("params", TEXT),
        ("seed", pa.int64()),
        ("num_fit", pa.int64()),
        ("num_eval", pa.int64()),
        ("num_rows", pa.int64()),
        ("seconds", pa.float64()),
        ("device", TEXT),
        ("precision", TEXT),
        ("alignment", TEXT),
        ("flags", TEXTS),
        ("source_weights", TEXT),
        ("target_weights", TEXT),
        ("data", TEXT),
        ("shard", TEXT),
        ("version", TEXT),
        ("created_at", TEXT),
        *EVIDENCE,
        *ORIGIN,
    ],
    metadata={"stitchgrid.part": "3"},
)
VERSION_KEY = b"stitchgrid.part"
LONGEST_VERSION = 4  # digits
# Columns that came after version 1 -> the version of PART that added them: NULL in files of earlier versions. Any other
# missing column is damage; a column of a later version, which this version does not know, is ignored.
ADDED: dict[str, int] = {name: 2 for name, _ in EVIDENCE} | {name: 3 for name, _ in ORIGIN}

CELLS = pa.schema(
    [
        ("cell_id", TEXT),
        ("source_model", TEXT),
        ("source_layer", TEXT),
        ("source_index", pa.int32()),
        ("source_depth", pa.float64()),
        ("target_model", TEXT),
        ("target_layer", TEXT),
        ("target_index", pa.int32()),
        ("target_depth", pa.float64()),
        ("matcher", TEXT),
        ("params", TEXT),
        ("seed", pa.int64()),
        ("metrics", TEXTS),
        ("shard", TEXT),
    ]
)

MODELS = pa.schema(
    [
        ("model", TEXT),
        ("entry", TEXT),
        ("architecture", TEXT),
        ("args", TEXT),
        ("weights_digest", TEXT),
        ("network_id", TEXT),
        ("preprocess", TEXT),
        ("num_parameters", pa.int64()),
        ("num_classes", pa.int64()),
        ("num_cuts", pa.int64()),
        ("flops", pa.float64()),
        ("accuracy", pa.float64()),
        ("loss", pa.float64()),
        ("num_eval", pa.int64()),
        ("head", TEXT),
        ("is_untrained", pa.bool_()),
        ("chance", pa.float64()),
        ("is_at_chance", pa.bool_()),
        ("problem", TEXT),
        ("remarks", TEXTS),
    ]
)

LAYERS = pa.schema(
    [
        ("model", TEXT),
        ("layer", TEXT),
        ("node", TEXT),
        ("layer_index", pa.int32()),
        ("depth", pa.float64()),
        ("kind", TEXT),
        ("shape", pa.list_(pa.int64())),
        ("width", pa.int64()),
        ("num_prefix", pa.int64()),
        ("flops", pa.float64()),
    ]
)

PROBES = pa.schema(
    [
        ("model", TEXT),
        ("layer", TEXT),
        ("layer_index", pa.int32()),
        ("layer_depth", pa.float64()),
        ("rank", pa.int64()),
        ("accuracy", pa.float64()),
        ("loss", pa.float64()),
        ("fit_accuracy", pa.float64()),
        ("C", pa.float64()),
        ("max_iter", pa.int64()),
        ("num_fit", pa.int64()),
        ("num_eval", pa.int64()),
        ("num_iter", pa.int64()),
        ("converged", pa.bool_()),
        ("flags", TEXTS),
        ("error", TEXT),
    ]
)

# The extracts that a snapshot keeps for a sweep: the rows of its cells, and its cells with their status.
_UNNAMED = {"cell_id", "status", "error", "source_network", "target_network", "shard", *dict(ORIGIN)}
_MEASURED = [name for name in PART.names if name not in {*_UNNAMED, *CELLS.names}]
_NAMED = [name for name in CELLS.names if name not in ("metrics", "shard")]

RESULTS = pa.schema(
    [("sweep", TEXT), *(CELLS.field(name) for name in _NAMED), *(PART.field(name) for name in _MEASURED)]
)

CELL_STATES = pa.schema(
    [
        ("sweep", TEXT),
        *CELLS,
        ("stored", TEXTS),  # metrics
        ("last_at", TEXT),  # when the last of them was stored
        ("failed_at", TEXT),  # the latest error, even if a value was stored later
        ("failed_as", TEXT),  # failed or quarantined
        ("failed_with", TEXT),
        ("status", TEXT),  # done, failed, quarantined or pending
    ]
)

# Columns in which no reader expects NULL, in any table.
REQUIRED = frozenset(
    {
        *("cell_id", "status", "sweep", "matcher", "params", "metrics", "stored", "flags", "shard", "data"),
        *("source_network", "source_weights", "source_model", "source_layer", "source_index"),
        *("target_network", "target_weights", "target_model", "target_layer", "target_index"),
        *("device", "precision", "version", "created_at", "model", "layer", "layer_index"),
    }
)
# Columns of names, digests and words, in any table: readers draw, sort and compare them.
NAMES = frozenset(
    {
        *("cell_id", "status", "sweep", "matcher", "metric", "metrics", "stored", "flags", "shard", "data", "kind"),
        *("model", "entry", "layer", "node", "weights_digest", "network_id", "device", "precision", "version"),
        *(f"{side}_{what}" for side in ("source", "target") for what in ("network", "weights", "model", "layer")),
        *("created_at", "last_at", "failed_at", "failed_as"),
    }
)
IDS = pa.schema([("cell_id", TEXT)])

SWEEP_TABLES = {"cells": CELLS, "models": MODELS, "layers": LAYERS}
OPTIONAL_TABLES = {"probes": PROBES}  # of a sweep: not written if empty
ALL_TABLES = SWEEP_TABLES | OPTIONAL_TABLES
# Columns that came after the first version of a sweep's tables: NULL where a file lacks them.
ADDED_TO_TABLES = {
    "models": frozenset({"head", "is_untrained", "chance", "is_at_chance", "problem", "remarks"}),
}


def with_nulls(table: pa.Table, schema: pa.Schema, columns: Iterable[str]) -> pa.Table:
    """Return a table with these columns of a schema, all NULL, after its own columns."""
    for name in columns:
        table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    return table


def lost_columns(wanted: Iterable[str], there: Container[str], metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """Return the columns that a file of rows lacks although its version has them."""
    told = (metadata or {}).get(VERSION_KEY, b"1")
    version = int(told) if told.isdigit() and len(told) < LONGEST_VERSION else 1
    return sorted(name for name in wanted if name not in there and ADDED.get(name, 0) <= version)


@lru_cache(maxsize=64)
def text_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns whose few distinct values are worth a dictionary in memory."""
    return tuple(field.name for field in schema if field.type == TEXT and field.name != "cell_id")


def as_dictionaries(table: pa.Table) -> pa.Table:
    """Return a table of rows with its text columns as dictionaries."""
    for name in text_columns(table.schema):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].dictionary_encode())
    return table


def no_rows(columns: Iterable[str]) -> pa.Table:
    """Return an empty table with these columns, text columns as dictionaries."""
    return _no_rows(tuple(columns))


@lru_cache(maxsize=64)
def _no_rows(columns: tuple[str, ...]) -> pa.Table:
    return as_dictionaries(pa.schema([PART.field(name) for name in columns]).empty_table())


def with_sweep(sweep: str, table: pa.Table) -> pa.Table:
    """Return a table with the sweep's name as its first column."""
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), table.num_rows), [sweep])
    return table.add_column(0, "sweep", pa.chunked_array([column]))
