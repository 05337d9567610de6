"""Write the atlas of some sweeps: a page, and figures where asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchgrid.atlas.grids import SweepGrids
from stitchgrid.atlas.page import render_page
from stitchgrid.atlas.reading import read_sweep
from stitchgrid.catalog import Catalog
from stitchgrid.errors import InputError
from stitchgrid.paths import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasReport:
    """What was written."""

    num_sweeps: int
    num_panels: int  # heat maps
    num_missing: int  # cells that are pending or running
    num_failed: int  # cells that failed or are quarantined
    figures: tuple[Path, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.num_panels} heat maps", f"{self.num_missing} cells missing", f"{self.num_failed} failed"]
        return ", ".join([*parts, *([f"{len(self.figures)} figures"] if self.figures else [])])


def write_atlas(catalog: Catalog, sweeps: Sequence[str], out: Path, *, figures: Path | None = None) -> AtlasReport:
    """Write one self-contained page about the sweeps, and one PDF per matcher and metric into the folder `figures`.

    The same store gives the same bytes.

    Raises:
        QueryError: If there is no such sweep.
        InputError: If a file cannot be written.
    """
    for sweep in sweeps:
        catalog.require_sweep(sweep)
    grids, page = catalog.reading(lambda: _grids_and_page(catalog, dict.fromkeys(sweeps)))
    drawn: tuple[Path, ...] = ()
    try:
        write_whole(out, page)
        if figures is not None:
            # matplotlib takes long to import: only those who ask for figures wait for it.
            from stitchgrid.atlas.figures import draw_figures

            figures.mkdir(parents=True, exist_ok=True)
            drawn = tuple(path for grid in grids for path in draw_figures(grid, figures))
    except OSError as problem:
        where = problem.filename or out
        raise InputError(f"cannot write {where}: {problem.strerror}; name another place.") from problem
    return AtlasReport(
        num_sweeps=len(grids),
        num_panels=sum(grid.num_panels for grid in grids),
        num_missing=_count(grids, "pending", "running"),
        num_failed=_count(grids, "failed", "quarantined"),
        figures=drawn,
    )


def _grids_and_page(catalog: Catalog, sweeps: Iterable[str]) -> tuple[list[SweepGrids], bytes]:
    grids = [read_sweep(catalog, sweep) for sweep in sweeps]
    return grids, render_page(grids).encode()


def _count(grids: Sequence[SweepGrids], *statuses: str) -> int:
    return sum(grid.num_by_status.get(status, 0) for grid in grids for status in statuses)
