"""Query files: a header with the question, its parameters and columns, then SQL.

```sql
-- Which layer of the source is nearest to each layer of the target?
-- Further lines explain. `param NAME = DEFAULT  description` declares $name; without a default it must be given.
-- param top = 20  how many rows
-- columns: source_layer, target_layer
select ...
```
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from stitchgrid.errors import QueryError, nearest
from stitchgrid.shipped_files import shipped_names

Value = str | int | float | bool

PARAM = re.compile(r"param\s+(?P<name>[a-z_]\w*)(?:\s*=\s*(?P<default>'(?:[^']|'')*'|\S+))?(?:\s+(?P<description>.*))?")
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter of a query."""

    name: str
    default: Value | None  # None: must be given, as text
    description: str

    def parse(self, text: str, query: str) -> Value:
        """Return the text as a value of the default's type.

        Raises:
            QueryError: If the text is not of that type.
        """
        kind = str if self.default is None else type(self.default)
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            return kind(text)
        except (ValueError, KeyError):
            raise QueryError(
                f"parameter {self.name!r} of query {query!r} must be {KINDS[kind]}, got {text!r}; "
                f"for example --param {self.name}={str(self.default).lower()}."
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A parsed query file."""

    name: str
    question: str  # "" where the file has no header
    details: str
    params: tuple[Param, ...]
    columns: tuple[str, ...]
    sql: str

    @property
    def description(self) -> str:
        """The whole query as text: question, parameters, columns, SQL."""
        width = max((len(_written(param)) for param in self.params), default=0)
        lines = [f"{self.name}: {self.question}", *wrap(self.details, 100), ""]
        lines += ["parameters:", *(f"  {_written(one):{width}}  {one.description}" for one in self.params), ""]
        lines += ["columns:", *(f"  {line}" for line in wrap(", ".join(self.columns) or "as the SQL says", 100)), ""]
        return "\n".join([*lines, "SQL:", _without_header(self.sql)])

    def bind(self, given: Mapping[str, str]) -> dict[str, Value]:
        """Return a value for every parameter.

        Raises:
            QueryError: If one is unknown, missing or of another type.
        """
        known = {param.name: param for param in self.params}
        for name in given:
            if name not in known:
                raise QueryError(f"query {self.name!r} has no parameter {name!r}; {nearest(name, known)}.")
        values: dict[str, Value] = {}
        for name, param in known.items():
            if name in given:
                values[name] = param.parse(given[name], self.name)
            elif param.default is not None:
                values[name] = param.default
            else:
                raise QueryError(f"query {self.name!r} needs a value for {name!r}; give it as --param {name}=VALUE.")
        return values


def _written(param: Param) -> str:
    """Return the option that sets a parameter to its default."""
    default = "VALUE" if param.default is None else str(param.default)
    return f"--param {param.name}={default.lower() if isinstance(param.default, bool) else default}"


def _without_header(sql: str) -> str:
    lines = sql.splitlines()
    start = next((k for k, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return "\n".join(lines[start:])


def parse_question(name: str, sql: str) -> Question:
    """Read the header of a query.

    Raises:
        QueryError: If a `param` line cannot be understood.
    """
    comments = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        comments.append(line.removeprefix("--").strip())
    params: list[Param] = []
    columns: tuple[str, ...] = ()
    prose: list[str] = []
    for comment in comments:
        if comment.startswith("param "):
            params.append(_parse_param(name, comment))
        elif comment.startswith("columns:"):
            columns += tuple(column.strip() for column in comment.removeprefix("columns:").split(","))
        else:
            prose.append(comment)
    return Question(
        name=name,
        question=prose[0] if prose else "",
        details=" ".join(prose[1:]),
        params=tuple(params),
        columns=columns,
        sql=sql,
    )


def list_questions() -> list[Question]:
    """Return the questions that ship with stitchgrid, by name."""
    return [parse_question(name, path.read_text("utf-8")) for name, path in shipped_names("queries", ".sql").items()]


def overview() -> list[str]:
    """Return a line for each query that ships with stitchgrid: its name and its question."""
    return [f"{known.name:24}  {known.question}" for known in list_questions()]


def load_question(name_or_path: str) -> Question:
    """Return a shipped question by name, or the question in a `.sql` file.

    Raises:
        QueryError: If there is no such question, or the file cannot be read.
    """
    shipped = shipped_names("queries", ".sql")
    if name_or_path in shipped:
        return parse_question(name_or_path, shipped[name_or_path].read_text("utf-8"))
    path = Path(name_or_path)
    if path.suffix != ".sql":
        raise QueryError(f"no query {name_or_path!r}; {nearest(name_or_path, shipped)}; a file's name ends in .sql.")
    try:
        return parse_question(path.stem, path.expanduser().read_text("utf-8"))
    except (OSError, ValueError, RuntimeError) as problem:  # RuntimeError: no such user
        reason = (
            problem.strerror
            if isinstance(problem, OSError)
            else "it is not UTF-8 text"
            if isinstance(problem, UnicodeDecodeError)
            else str(problem)
        )
        raise QueryError(f"cannot read the query file {path}: {reason}; {nearest(path.stem, shipped)}.") from problem


def _parse_param(query: str, comment: str) -> Param:
    match = PARAM.fullmatch(comment)
    written = match["default"] if match else None
    default = None if written is None else _literal(written)
    if match is None or (default is None and (written or "=" in comment)):
        raise QueryError(
            f"query {query!r}: cannot understand '-- {comment}'; write '-- param NAME = DEFAULT  description' with "
            "'text' in quotes, a number, true or false as the default, or no '= DEFAULT' if it must be given."
        )
    return Param(name=match["name"], default=default, description=(match["description"] or "").strip())


def _literal(text: str) -> Value | None:
    """Return the value that a default's text stands for; None if it stands for none.

    >>> [_literal(word) for word in ("'it''s'", "3", "1e-6", "true", "x")]
    ["it's", 3, 1e-06, True, None]
    """
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
