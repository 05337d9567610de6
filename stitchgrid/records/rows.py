"""The row of one value, or error, of a cell."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one cell, or (metric None) the error of a cell that has none."""

    cell_id: str
    status: str  # done | failed | quarantined
    metric: str | None
    value: float | None  # None: undefined, see flags; never 0 for missing
    higher_is_similar: bool | None
    error: str | None
    source_network: str  # digests: names belong to a sweep
    source_layer: str
    target_network: str
    target_layer: str
    matcher: str
    params: str
    seed: int | None
    num_fit: int | None  # images
    num_eval: int | None
    num_rows: int | None  # rows of features the value was computed from
    seconds: float | None  # of work for this cell, shared steps divided among their cells
    device: str
    precision: str
    alignment: str | None
    flags: tuple[str, ...]
    source_weights: str
    target_weights: str
    data: str
    shard: str
    version: str
    created_at: str  # ISO 8601, UTC
    low: float | None = None  # of rows of evidence for a metric (`matchers.evidence`): its 95 % interval,
    high: float | None = None
    replicates: tuple[float, ...] | None = None  # its values without each group of images,
    null: tuple[float, ...] | None = None  # and with images shuffled
    generation: int | None = None  # of the cell, where it was computed again: rows of the highest count alone
    libraries: str | None = None  # canonical JSON: versions of those that decide what its networks compute
