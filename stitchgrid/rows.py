"""Makes the rows of cells: the identity that every row of a cell carries, with or without a value."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from stitchgrid import __version__
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import Cell, Row, Shard, Sweep


@dataclass(slots=True, kw_only=True)
class Remarks:
    """Properties that all values of a cell share."""

    flags: set[str] = field(default_factory=set)
    alignment: str | None = None
    num_fit: int | None = None  # images
    num_eval: int | None = None
    num_rows: int | None = None  # of features
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence in a row, which tells how far a value can be trusted; None for what was not computed."""

    low: float | None = None
    high: float | None = None
    replicates: tuple[float, ...] | None = None
    null: tuple[float, ...] | None = None


NOTHING = Evidence()
LONGEST_ERROR = 20_000  # characters that are kept


def without_middle(error: str) -> str:
    """Return the text of an error as rows keep it: without its middle if it has more than `LONGEST_ERROR` letters."""
    if len(error) <= LONGEST_ERROR:
        return error
    half = LONGEST_ERROR // 2
    return f"{error[:half]}\n... {len(error) - 2 * half:,} characters left out ...\n{error[-half:]}"


def now() -> str:
    """Return the current time as rows carry it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def make_row(
    sweep: Sweep,
    cell: Cell,
    remarks: Remarks,
    *,
    shard: str,
    device: str,
    created_at: str,
    status: str = "done",
    metric: str | None = None,
    value: float | None = None,
    error: str | None = None,
    evidence: Evidence = NOTHING,
    generation: int | None = None,
    libraries: str | None = None,
) -> Row:
    """Return one row of a cell; a value of None without an error means that the value is undefined."""
    spec, f, g = sweep.matchers[cell.matcher], sweep.networks[cell.source], sweep.networks[cell.target]
    flags = remarks.flags | ({"undefined"} if value is None and error is None else set())
    flags |= {"untrained"} if f.is_untrained or g.is_untrained else set()
    return Row(
        cell_id=cell.cell_id,
        status=status,
        metric=metric,
        value=value,
        higher_is_similar=None if metric is None else MATCHERS[spec.kind].metric(metric).higher_is_similar,
        error=None if error is None else without_middle(error),
        source_network=f.network_id,
        source_layer=f.layers[cell.source_layer].node,
        target_network=g.network_id,
        target_layer=g.layers[cell.target_layer].node,
        matcher=spec.kind,
        params=spec.params,
        seed=spec.seed,
        num_fit=remarks.num_fit,
        num_eval=remarks.num_eval,
        num_rows=remarks.num_rows,
        seconds=remarks.seconds,
        device=device,
        precision=sweep.precision,
        alignment=remarks.alignment,
        flags=tuple(sorted(flags)),
        source_weights=f.weights_digest,
        target_weights=g.weights_digest,
        data=sweep.matcher_data[cell.matcher],
        shard=shard,
        version=__version__,
        created_at=created_at,
        low=evidence.low,
        high=evidence.high,
        replicates=evidence.replicates,
        null=evidence.null,
        generation=generation or None,
        libraries=libraries,
    )


def lost_rows(sweep: Sweep, shard: Shard, *, status: str, reason: str) -> Iterable[Row]:
    """Yield an error row for every wanted cell of a shard whose worker could not write it: failed or quarantined."""
    created_at, generations = now(), dict(shard.generations)
    for cell in sweep.cells(shard):
        yield make_row(
            sweep,
            cell,
            Remarks(),
            shard=shard.unit_id,
            device="unknown",
            created_at=created_at,
            status=status,
            error=reason,
            generation=generations.get(cell.cell_id),
        )
