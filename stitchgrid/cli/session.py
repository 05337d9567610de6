"""An interactive session on a store: SQL statements, and commands that begin with a dot."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from stitchgrid.catalog import VIEWS, Catalog, load_question
from stitchgrid.catalog.output_formats import OUTPUT_FORMATS
from stitchgrid.catalog.query_files import overview
from stitchgrid.cli.files_out import emit, format_of
from stitchgrid.cli.output import say, warn_of_store
from stitchgrid.errors import QueryError, nearest
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.paths import named_path
from stitchgrid.store import Store

KEYWORDS = (
    "select",
    "from",
    "where",
    "group",
    "by",
    "order",
    "limit",
    "join",
    "left",
    "on",
    "using",
    "with",
    "as",
    "distinct",
    "having",
    "union",
    "all",
    "case",
    "when",
    "then",
    "else",
    "end",
    "and",
    "or",
    "not",
    "in",
    "is",
    "null",
    "like",
    "between",
    "asc",
    "desc",
    "count",
    "avg",
    "min",
    "max",
    "median",
    "sum",
    "round",
    "unnest",
    "describe",
    "show",
    "tables",
    "summarize",
    "qualify",
    "over",
    "partition",
    "filter",
)


class Session:
    """Runs the statements and dot commands that a prompt reads; answers go to stdout, or to a file."""

    def __init__(self, store: str):
        self._uri = store
        self._catalog = Catalog(Store.open(store))
        self._format = "table"
        self._out: str | None = None  # file for the next answer
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            ".tables": ("the views", self._tables),
            ".schema": ("[VIEW]: columns of a view, or of all", self._schema),
            ".questions": ("[NAME]: the questions that ship, or the details of one", self._questions),
            ".ask": ("NAME [K=V]...: answer a question", self._ask),
            ".explain": ("SELECT ...: how DuckDB would run it", self._explain),
            ".mode": (f"{'|'.join(OUTPUT_FORMATS)}: the format of answers", self._mode),
            ".out": ("FILE: write the next answer to a file, in the format of its suffix", self._to_file),
            ".atlas": ("[FILE]: write the page of all sweeps", self._atlas),
            ".refresh": ("read the store again", self._refresh),
            ".help": ("show these lines", self._help),
            ".quit": ("leave the prompt, as Ctrl-D does", self._quit),
        }
        warn_of_store(self._catalog)

    def close(self) -> None:
        """Free the memory of the store's tables."""
        self._catalog.close()

    @staticmethod
    def is_complete(text: str) -> bool:
        """Return whether a text is a complete statement: it ends with a semicolon, begins with a dot, or is empty.

        >>> [Session.is_complete(text) for text in ("select 1", "select 1;", ".tables", "")]
        [False, True, True, True]
        """
        text = text.strip()
        return not text or text.startswith(".") or text.endswith(";")

    def run(self, text: str) -> None:
        """Run a statement or a dot command.

        Raises:
            QueryError: If it cannot run.
            EOFError: If the user ends the session.
        """
        text = text.strip()
        if not text.startswith("."):
            if text.rstrip("; \n"):
                self._answer(text)
            return
        name, _, rest = text.partition(" ")
        if name not in self.commands:
            raise QueryError(f"there is no command {name}; {nearest(name, self.commands)}.")
        self.commands[name][1](rest.strip().removesuffix(";").strip())

    def words(self) -> dict[str, str]:
        """Return word -> what it is, for every word that can be completed."""
        found = dict.fromkeys(KEYWORDS, "")
        found |= dict.fromkeys(MATCHERS, "matcher")
        found |= {name: "column" for view in VIEWS for name in self._columns(view)}
        found |= dict.fromkeys(self._names("select distinct model from models"), "network")
        found |= dict.fromkeys(self._catalog.sweeps, "sweep")
        found |= dict.fromkeys(VIEWS, "view")
        return found

    def _columns(self, view: str) -> list[str]:
        return self._names(f"select column_name from (describe {view})")

    def _names(self, sql: str) -> list[str]:
        return [str(name) for name in self._catalog.query(sql).column(0).to_pylist()]

    def _answer(self, sql: str) -> None:
        self._show(self._catalog.query(sql))

    def _show(self, table: pa.Table) -> None:
        out, self._out = self._out, None
        form = format_of(None, out) if out and self._format == "table" else self._format
        if not OUTPUT_FORMATS[form].is_text and out is None:
            raise QueryError(f"{form} is not text; name a file with .out FILE, or choose another .mode.")
        emit(table, form, out)
        if out is not None:
            say(f"{out}: {table.num_rows} rows")

    def _tables(self, rest: str) -> None:  # noqa: ARG002
        self._answer("show tables")

    def _schema(self, view: str) -> None:
        if view and view not in VIEWS:
            raise QueryError(f"there is no view {view!r}; {nearest(view, VIEWS)}.")
        for name in [view] if view else VIEWS:
            say(f"{name}: {', '.join(self._columns(name))}")

    def _questions(self, name: str) -> None:
        say(load_question(name).description if name else "\n".join(overview()))

    def _ask(self, rest: str) -> None:
        try:
            name, *params = shlex.split(rest)
        except ValueError as problem:
            raise QueryError(f"wanted .ask NAME [K=V]..., got {rest!r}: {problem}.") from problem
        if bad := [param for param in params if "=" not in param]:
            raise QueryError(f"wanted K=V after the name of a question, got {bad[0]!r}.")
        given = dict(param.split("=", 1) for param in params)
        self._show(self._catalog.ask(load_question(name), given))

    def _explain(self, sql: str) -> None:
        if not sql:
            raise QueryError("wanted .explain SELECT ....")
        for text in self._catalog.query(f"explain {sql}").column(1).to_pylist():
            say(str(text).rstrip())

    def _mode(self, form: str) -> None:
        if form not in OUTPUT_FORMATS:
            raise QueryError(f"there is no mode {form!r}; {nearest(form, OUTPUT_FORMATS)}.")
        self._format = form

    def _to_file(self, out: str) -> None:
        if not out:
            raise QueryError("wanted .out FILE, such as .out best.csv.")
        self._out = str(Path(out))

    def _atlas(self, out: str) -> None:
        from stitchgrid.atlas import write_atlas

        path = out or "atlas.html"
        say(f"{path}: {write_atlas(self._catalog, self._catalog.sweeps, named_path(path))}")

    def _refresh(self, rest: str) -> None:  # noqa: ARG002
        self._catalog.close()
        self._catalog = Catalog(Store.open(self._uri))
        warn_of_store(self._catalog)
        say(f"{len(self._catalog.sweeps)} sweeps")

    def _help(self, rest: str) -> None:  # noqa: ARG002
        say("A statement ends with a semicolon. Commands begin with a dot:")
        width = max(map(len, self.commands))
        for name, (what, _) in self.commands.items():
            say(f"  {name:{width}}  {what}")

    def _quit(self, rest: str) -> None:  # noqa: ARG002
        raise EOFError
