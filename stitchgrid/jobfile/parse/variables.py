"""Environment variables in a job file, and its lists of tables."""

import os
import re
from collections.abc import Mapping
from typing import Any

from stitchgrid.jobfile.problems import Problems
from stitchgrid.paths import with_home

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand_variables(table: dict[str, Any], problems: Problems) -> None:
    """Replace ${VAR}, and a leading ~, in all keys that may be paths; note variables that are not set."""
    data = table.get("data")
    places = [("data", data, key) for key in ("dataset", "root", "folder")]
    if isinstance(data, dict):
        places += [("data.outliers", data.get("outliers"), key) for key in ("dataset", "root")]
    models = table.get("models")
    for position, model in enumerate(models if isinstance(models, list) else []):
        places += [(f"models[{position}]", model, key) for key in ("weights", "features", "architecture")]
        if isinstance(model, dict):
            places += [(f"models[{position}].weights", model.get("weights"), key) for key in ("file", "adapter")]
    for where, item, key in places:
        if isinstance(item, dict) and isinstance(text := item.get(key), str):
            for name in sorted(set(VARIABLE.findall(text)) - os.environ.keys()):
                problems.add(f"{where}.{key}", f"environment variable {name} is not set, and {text!r} needs it")
            text = VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)
            try:
                item[key] = str(with_home(text)) if text.startswith("~") else text
            except ValueError as problem:
                problems.add(f"{where}.{key}", str(problem))


def tables_of(table: Mapping[str, Any], key: str, problems: Problems) -> list[tuple[str, Any]]:
    """Return the tables of a list of tables, each with its place in the job, such as `models[0]`."""
    items = table.get(key)
    if not isinstance(items, list) or not items:
        problems.add(key, f"at least one [[{key}]] is needed" if items in (None, []) else f"write each as [[{key}]]")
        return []
    return [(f"{key}[{position}]", item) for position, item in enumerate(items)]
