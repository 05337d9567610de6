"""From a TOML text to a table, or to a ValueError, whatever the text is."""

import re
import tomllib
from typing import Any

MAX_BYTES = 1_000_000  # of a job file
DEEPEST = 50  # tables and arrays within each other
LONGEST_KEY = 100  # parts between dots
MOST_BITS = 64  # of a whole number
_PART = r"""(?:(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
# Such keys are sought before the text is parsed, since tomllib takes hours for a key of very many parts.
_LONG_KEY = re.compile(rf"{_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{LONGEST_KEY}}}")


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table in a text.

    Raises:
        ValueError: If it is not TOML, or exceeds one of this module's limits.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than the {MAX_BYTES:,} that are read")
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {LONGEST_KEY} parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"tables or arrays lie more than {DEEPEST} deep in each other") from None
    _check(table)
    return table


def _check(table: dict[str, Any]) -> None:
    level: list[Any] = [table]
    for _ in range(DEEPEST + 1):
        values = [value for one in level for value in (one.values() if isinstance(one, dict) else one)]
        if any(isinstance(value, int) and value.bit_length() > MOST_BITS for value in values):
            raise ValueError(f"a whole number has more than {MOST_BITS} bits")
        level = [value for value in values if isinstance(value, dict | list)]
    if level:
        raise ValueError(f"tables or arrays lie more than {DEEPEST} deep in each other")
