"""Write the atlas of some sweeps: a page, and figures if wanted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stitchgrid.atlas.figures.options import FigureOptions, select
from stitchgrid.atlas.grids import SweepGrids
from stitchgrid.atlas.page import render_page
from stitchgrid.atlas.reading import read_sweep
from stitchgrid.catalog import Catalog
from stitchgrid.errors import InputError
from stitchgrid.paths import real_folder, write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasReport:
    """The result of writing an atlas."""

    num_sweeps: int
    num_panels: int  # heat maps
    num_missing: int  # cells that are pending or running
    num_failed: int  # cells that failed or are quarantined
    figures: tuple[Path, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.num_panels} heat maps", f"{self.num_missing} cells missing", f"{self.num_failed} failed"]
        num = len(self.figures)
        return ", ".join([*parts, *([f"{num} figure{'' if num == 1 else 's'}"] if num else [])])


def write_atlas(
    catalog: Catalog,
    sweeps: Sequence[str],
    out: Path,
    *,
    figures: Path | None = None,
    options: FigureOptions | None = None,
) -> AtlasReport:
    """Write one self-contained page about the sweeps, and figures by `options` into the folder `figures`.

    The same store gives the same bytes.

    Raises:
        QueryError: If there is no such sweep.
        InputError: If a file cannot be written, or no sweep has the score or the pair that the options name.
    """
    for sweep in sweeps:
        catalog.require_sweep(sweep)
    grids, page = catalog.reading(lambda: _grids_and_page(catalog, dict.fromkeys(sweeps)))
    options = options or FigureOptions()
    if figures is not None:
        select(grids, options)  # so that an error is raised before anything is written
    try:
        write_whole(out, page)
    except OSError as problem:
        where = problem.filename or out
        raise InputError(f"cannot write {where}: {problem.strerror}; name another place.") from problem
    drawn = () if figures is None else draw_figures(grids, figures, options)
    return AtlasReport(
        num_sweeps=len(grids),
        num_panels=sum(grid.num_panels for grid in grids),
        num_missing=_count(grids, "pending", "running"),
        num_failed=_count(grids, "failed", "quarantined"),
        figures=drawn,
    )


def draw_figures(grids: Sequence[SweepGrids], folder: Path, options: FigureOptions) -> tuple[Path, ...]:
    """Write figures of these sweeps into a folder, each with its caption (.txt) and its numbers (.csv) beside it.

    Returns:
        The path of each figure, in the first of its formats.

    Raises:
        InputError: If a file cannot be written, or no sweep has the score or the pair that the options name.
    """
    # Importing matplotlib takes long, so it is imported only when figures are drawn.
    from stitchgrid.atlas.figures.writing import write_figures

    selections = select(grids, options)
    try:
        place = real_folder(folder)
        return tuple(folder / path.name for path in write_figures(selections, options, place))
    except OSError as problem:
        where = problem.filename or folder
        raise InputError(f"cannot write {where}: {problem.strerror}; name another place.") from problem


def _grids_and_page(catalog: Catalog, sweeps: Iterable[str]) -> tuple[list[SweepGrids], bytes]:
    grids = [read_sweep(catalog, sweep) for sweep in sweeps]
    return grids, render_page(grids).encode()


def _count(grids: Sequence[SweepGrids], *statuses: str) -> int:
    return sum(grid.num_by_status.get(status, 0) for grid in grids for status in statuses)
