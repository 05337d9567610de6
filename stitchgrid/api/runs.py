"""A store and its sweeps in Python: tables, answers, matrices, maps and the atlas."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stitchgrid.api.answer_list import Answers
from stitchgrid.api.tables import Matrix, Table
from stitchgrid.catalog import Catalog, load_question
from stitchgrid.catalog.answers import ORDER, find_wanted, read_answers
from stitchgrid.catalog.findings import findings, remarks
from stitchgrid.catalog.progress import SweepProgress, read_progress
from stitchgrid.errors import InputError, QueryError, nearest
from stitchgrid.live_networks import Live
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.store import Store

if TYPE_CHECKING:
    from stitchgrid.api.stitches import NetworkStitch
    from stitchgrid.driver import Summary

CELL = """
select c.source_layer, c.target_layer, c.params, c.seed, m.value, m.higher_is_similar
from cells as c left join measurements as m on m.cell_id = c.cell_id and m.metric = $metric
where c.sweep = $sweep and c.source_model = $source and c.target_model = $target and c.matcher = $matcher
order by c.source_index, c.target_index
"""


def open(store: str | os.PathLike[str] = "./grid") -> "Grid":
    """Open a store: a folder, or s3://bucket/prefix.

    Raises:
        StoreError: If there is no store, or it cannot be read.
    """
    return Grid(Store.open(os.fspath(store)))


class Grid(Mapping[str, "Run"]):
    """The sweeps of a store, by name."""

    def __init__(self, store: Store):
        self._store = store

    def __getitem__(self, sweep: str) -> "Run":
        names = self._store.sweep_names()
        if sweep not in names:
            raise KeyError(f"no sweep {sweep!r} in the store {self._store.uri}; {nearest(sweep, names)}")
        return Run(self._store, sweep)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.sweep_names())

    def __len__(self) -> int:
        return len(self._store.sweep_names())

    def __repr__(self) -> str:
        return f"Grid({self._store.uri!r}: {', '.join(self) or 'no sweep yet'})"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._store.uri)}</p><ul>{''.join(f'<li>{escape(name)}</li>' for name in self)}</ul>"

    def sql(self, statement: str) -> Table:
        """Return the rows of one SELECT over the views of all sweeps.

        Raises:
            QueryError: If it cannot be run.
        """
        with Catalog(self._store) as catalog:
            return Table(catalog.query(statement))


class Run:
    """One sweep of a store. The first question reads the store; after `refresh`, the next question reads it again.

    Attributes:
        sweep: Its name.
        summary: What the launch did that returned this run; None if the run comes from `stitchgrid.open`.
    """

    def __init__(self, store: Store, sweep: str, *, live: Live | None = None, summary: "Summary | None" = None):
        self._store, self.sweep, self._live = store, sweep, live
        self.summary = summary

    def __repr__(self) -> str:
        status = self.status()
        return f"Run({self.sweep!r} in {self._store.uri}: {status.counts.get('done', 0)} of {status.num_cells} cells)"

    def _repr_html_(self) -> str:
        tables = [f"<p>{escape(repr(self))}</p>", self.networks._repr_html_()]
        return "".join([*tables, self.failures._repr_html_()] if len(self.failures) else tables)

    @cached_property
    def _catalog(self) -> Catalog:
        return Catalog(self._store)

    @property
    def store(self) -> str:
        """Folder or URI of the store: an argument for `stitchgrid.open`."""
        return self._store.uri

    def refresh(self) -> None:
        """Make the next question read the store again."""
        if "_catalog" in vars(self):
            self._catalog.close()
            del self._catalog

    # Tables -----------------------------------------------------------------------------------------------------------

    def results(self) -> Table:
        """Return all values, one row per metric and cell; the columns are those of the view `results`."""
        return self._of("results")

    @property
    def networks(self) -> Table:
        """The networks of the sweep, with their accuracy on the evaluation images; the columns of the view `models`."""
        return self._of("models")

    @property
    def layers(self) -> Table:
        """The layers of the sweep, with their shapes; the columns are those of the view `layers`."""
        return self._of("layers")

    @property
    def failures(self) -> Table:
        """Cells that have no value, with the reason."""
        return self.sql("select * from cells where status in ('failed', 'quarantined') and sweep = $sweep")

    def answers(self) -> Table:
        """Return the best source layer for every target layer, source network and matcher, with its evidence."""
        first = "target_model, target_layer, source_model, source_layer, matcher, verdict, metric, value"
        rest = f"* exclude (sweep, {first})"
        return self.sql(f"select {first}, {rest} from answers where sweep = $sweep order by {ORDER}")

    def _of(self, view: str) -> Table:
        return self.sql(f"select * exclude (sweep) from {view} where sweep = $sweep")

    def sql(self, statement: str, **params: Any) -> Table:
        """Return the rows of one SELECT over the store's views; `$sweep` in it is this sweep's name.

        Args:
            statement: The SELECT.
            params: Values of further `$name`s.

        Raises:
            QueryError: If it cannot be run.
        """
        given = {"sweep": self.sweep} if "$sweep" in statement else {}
        return Table(self._catalog.query(statement, {**given, **params}))

    def query(self, name: str, **params: Any) -> Table:
        """Return the rows of one of the query files that ship with stitchgrid, for this sweep only.

        Args:
            name: A name that `stitchgrid query` lists, or a path of a `.sql` file.
            params: Parameters of the query.

        Raises:
            QueryError: If there is no such query, or a parameter is not valid.
        """
        asked = load_question(name)
        given = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in params.items()}
        if any(one.name == "sweep" for one in asked.params):
            given.setdefault("sweep", self.sweep)
        return Table(self._catalog.ask(asked, given))

    # Answers ----------------------------------------------------------------------------------------------------------

    def answer(
        self,
        target: str | None = None,
        layer: str | None = None,
        source: str | None = None,
        matcher: str | None = None,
    ) -> Answers:
        """Return which layer of a source matches each layer of a target best, and how sure that is.

        Args:
            target: Name of the target network; None: all.
            layer: One of its layers; None: all.
            source: Name of the source network; None: all.
            matcher: A kind; None: all.

        Returns:
            A list of answers; if it has exactly one, `.best`, `.margin`, `.verdict` and so on are those of that answer.

        Raises:
            InputError: If there is no such network, layer or matcher.
        """
        if layer is not None and target is None:
            raise InputError("`layer` is a layer of the target; name the target, too.")
        catalog = self._catalog
        wanted = find_wanted(
            catalog,
            (self.sweep,),
            target=target if layer is None else f"{target}:{layer}",
            source=source,
            kinds=() if matcher is None else (matcher,),
        )
        return Answers(read_answers(catalog, self.sweep, wanted))

    def matrix(self, source: str, target: str, matcher: str, metric: str | None = None) -> Matrix:
        """Return one metric for all layers of a source with all layers of a target.

        Args:
            source: Name of the source network.
            target: Name of the target network.
            matcher: A kind.
            metric: One of its metrics; by default the one that ranks layers. Values of several seeds are averaged.

        Raises:
            QueryError: If there is no such network or matcher, or the sweep has the matcher with several parameters.
        """
        if matcher not in MATCHERS:
            raise QueryError(f"there is no matcher {matcher!r}; {nearest(matcher, MATCHERS)}.")
        metric = metric or MATCHERS[matcher].score
        given = {"sweep": self.sweep, "source": source, "target": target, "matcher": matcher, "metric": metric}
        rows = self._catalog.query(CELL, given).to_pylist()
        if not rows:
            known = sorted({row["model"] for row in self.networks})
            raise QueryError(
                f"sweep {self.sweep!r} has no cells of {matcher} from {source!r} into {target!r}; its networks are "
                f"{', '.join(known)}."
            )
        if len(several := sorted({row["params"] for row in rows})) > 1:
            raise QueryError(
                f"the sweep has {matcher} with several parameters ({'; '.join(several)}); choose by .sql()."
            )
        names = [list(dict.fromkeys(row[f"{side}_layer"] for row in rows)) for side in ("source", "target")]
        found: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            value = np.nan if row["value"] is None else row["value"]
            found.setdefault((row["source_layer"], row["target_layer"]), []).append(value)
        values = np.array([[np.mean(found.get((f, g), [np.nan])) for g in names[1]] for f in names[0]])
        higher = next((row["higher_is_similar"] for row in rows if row["value"] is not None), None)
        title = metric if metric.startswith(matcher) else f"{matcher} {metric}"
        return Matrix(values, *names, title=f"{title}, {source} into {target}", higher_is_similar=higher)

    def stitch(
        self,
        source: str,
        source_layer: str,
        target: str,
        target_layer: str,
        matcher: str,
        *,
        seed: int | None = None,
        device: str | None = None,
        **params: Any,
    ) -> "NetworkStitch":
        """Return the map of one cell, fitted again from the job: trained kinds are trained again.

        Args:
            source: Name of the network in which the stitch begins.
            source_layer: Its layer.
            target: Name of the network in which it ends.
            target_layer: Its layer.
            matcher: A kind of stitcher.
            seed: Seed of a trained kind, if the job has several.
            device: "cpu" or "cuda"; None: as the job says.
            params: Parameters that choose one of several matchers of the kind.

        Raises:
            InputError: If there is no such cell, networks or images have changed since the launch, or nothing can be
                fitted.
        """
        from stitchgrid.api.stitches import fit_again

        begin, end = (source, source_layer), (target, target_layer)
        return fit_again(
            self._store, self.sweep, self._live, begin, end, matcher, seed=seed, device=device, params=params
        )

    # The rest ---------------------------------------------------------------------------------------------------------

    def status(self) -> SweepProgress:
        """Return how far the sweep is, also while a launch works on it."""
        [found] = read_progress(self._store, self.sweep)
        return found

    def findings(self) -> list[list[str]]:
        """Return the remarkable findings as lists of lines: first on the networks, then on the values."""
        return [lines for read in (remarks, findings) if (lines := read(self._catalog, self.sweep))]

    def atlas(self) -> "Atlas":
        """Return the atlas page, with all heat maps; a notebook shows it."""
        return Atlas(self._catalog, self.sweep)


class Atlas:
    """The atlas page of one sweep."""

    def __init__(self, catalog: Catalog, sweep: str):
        from stitchgrid.atlas.page import render_page
        from stitchgrid.atlas.reading import read_sweep

        self._grids, self.html = catalog.reading(lambda: ((grids := read_sweep(catalog, sweep)), render_page([grids])))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, atomically.

        Raises:
            InputError: If it cannot be written.
        """
        from stitchgrid.paths import write_whole

        try:
            write_whole(Path(path), self.html.encode())
        except OSError as problem:
            raise InputError(f"cannot write {path}: {problem.strerror}; name another file.") from problem

    def figures(
        self,
        folder: str | os.PathLike[str],
        *,
        only: Sequence[str] = (),
        pair: tuple[str, str] | None = None,
        width: float = 6.75,
        formats: Sequence[str] = ("pdf",),
    ) -> list[Path]:
        """Write figures for a paper into a folder, each with its caption (.txt) and its numbers (.csv) beside it.

        Args:
            folder: Folder of the figures; it is made if it is missing.
            only: Scores to draw: matchers, `matcher.metric` or metrics; if empty, the metric by which each matcher
                ranks layers.
            pair: Names of source and target: draws heat maps of this pair only, profiles, best sources and a scatter
                plot. None: heat maps of all networks.
            width: Width of each figure, in inches.
            formats: One or more of pdf, svg and png.

        Returns:
            The path of each figure, in the first of the formats.

        Raises:
            InputError: If the sweep has no such score or pair, or a file cannot be written.
        """
        from stitchgrid.atlas import FigureOptions, draw_figures

        asked = None if pair is None else ",".join(pair)
        options = FigureOptions(only=tuple(only), pair=asked, width=width, formats=tuple(formats))
        return list(draw_figures([self._grids], Path(folder), options))

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" width="100%" height="700" sandbox="allow-scripts"></iframe>'
