"""The row of one value of a cell, or of its error."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one cell, or the error of a cell without values (metric None)."""

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
    seconds: float | None  # of work for this cell; the time of shared steps is divided among their cells
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
    #: Only rows of evidence for a metric (`matchers.evidence`) have the next four: ends of its 95 % interval,
    low: float | None = None
    high: float | None = None
    replicates: tuple[float, ...] | None = None  # its values without each group of images,
    null: tuple[float, ...] | None = None  # and its values with images shuffled
    generation: int | None = None  # of a cell that was computed again: only rows of the highest generation count
    libraries: str | None = None  # canonical JSON: versions of the libraries that decide what its networks compute
