"""Reads the tables [data] and [data.outliers]."""

from collections.abc import Mapping
from typing import Any

from stitchgrid.datasets.registry import (
    TORCHVISION,
    WITH_CHANNELS,
    WITH_FOLDER,
    WITH_KEYS,
    known_splits,
    needs_root,
    own_parts,
)
from stitchgrid.errors import nearest
from stitchgrid.jobfile.problems import Problems
from stitchgrid.jobfile.tables import DataTable, OutliersTable


def read_data(table: Mapping[str, Any], problems: Problems) -> DataTable | None:
    """Return the table [data], None if it is unusable; note its problems."""
    if "data" not in table:
        problems.add("data", "missing, but needed: which images the networks look at")
        return None
    data = problems.check(DataTable, table["data"], "data")
    if data is None:
        return None
    if (splits := known_splits(data.dataset)) is not None:
        for role, split in (("fit", data.fit.split), ("eval", data.eval.split)):
            if split not in splits:
                problems.add(f"data.{role}.split", f"{data.dataset} has no split {split!r}; {nearest(split, splits)}")
    _check_source(data, table["data"], "data", problems)
    if (other := data.outliers) is not None:
        splits = known_splits(other.dataset)
        if splits is not None and other.split not in splits:
            what = f"{other.dataset} has no split {other.split!r}; {nearest(other.split, splits)}"
            problems.add("data.outliers.split", what)
        _check_source(other, table["data"]["outliers"], "data.outliers", problems)
    if data.download and not (data.dataset in TORCHVISION and TORCHVISION[data.dataset].can_download):
        problems.add("data.download", f"{data.dataset} cannot be downloaded; leave `download` out")
    if data.classes is not None and data.class_order is not None:
        problems.add("data.class_order", "`classes` gives the order already; leave one of them out")
    if data.labels == "none" and (data.classes is not None or data.class_order is not None):
        problems.add(
            "data.labels", 'images without labels ("none") have no classes; leave out `classes` and `class_order`'
        )
    return data


def _check_source(data: DataTable | OutliersTable, given: Mapping[str, Any], where: str, problems: Problems) -> None:
    """Note keys that a data set needs, and keys that it ignores; `given` is the table as it was written."""
    is_own = own_parts(data.dataset) is not None
    if data.root is None and "root" not in given and needs_root(data.dataset):
        problems.add(f"{where}.root", f"missing, but needed: where the images of {data.dataset} are")
    if data.dataset not in WITH_CHANNELS and not is_own:
        for key in ("channels", "axes"):
            if getattr(data, key) is not None:
                told = f"only {', '.join(WITH_CHANNELS)} and FILE.py:function have arrays with channels of any number"
                problems.add(f"{where}.{key}", f"{told}; leave it out")
    if isinstance(data, DataTable):
        if data.keys is not None and data.dataset not in WITH_KEYS:
            problems.add(
                f"{where}.keys", f"only {', '.join(WITH_KEYS)} have arrays, columns or members to name; leave it out"
            )
        if data.folder is not None and data.dataset not in WITH_FOLDER:
            told = f'only dataset = "{", ".join(WITH_FOLDER)}" has paths that start at a folder; leave it out'
            problems.add(f"{where}.folder", told)
    if data.args is not None and not is_own:
        problems.add(f"{where}.args", f"only FILE.py:function takes arguments, {data.dataset} does not; leave it out")
