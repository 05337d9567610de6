"""The order of the classes, which gives each label its meaning."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.images import ImagePool, Listing
from stitchgrid.datasets.natural_order import natural_order
from stitchgrid.errors import InputError, nearest
from stitchgrid.records import DataSpec


def check_labels(pools: Mapping[str, ImagePool]) -> None:
    """Check that every label is the position of a class; a data set with damaged files may have others.

    Raises:
        InputError: If a label is not.
    """
    for split, pool in pools.items():
        num_classes, labels = len(pool.listing.class_names), pool.labels
        if num_classes and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise InputError(
                f"split {split!r}: labels run from {labels.min()} to {labels.max()}, but there are {num_classes} "
                "classes; correct the labels, or download the data set's files again."
            )


def arranged(listing: Listing, spec: DataSpec) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the class names in the order that the job asks for, and for each old label the new one, (K,).

    Raises:
        InputError: If the job's `classes` are not the classes of the images.
    """
    names = listing.class_names
    if spec.classes is None:
        order = natural_order(names) if spec.class_order == "natural" else tuple(range(len(names)))
        wanted = tuple(names[position] for position in order)
    else:
        wanted = spec.classes
        if listing.is_numbered and set(wanted) != set(names):
            return _named(wanted, names)
        _check(wanted, names)
    places = {name: label for label, name in enumerate(wanted)}
    return wanted, np.array([places[name] for name in names], dtype=np.int64)


def _named(wanted: tuple[str, ...], numbers: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the job's names for labels that are only numbers, and unchanged labels."""
    if len(wanted) < len(numbers):
        raise InputError(
            f"`classes` under [data] has {len(wanted)} names, but labels run to {len(numbers) - 1}; give a name for "
            "every label, in their order."
        )
    return wanted, np.arange(len(numbers), dtype=np.int64)


def _check(wanted: Sequence[str], names: Sequence[str]) -> None:
    problems = [
        f"{name!r} is not a class of the images; {nearest(name, names)}" for name in wanted if name not in set(names)
    ]
    problems += [
        f"class {name!r} of the images is not named; {nearest(name, wanted)}"
        for name in names
        if name not in set(wanted)
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise InputError(f"`classes` under [data] must name every class of the images once: {shown}.")
