"""`--set KEY=VALUE`: edits the parsed job file before it is validated."""

from collections.abc import Sequence
from typing import Any

from stitchgrid.errors import nearest
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.toml_text import parse_toml


def apply_overrides(table: dict[str, Any], overrides: Sequence[str], problems: Problems) -> None:
    """Edit the table in place; note every override that cannot be carried out.

    A key has dots between its parts (quote a part that has dots itself: models."a.b".seed). An item of a list is named
    by its `name`, by its `kind` (if only one item is of that kind) or by its position from 0. A value that is no TOML
    is a string.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or (path := _path(key)) is None:
            problems.add(f"--set {override}", "KEY=VALUE was expected, with a KEY such as data.fit.samples")
        elif problem := _assign(table, path, _value(value)):
            problems.add(f"--set {override}", problem)


def _path(key: str) -> list[str] | None:
    try:
        table: Any = parse_toml(f"{key} = 0")
    except ValueError:
        return None
    path = []
    while isinstance(table, dict):
        if len(table) != 1:
            return None
        ((part, table),) = table.items()
        path.append(part)
    return path


def _value(text: str) -> Any:
    try:
        table = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return table["value"] if table.keys() == {"value"} else text


def _assign(table: dict[str, Any], path: Sequence[str], value: Any) -> str | None:
    """Set the value at the path; return a message if there is no such place."""
    here: Any = table
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(here, dict):
            if is_last:
                here[part] = value
            else:
                here = here.setdefault(part, {})  # validation refuses unknown keys
        elif isinstance(here, list):
            position = _find(here, part)
            if isinstance(position, str):
                return f"{'.'.join(path[:depth])} has no single item {part!r}; {position}"
            if is_last:
                here[position] = value
            else:
                here = here[position]
        else:
            return f"{'.'.join(path[:depth])} is {here!r}, which has nothing inside"
    return None


def _find(items: list[Any], word: str) -> int | str:
    """Return the position of an item of a list, or a hint if no single item has this name."""
    tables = [item if isinstance(item, dict) else {} for item in items]
    labels = [str(item.get("name", item.get("kind", ""))) for item in tables]
    if labels.count(word) == 1:
        return labels.index(word)
    if labels.count(word) > 1:
        positions = [str(i) for i, label in enumerate(labels) if label == word]
        return f"there are {len(positions)}: use its position, one of {', '.join(positions)}"
    if word.isdecimal() and int(word) < len(items):
        return int(word)
    return f"{nearest(word, [label for label in labels if label])}; positions 0 to {len(items) - 1}"
