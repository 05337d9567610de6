"""The values and errors of every cell of a shard so far, and its rows at the end."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch

from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import breaks_worker, is_out_of_memory, type_and_message
from stitchgrid.matchers.evidence import evidence_name, jackknife_interval, metric_of, wilson_interval
from stitchgrid.matchers.registry import stored_metrics_of
from stitchgrid.records import Cell, Row
from stitchgrid.rows import NOTHING, Evidence, Remarks, make_row, now

_log = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 2_000  # of an error that was raised; those of whole units may have `rows.LONGEST_ERROR`
SHARES = ("accuracy", "agreement")


@dataclass(slots=True, kw_only=True)
class Entry(Remarks):
    """One cell's values, or its error, and the remarks on them."""

    cell: Cell
    values: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)  # by the names of its rows
    error: str | None = None

    def note_replicates(self, found: Mapping[str, Sequence[float]], *, has_shares: bool = False) -> None:
        """Note values without each group of images, by metric, each with the interval that they give.

        `has_shares`: accuracy and agreement are shares of images, each of which is either right or wrong.
        """
        for metric, replicates in found.items():
            value = self.values.get(metric, math.nan)
            interval = jackknife_interval(value, replicates)
            if interval is not None and has_shares and metric in SHARES:
                interval = wilson_interval(value, self.num_eval or 0)
            if interval is not None:
                name = evidence_name(metric, "groups", len(replicates))
                self.evidence[name] = Evidence(low=interval[0], high=interval[1], replicates=tuple(replicates))

    def note_null(self, found: Mapping[str, Sequence[float]]) -> None:
        """Note values of shuffled images, by metric."""
        for metric, null in found.items():
            if all(map(math.isfinite, null)):
                self.evidence[evidence_name(metric, "shuffles", len(null))] = Evidence(null=tuple(null))


def is_process_error(problem: Exception) -> bool:
    """Return whether an error is the process's, not a cell's: it ran out of memory, or lost its device."""
    return is_out_of_memory(problem) or breaks_worker(problem)


class Ledger:
    """The cells of one shard: values are noted as phases end, errors as they happen."""

    def __init__(self, work: Workspace, cells: Iterable[Cell], *, shard: str, generations: Mapping[str, int]):
        self.work, self.shard, self.generations = work, shard, generations
        self.entries = {cell.cell_id: Entry(cell=cell, seconds=0.0) for cell in cells}

    def __getitem__(self, cell: Cell) -> Entry:
        return self.entries[cell.cell_id]

    def sound(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that have not failed."""
        return [cell for cell in cells if self[cell].error is None]

    @contextmanager
    def timed(self, cells: Sequence[Cell]) -> Iterator[None]:
        """Divide the time spent inside among the cells it was spent for."""
        start = perf_counter()
        yield
        if self.work.device.type == "cuda":  # the GPU may still be computing
            torch.cuda.synchronize(self.work.device)
        share = (perf_counter() - start) / max(1, len(cells))
        for cell in cells:
            self[cell].seconds = (self[cell].seconds or 0.0) + share

    @contextmanager
    def failing(self, cells: Iterable[Cell]) -> Iterator[None]:
        """Turn an exception inside into the error of these cells, so that it costs no others.

        An error of the process itself passes on.
        """
        try:
            yield
        except Exception as problem:
            if is_process_error(problem):
                raise
            failed = self.sound(cells)
            _log.info("%d cells of shard %s failed", len(failed), self.shard, exc_info=True)
            for cell in failed:
                self[cell].error = type_and_message(problem)[:MAX_ERROR_CHARACTERS]

    def rows(self) -> list[Row]:
        """Return one row per metric for each cell that has values, and one row for each other cell."""
        created_at = now()
        return [row for entry in self.entries.values() for row in self._rows_of(entry, created_at)]

    def _rows_of(self, entry: Entry, created_at: str) -> Iterator[Row]:
        failed = entry.error is not None
        for metric in [None] if failed else stored_metrics_of(self.work.sweep, entry.cell):
            value = None if metric is None or "inapplicable" in entry.flags else entry.values[metric_of(metric)]
            yield make_row(
                self.work.sweep,
                entry.cell,
                entry,
                shard=self.shard,
                device=self.work.device.type,
                created_at=created_at,
                status="failed" if failed else "done",
                metric=metric,
                value=value if value is not None and math.isfinite(value) else None,
                error=entry.error,
                evidence=NOTHING if metric is None else entry.evidence.get(metric, NOTHING),
                generation=self.generations.get(entry.cell.cell_id),
                libraries=self.work.libraries(entry.cell.source, entry.cell.target),
            )
