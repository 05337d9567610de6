"""The catalog: SQL over a store, read-only, in an in-memory DuckDB that cannot reach any file."""

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from stitchgrid.catalog.pairs_view import VARIANTS, columns_of
from stitchgrid.catalog.query_files import Question
from stitchgrid.catalog.tables import load_tables
from stitchgrid.catalog.verdict_rules import answers_sql
from stitchgrid.catalog.views import VIEWS, view_sql
from stitchgrid.errors import QueryError, nearest
from stitchgrid.private_folder import private_folder
from stitchgrid.store import Damage, Store

Found = TypeVar("Found")

_MATCHERS = "select distinct matcher as name from cells order by all"
#: Name of a query's parameter -> the SQL that lists its valid values in the store.
KNOWN = {
    "matcher": _MATCHERS,
    "first": _MATCHERS,
    "second": _MATCHERS,
    "metric": "select distinct unnest(metrics) as name from cells order by all",
    "flag": "select distinct unnest(flags) as name from measurements order by all",
}
SHOW_TABLES = re.compile(r"\s*show\s+(?:all\s+)?tables\s*;?\s*", re.IGNORECASE)  # answered with the views
EVERYTHING = "show all tables"
#: Statements that may list the views.
LOOKS_AROUND = re.compile(
    r"\b(?:show|describe|duckdb_\w+|pg_\w+|pragma\w*|information_schema|sqlite_\w+)\b", re.IGNORECASE
)
WORD = re.compile(r"\w+")
BATCH_ROWS = 100_000  # rows in one batch of an export
READING = "SELECT"  # DESCRIBE, SHOW, SUMMARIZE, FROM and VALUES are parsed as SELECT
ADVICE = f'The views are {", ".join(VIEWS)}; "describe results" lists the columns of one.'


class Catalog:
    """The content of a store at the moment of opening, as SQL views.

    `values=False` opens faster: only the views that need no values, such as `cells`, exist then.
    """

    def __init__(self, store: Store, *, now: datetime | None = None, values: bool = True):
        self._store, self._now, self._values = store, now, values
        self._late: dict[str, Damage] = {}  # files that a query found damaged
        self._open()

    def _open(self) -> None:
        self._tables = tables = load_tables(
            self._store, now=self._now, without=frozenset(self._late), values=self._values
        )
        self.sweeps: tuple[str, ...] = tables.sweeps  # those with a complete plan
        self.damaged: tuple[Damage, ...] = (*tables.damaged, *self._late.values())  # files that were left out
        self.num_loose_parts: int = tables.num_loose_parts  # small files that a compaction would merge
        self._connection = duckdb.connect(":memory:")
        for name, table in tables.by_name.items():
            self._connection.register(name, table)
        # Making all views takes longer than most statements. So a view is made when a statement first names it.
        texts = view_sql(tables.shape)
        self._unmade: dict[str, Callable[[], str]] = {name: partial(texts.__getitem__, name) for name in texts}
        if self._values:
            self._unmade |= {
                "answers": answers_sql,
                "all_answers": partial(answers_sql, with_diverged=True),
                "pairs": self._pairs_sql,
            }
        _lock(self._connection)

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the tables."""
        self._connection.close()

    def require_sweep(self, sweep: str) -> None:
        """Check that a planned sweep has this name.

        Raises:
            QueryError: If none has; the message names the nearest.
        """
        if sweep not in self.sweeps:
            raise QueryError(f"no planned sweep {sweep!r} in the store; {nearest(sweep, self.sweeps)}.")

    def evidence_asked(self, sweep: str) -> tuple[int, int]:
        """Return a sweep's number of groups of images (for intervals) and of shuffles of images; 0 means none."""
        info = self._store.read_plan_info(sweep)
        return info.get("groups") or 0, info.get("shuffles") or 0

    def job(self, sweep: str) -> dict[str, Any]:
        """Return the job of a sweep's latest revision, as the store keeps it."""
        return self._store.read_job(sweep)

    def query(self, sql: str, params: Mapping[str, Any] | None = None) -> pa.Table:
        """Return the result of one statement that only reads; `$name` in it stands for a value of `params`.

        Raises:
            QueryError: If there are several statements, or one writes, or DuckDB cannot run it.
        """
        if SHOW_TABLES.fullmatch(sql):
            return pa.table({"name": list(VIEWS)})
        while True:
            try:
                table = self._run(sql, params or {})
                if not self._leave_out(self._tables.found_late):
                    return table
            except (duckdb.Error, pa.ArrowException, UnicodeDecodeError) as problem:
                if isinstance(problem, duckdb.CatalogException) and self._unmade:
                    self._make_views(EVERYTHING)  # so that DuckDB's message proposes names among all views
                    continue
                if not (self._leave_out(self._tables.found_late) or self._leave_out(self._tables.look_closely())):
                    raise QueryError(f"DuckDB cannot run the query: {problem}\n{ADVICE}") from problem

    def export(
        self, statements: Mapping[str, str], take: Callable[[str, pa.RecordBatchReader], None]
    ) -> dict[str, int]:
        """Run statements, given by name, and pass the rows of each to `take` in batches; return their numbers of rows.

        The rows are complete only if `reopen_without_damaged` returns False afterwards.
        """
        counts = {}
        for name, sql in statements.items():
            self._make_views(sql)
            reader = self._connection.sql(sql).to_arrow_reader(BATCH_ROWS)
            num_rows = [0]
            take(name, pa.RecordBatchReader.from_batches(reader.schema, _counted(reader, num_rows)))
            counts[name] = num_rows[0]
        return counts

    def reading(self, read: Callable[[], Found]) -> Found:
        """Return what `read` returns; if it fails because of damaged files, leave them out and call it again.

        Queries do not verify the content of snapshot files, because that would take too long each time.
        """
        while True:
            try:
                return read()
            except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
                if not self.reopen_without_damaged(closely=True):
                    raise

    def reopen_without_damaged(self, *, closely: bool = False) -> bool:
        """Open the store again without the files that the last statements found damaged; return whether there are any.

        If `closely`, every file is verified.
        """
        late = self._leave_out(self._tables.found_late)
        return late or (closely and self._leave_out(self._tables.look_closely()))

    @property
    def uri(self) -> str:
        """Folder or URI of the store."""
        return self._store.uri

    def _make_views(self, sql: str, *, before: str | None = None) -> None:
        """Make the views that a statement names; a statement that lists views needs all of them.

        With `before`, the name of a view, `sql` is the text of that view: only earlier views are made.
        """
        names = list(self._unmade)
        if before is None and LOOKS_AROUND.search(sql):
            found = names
        else:
            words = {word.lower() for word in WORD.findall(sql)}
            found = [name for name in names[: names.index(before) if before else None] if name in words]
        for name in found:
            if name in self._unmade:  # else another view needed it, and it is made already
                text = self._unmade[name]()
                self._make_views(text, before=name)
                self._connection.execute(f"create view {name} as {text}")
                del self._unmade[name]

    def _run(self, sql: str, params: Mapping[str, Any]) -> pa.Table:
        names = _check_reads_only(self._connection.extract_statements(sql))
        values = _values_for(names, params)
        self._make_views(sql)
        # Read-only, because DuckDB counts "explain analyze drop ..." and "with x as (insert ...) ..." as reads.
        self._connection.execute("begin transaction read only")
        try:
            relation = self._connection.sql(sql, params=values) if values else self._connection.sql(sql)
            table = relation.to_arrow_table()
            table.validate(full=True)  # text of a damaged file may be invalid UTF-8
            return table.rename_columns(distinct(table.column_names))
        finally:
            self._connection.execute("rollback")

    def _pairs_sql(self) -> str:
        self._make_views(VARIANTS)
        columns = columns_of(self._connection.sql(VARIANTS).to_arrow_table().to_pylist())
        self._connection.register("_columns", columns.numbers)
        return columns.sql

    def _leave_out(self, damaged: Iterable[Damage]) -> bool:
        """Open the store again without files that a query could not read; return whether there are any."""
        found = {one.file: one for one in damaged if one.file not in self._late}
        if found:
            self._late |= found
            self.close()
            self._open()
        return bool(found)

    def _check_known(self, question: Question, values: Mapping[str, Any]) -> None:
        """Check that some cell of the store has each given matcher, metric and flag: an empty answer would mislead.

        Raises:
            QueryError: If none has; the message names the nearest.
        """
        for param in question.params:
            name, value = param.name, values[param.name]
            sql = KNOWN.get(name)
            if sql is None or value in ("", param.default):
                continue
            known = [row["name"] for row in self.query(sql).to_pylist()]
            if value not in known:
                raise QueryError(
                    f"parameter {name!r} of query {question.name!r}: no {name} {value!r} in the store; "
                    f"{nearest(str(value), known)}."
                )

    def ask(self, question: Question, given: Mapping[str, str] | None = None) -> pa.Table:
        """Return the answer to a question; `given` holds values of its parameters as text.

        Raises:
            QueryError: If a parameter is not valid, there is no such sweep, or DuckDB cannot run the query.
        """
        values = question.bind(given or {})
        sweep = values.get("sweep")
        if sweep:
            self.require_sweep(str(sweep))
        self._check_known(question, values)
        used = {name for statement in self._parse(question) for name in statement.named_parameters}
        if undeclared := sorted(used - values.keys()):
            raise QueryError(
                f"query {question.name!r} uses ${undeclared[0]}, which its header does not declare; "
                f"add a line '-- param {undeclared[0]} = DEFAULT  description'."
            )
        return self.query(question.sql, {name: value for name, value in values.items() if name in used})

    def _parse(self, question: Question) -> list[Any]:
        try:
            return list(self._connection.extract_statements(question.sql))
        except duckdb.Error as problem:
            raise QueryError(f"DuckDB cannot run query {question.name!r}: {problem}\n{ADVICE}") from problem


def _counted(batches: Iterable[pa.RecordBatch], num_rows: list[int]) -> Iterable[pa.RecordBatch]:
    for batch in batches:
        batch.validate(full=True)  # text of a damaged file may be invalid UTF-8
        num_rows[0] += batch.num_rows
        yield batch


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    """Deny SQL any access to files, extensions and Python variables, and any change of these settings."""
    # DuckDB makes this folder and its files, readable for everyone, when it needs them, and removes them. So it lies in
    # a private folder.
    spill = str(private_folder() / f"duckdb-{uuid.uuid4().hex}").replace("'", "''")
    for setting in (
        "enable_progress_bar = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "python_enable_replacements = false",
        f"temp_directory = '{spill}'",  # DuckDB's default is a folder in the working directory
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of columns, made unique: a repeated name gets a number as its suffix.

    >>> distinct(["a", "b", "a", "a_1", "a"])
    ['a', 'b', 'a_2', 'a_1', 'a_3']
    """
    given = list(names)
    taken, found = set(given), []
    for position, name in enumerate(given):
        told, number = name, 0
        while (told in taken and number) or (not number and name in given[:position]):
            number += 1
            told = f"{name}_{number}"
        taken.add(told)
        found.append(told)
    return found


def _check_reads_only(statements: list[Any]) -> set[str]:
    """Return the names of the parameters of a single statement that reads.

    Raises:
        QueryError: If there are several statements, or one that does not read.
    """
    if len(statements) != 1:
        raise QueryError(
            f"one statement at a time, got {len(statements)}; give a single SELECT, or write PIVOT with its columns "
            "named: pivot results on metric in ('cka', 'pwcca') using first(value)."
        )
    kind = statements[0].type.name
    if kind == "EXPLAIN":  # it can run the statement, and DuckDB counts SET, LOAD and VACUUM as statements that read
        explained = _explained(statements[0].query)
        kind = explained[0].type.name if len(explained) == 1 else "EXPLAIN of something else"
    if kind != READING:
        raise QueryError(
            f"only statements that read are allowed (SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN), "
            f"got {kind}; results are written to a file with --out."
        )
    return set(statements[0].named_parameters)


def _explained(sql: str) -> list[Any]:
    """Return the statement that an EXPLAIN statement explains, parsed: what follows EXPLAIN and its options."""
    text = sql.encode()  # DuckDB counts bytes
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    ends = [*starts[1:], len(text)]
    tokens = [text[start:end].decode().lower() for start, end in zip(starts, ends, strict=True)]
    first = 2 if tokens[1].startswith("analyze") else 1
    if tokens[first].startswith("(") and tokens[first + 1].startswith(("analyze", "format")):
        first = next(k for k, token in enumerate(tokens) if token.startswith(")")) + 1
    return list(duckdb.extract_statements(text[starts[first] :].decode()))


def _values_for(names: set[str], params: Mapping[str, Any]) -> dict[str, Any]:
    if missing := sorted(names - params.keys()):
        raise QueryError(
            f"no value for ${missing[0]}; parameters have values only in query files: write the value into the SQL, "
            "or keep the SQL in a file that declares it and run 'stitchgrid query FILE.sql --param NAME=VALUE'."
        )
    if unknown := sorted(params.keys() - names):
        raise QueryError(f"the SQL has no parameter ${unknown[0]}; {nearest(unknown[0], names)}.")
    return dict(params)
