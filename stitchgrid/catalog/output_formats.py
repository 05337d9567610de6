"""The formats in which commands and queries write a table; neither pyarrow nor the table is needed to know them.

A new format is a function in `formats.py` and an entry here, from which options, prompt, messages and manual know it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """A format of tables."""

    name: str
    function: str  # in `formats.py`: takes a table, and returns text or bytes
    says: str  # what it is, in help texts and the manual
    suffix: str | None = None  # of files that have it without being asked
    for_people: bool = False  # values are short, and the checks of an answer are one text
    is_text: bool = True  # else a terminal cannot show it


OUTPUT_FORMATS = {
    one.name: one
    for one in (
        OutputFormat(name="table", function="as_table", says="aligned columns; the usual one", for_people=True),
        OutputFormat(name="csv", function="as_csv", says="all digits; NULL is empty", suffix=".csv"),
        OutputFormat(name="spreadsheet", function="as_spreadsheet", says="csv in which no text is a formula"),
        OutputFormat(name="json", function="as_json", says="a list of objects", suffix=".json"),
        OutputFormat(
            name="markdown", function="as_markdown_table", says="a table of Markdown", suffix=".md", for_people=True
        ),
        OutputFormat(name="parquet", function="as_parquet", says="Parquet", suffix=".parquet", is_text=False),
    )
}


def format_by_suffix(suffix: str) -> OutputFormat:
    """Return the format of files with a suffix, in any case of letters; `table` where none has it.

    >>> format_by_suffix(".CSV").name, format_by_suffix("").name
    ('csv', 'table')
    """
    return next((one for one in OUTPUT_FORMATS.values() if one.suffix == suffix.lower()), OUTPUT_FORMATS["table"])
