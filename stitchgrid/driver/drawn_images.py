"""The images that a job draws, in drawn order, with their ids: for users who compute activations with other tools."""

from pathlib import Path

import pyarrow as pa

from stitchgrid.datasets.images import Images, Origin, Split
from stitchgrid.jobfile import Job
from stitchgrid.printable import printable
from stitchgrid.resolve import open_job_images

IMAGES = pa.schema(
    [
        ("role", pa.string()),  # fit or eval
        ("drawn", pa.int64()),  # position in drawn order, within the role
        ("split", pa.string()),
        ("listed", pa.int64()),  # position in the sorted listing of the split
        ("id", pa.string()),  # its path, where it has one, else its position in the listing
        ("label", pa.string()),  # name of its class; NULL without labels
    ]
)


def list_images(job: Job, *, cache: Path | None = None) -> pa.Table:
    """Return the images that a job draws, one row each, those of `fit` first: the columns of `IMAGES`.

    `fit` has as many images as any matcher or recipe of the job looks at.

    Raises:
        InputError: If the images cannot be read.
    """
    images = open_job_images(job, cache=cache)
    parts = zip(("fit", "eval"), (images.fit, images.eval), images.origins, strict=True)
    return pa.concat_tables([_listed(role, split, origin, images) for role, split, origin in parts])


def _listed(role: str, split: Split, origin: Origin, images: Images) -> pa.Table:
    names, places = origin.names(), split.places.tolist()
    labels = split.labels.tolist()
    columns = {
        "role": [role] * split.num,
        "drawn": list(range(split.num)),
        "split": [origin.split] * split.num,
        "listed": places,
        "id": [printable(names[place]) if len(names) else str(place) for place in places],
        "label": [images.class_names[label] if images.class_names else None for label in labels],
    }
    return pa.Table.from_pydict(columns, schema=IMAGES)
