"""Results as tables and matrices: notebooks show them, and data frames are made from them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stitchgrid.catalog.formats import render
from stitchgrid.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

SHOWN = 20  # rows in a notebook
WIDTH = 120

Array = np.ndarray[Any, np.dtype[Any]]


class Table:
    """Rows with named columns.

    Arrow readers (pandas, Polars, DuckDB, pyarrow) read it directly.
    """

    def __init__(self, table: pa.Table):
        self._table = table

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as dictionaries."""
        return iter(self._table.to_pylist())

    def __getitem__(self, column: str) -> list[Any]:
        """Return the values of a column.

        Raises:
            KeyError: If there is no such column.
        """
        if column not in self._table.column_names:
            raise KeyError(f"no column {column!r}; there are {', '.join(self.columns)}")
        values: list[Any] = self._table[column].to_pylist()
        return values

    def arrow(self) -> pa.Table:
        """Return the rows as a pyarrow table."""
        return self._table

    def df(self) -> "pd.DataFrame":
        """Return the rows as a pandas data frame.

        Raises:
            InputError: If pandas is not installed.
        """
        _require("pandas")
        return self._table.to_pandas()

    def pl(self) -> "pl.DataFrame":
        """Return the rows as a Polars data frame.

        Raises:
            InputError: If Polars is not installed.
        """
        polars: Any = _require("polars")
        frame: pl.DataFrame = polars.from_arrow(self._table)
        return frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        text = render(self._table, "table", width=WIDTH)
        assert isinstance(text, str)
        return text.replace("; --all shows all of them, --out FILE.csv writes them to a file", "").rstrip("\n")

    def _repr_html_(self) -> str:
        first = self._table.slice(0, SHOWN)
        more = f"<p>{len(first)} of {len(self)} rows</p>" if len(self) > len(first) else ""
        return html_table(self.columns, (map(_shown, row.values()) for row in first.to_pylist())) + more


class Matrix:
    """One metric of all layers of a source with all layers of a target.

    Attributes:
        values: (source layers, target layers), float64; NaN where there is no value.
        rows: Names of the source's layers.
        columns: Names of the target's layers.
        title: The matcher, or what else the values are.
        higher_is_similar: Whether a higher value means more similar; None where the metric has no direction.
        reasons: (source layer, target layer) -> why there is no value, where that is known.
    """

    def __init__(
        self,
        values: Array,
        rows: Sequence[str],
        columns: Sequence[str],
        *,
        title: str,
        higher_is_similar: bool | None,
        reasons: Mapping[tuple[str, str], str] | None = None,
    ):
        self.values, self.rows, self.columns = values, list(rows), list(columns)
        self.title, self.higher_is_similar = title, higher_is_similar
        self.reasons = dict(reasons or {})

    @property
    def mask(self) -> Array:
        """Where there is no value: (source layers, target layers), boolean, as numpy.ma takes it."""
        found: Array = np.isnan(self.values)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=True if copy is None else copy)

    def df(self) -> "pd.DataFrame":
        """Return the matrix as a pandas data frame: source layers down, target layers across.

        Raises:
            InputError: If pandas is not installed.
        """
        pandas: Any = _require("pandas")
        frame: pd.DataFrame = pandas.DataFrame(self.values, index=self.rows, columns=self.columns)
        return frame

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the matrix as a heat map and return its axes; bright means similar.

        Args:
            ax: The axes to draw on; those of a new figure by default.
        """
        from matplotlib.figure import Figure

        if ax is None:
            size = (max(3.25, 1.5 + 0.25 * len(self.columns)), max(2.75, 1.2 + 0.25 * len(self.rows)))
            ax = Figure(figsize=size, layout="constrained").add_subplot()
        drawn = ax.imshow(self.values, cmap="cividis_r" if self.higher_is_similar is False else "cividis")
        ax.set_xticks(range(len(self.columns)), self.columns, rotation=90, fontsize=7)
        ax.set_yticks(range(len(self.rows)), self.rows, fontsize=7)
        ax.set_xlabel("target", fontsize=8)
        ax.set_ylabel("source", fontsize=8)
        ax.set_title(self.title, fontsize=8, wrap=True)
        ways = {True: "higher is more similar", False: "lower is more similar", None: ""}
        figure = ax.get_figure()
        assert figure is not None
        bar = figure.colorbar(drawn, ax=ax)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(ways[self.higher_is_similar], fontsize=7)
        return ax

    def __repr__(self) -> str:
        return f"Matrix({self.title}: {len(self.rows)} source layers x {len(self.columns)} target layers)"

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{value:.3g}</td>' for value in line)}</tr>"
            for name, line in zip(self.rows, self.values, strict=True)
        )
        return f"<table><thead><tr><th>{escape(self.title)}</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def html_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table for a notebook, all texts escaped.

    >>> html_table(["<a>"], [["1"]])
    '<table><thead><tr><th>&lt;a&gt;</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _require(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as problem:
        raise InputError(
            f"{package} is not installed; pip install {package}, or use .arrow(), which needs no other package."
        ) from problem
