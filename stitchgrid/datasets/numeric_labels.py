"""Labels that are numbers: the classes, and checks of the labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stitchgrid.datasets.images import Listing
from stitchgrid.errors import InputError

MOST_CLASSES = 1_000_000


def as_labels(values: Any, where: str) -> NDArray[np.int64]:
    """Return labels as whole numbers from 0 on, (N,); the shape (N, 1) is accepted as well.

    Raises:
        InputError: If they are something else; the message names `where`.
    """
    labels = np.asarray(values)
    is_long = isinstance(values, list) and labels.dtype.kind not in "iu" and all(isinstance(one, int) for one in values)
    if is_long:  # one of them has more than 64 bits, or there is none
        labels = np.array(values, dtype=object)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not (is_long or labels.dtype.kind in "iu"):
        raise InputError(
            f"{where}: labels are whole numbers, one per image (N,), got {labels.dtype} of shape {labels.shape}."
        )
    if labels.size and int(labels.min()) < 0:
        raise InputError(
            f"{where}: labels start at 0, got {_shown(int(labels.min()))} at position {int(labels.argmin())}."
        )
    if labels.size and int(labels.max()) >= MOST_CLASSES:
        raise InputError(
            f"{where}: label {_shown(int(labels.max()))} at position {int(labels.argmax())} is more than "
            f"{MOST_CLASSES:,} classes would have; labels are the positions of classes, from 0 on."
        )
    return labels.astype(np.int64)


def _shown(label: int) -> str:
    return f"{label:,}"[:60]


def listings(
    labels: Mapping[str, NDArray[np.int64]], known: Sequence[str] | None, named: Sequence[str] | None
) -> dict[str, Listing]:
    """Return split -> listing; classes without names are named by their numbers.

    Args:
        labels: Split -> label of each image.
        known: Class names that come with the images.
        named: Class names of the job.

    Raises:
        InputError: If a label is outside of the classes.
    """
    highest = max((int(found.max(initial=-1)) for found in labels.values()), default=-1)
    names = tuple(known) if known is not None else tuple(str(label) for label in range(highest + 1))
    limit = len(names) if known is not None else len(named or names)
    for split, found in labels.items():
        if found.size and int(found.max()) >= limit:
            raise InputError(
                f"split {split!r}: label {int(found.max())} at position {int(found.argmax())} is outside of the "
                f"{limit} classes 0 to {limit - 1}; correct the label or the list of classes."
            )
    return {
        split: Listing(
            num=len(found),
            class_names=names,
            absent=tuple(names[label] for label in np.setdiff1d(np.arange(len(names)), found).tolist()),
            is_numbered=known is None,
        )
        for split, found in labels.items()
    }


def unlabelled(counts: Mapping[str, int]) -> dict[str, Listing]:
    """Return split -> listing for data without labels: a number of images, and no classes."""
    return {split: Listing(num=num, class_names=()) for split, num in counts.items()}
