"""Notices for the user about the images that were opened."""

from collections import Counter
from collections.abc import Mapping

from stitchgrid.datasets.images import ImagePool, Listing
from stitchgrid.printable import first_few

SHOWN = 5  # names of classes, and kinds of files, in a sentence


def notices(pools: Mapping[str, ImagePool]) -> tuple[str, ...]:
    """Return sentences on everything unusual: classes without images, files left out, remarks on reading."""
    found = []
    for split, pool in pools.items():
        found += [*_absent(split, pool.listing), *_left_out(split, pool.listing)]
        found += [f"split {split!r}: {remark}" for remark in pool.remarks]
    return tuple(found)


def _absent(split: str, listing: Listing) -> list[str]:
    names = listing.absent
    if not names:
        return []
    counts = f"{len(names)} of {len(listing.class_names)} classes"
    return [f"split {split!r} has no images of {counts}: {first_few(names, SHOWN)}"]


def _left_out(split: str, listing: Listing) -> list[str]:
    kinds = Counter(dict(listing.left_out)).most_common()
    if not kinds:
        return []
    num = sum(count for _, count in kinds)
    rest = sum(count for _, count in kinds[SHOWN:])
    shown = [f"{count} {kind}" for kind, count in kinds[:SHOWN]] + ([f"{rest} others"] if rest else [])
    return [f"split {split!r}: {num} file{'s' * (num != 1)} left out: {', '.join(shown)}"]
