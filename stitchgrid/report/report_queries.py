"""Queries of a report's sections: rows about a sweep, labels of matchers, and what the job has planned."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from stitchgrid.catalog import Catalog, load_question
from stitchgrid.catalog.labels import labels_of, parameters
from stitchgrid.records import canonical

Row = dict[str, Any]

VARIANTS = "select distinct matcher, params, samples from scores where sweep = $sweep order by all"


class Asker:
    """Asks a catalog about one sweep."""

    def __init__(self, catalog: Catalog, sweep: str):
        self.catalog, self.sweep = catalog, sweep

    def rows(self, query: str, **given: str) -> list[Row]:
        """Return the answer to a shipped query, each row with its matcher's `label`."""
        found: list[Row] = self.catalog.ask(load_question(query), {"sweep": self.sweep, **given}).to_pylist()
        return self.told(found) if found and "params" in found[0] else found

    def told(self, rows: Iterable[Row]) -> list[Row]:
        """Return rows that have a matcher and its parameters, with `label` and `rank` (of the source) added."""
        return [row | self._told(row) for row in rows]

    def sql(self, sql: str) -> list[Row]:
        """Return the rows of a statement about `$sweep`."""
        found: list[Row] = self.catalog.query(sql, {"sweep": self.sweep}).to_pylist()
        return found

    def plans(self, condition: str) -> bool:
        """Return whether the sweep has cells for which a condition on the view `cells` holds."""
        return bool(self.sql(f"select 1 as one from cells where sweep = $sweep and ({condition}) limit 1"))

    def has_probes(self, condition: str = "true") -> bool:
        """Return whether the sweep has probes for which a condition on the view `probes` holds."""
        return bool(self.sql(f"select 1 as one from probes where sweep = $sweep and ({condition}) limit 1"))

    def missing(self, *wants: tuple[bool, str]) -> str:
        """Return what the job lacks for an answer, or the command that computes it if the job lacks nothing.

        `wants` are all things that the answer needs: whether the job has it, and its name.
        """
        lacking = [text for is_there, text in wants if not is_there]
        if lacking:
            return " and ".join(lacking)
        return f"stitchgrid resume {self.sweep}"

    def _told(self, row: Row) -> Row:
        """Return the rank of a row's source, None for an unreduced one, and the label of its matcher.

        The label is the matcher's kind, with what distinguishes it from others of that kind in the sweep.
        """
        rank = parameters(row["params"]).get("rank") or row.get("rank")
        entry = row["matcher"], _without_rank(row["params"]), row.get("samples")
        label = self._labels[rank is not None].get(entry, row["matcher"])
        return {"label": label if rank is None or "rank" in row else f"{label}, rank {rank}", "rank": rank}

    @cached_property
    def _labels(self) -> dict[bool, dict[tuple[str, str, int | None], str]]:
        """Return the labels of matchers of whole sources (False) and of sources of reduced rank (True)."""
        variants = self.sql(VARIANTS)
        found = {}
        for reduced in (False, True):
            rows = [row for row in variants if ("rank" in parameters(row["params"])) == reduced]
            entries = {(row["matcher"], _without_rank(row["params"]), row["samples"]) for row in rows}
            found[reduced] = labels_of(sorted(entries, key=lambda one: (*one[:2], one[2] or 0)))  # NULL: not stored
        return found


def _without_rank(params: str) -> str:
    """Return parameters as the query `paper_sensitivity` has them: without the rank of the source."""
    return canonical({key: value for key, value in parameters(params).items() if key != "rank"})


def by_label(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each matcher, in order of appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    return found
