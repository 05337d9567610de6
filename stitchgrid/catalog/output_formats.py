"""The formats in which commands and queries write a table; neither pyarrow nor the table is needed to know them.

A new format is a function in `formats.py` and an entry here, from which options, prompt, messages and manual know it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """A format of tables."""

    name: str
    where: str  # module:function, called with a table; it returns text or bytes
    says: str  # what it is, in help texts and the manual
    suffix: str | None = None  # of files that have it without being asked
    for_people: bool = False  # values are short, and the checks of an answer are one text
    is_text: bool = True  # else a terminal cannot show it

    def load(self) -> Callable[[Any], str | bytes]:
        """Return its function."""
        module, _, name = self.where.partition(":")
        function: Callable[[Any], str | bytes] = getattr(import_module(f"stitchgrid.catalog.{module}"), name)
        return function


OUTPUT_FORMATS = {
    one.name: one
    for one in (
        OutputFormat(name="table", where="formats:as_table", says="aligned columns; the usual one", for_people=True),
        OutputFormat(name="csv", where="formats:as_csv", says="all digits; NULL is empty", suffix=".csv"),
        OutputFormat(name="spreadsheet", where="formats:as_spreadsheet", says="csv in which no text is a formula"),
        OutputFormat(name="json", where="formats:as_json", says="a list of objects", suffix=".json"),
        OutputFormat(
            name="markdown",
            where="formats:as_markdown_table",
            says="a table of Markdown",
            suffix=".md",
            for_people=True,
        ),
        OutputFormat(name="parquet", where="formats:as_parquet", says="Parquet", suffix=".parquet", is_text=False),
    )
}


def format_by_suffix(suffix: str) -> OutputFormat:
    """Return the format of files with a suffix, in any case of letters; `table` where none has it.

    >>> format_by_suffix(".CSV").name, format_by_suffix("").name
    ('csv', 'table')
    """
    return next((one for one in OUTPUT_FORMATS.values() if one.suffix == suffix.lower()), OUTPUT_FORMATS["table"])
