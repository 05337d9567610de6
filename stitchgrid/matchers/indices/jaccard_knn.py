"""Jaccard similarity of the nearest neighbours in two layers (Schumacher et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.indices.cka import MOST_IMAGES
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NeighbourParams
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, GramIndex

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.gram import Gram
    from stitchgrid.matchers.neighbours import Neighbours


class JaccardKNN(GramIndex[NeighbourParams, "Neighbours"]):
    """The mean over images of |A & B| / |A | B|, A and B the image's k nearest others in either layer, in [0, 1].

    Nearness is the cosine of flattened features, not centred. An image is not its own neighbour; of equally near images
    the first are taken. NaN if all images of a layer are equally near.
    """

    reads_rows = True
    reads_distances = True
    operations_per_pair_of_images = 1500.0
    about = About(
        kind="jaccard_knn",
        family="index",
        summary="overlap of the k nearest neighbours (Jaccard), by the cosine of flattened layers",
        source="Schumacher et al. 2021; Klabunde et al. 2025",
        use="The same neighbours as `mutual_knn`, counted as intersection over union, so it is never higher.",
        bias="for unrelated rows it is below k / (N - 1), but not 0: compare it with the value for shuffled rows",
        not_when=(
            "many images are alike, or more than the nearest neighbours should count: it ignores all other distances"
        ),
        params=NeighbourParams,
        metrics=(Metric(name="jaccard_knn", better="higher", bounds=UNIT),),
        score="jaccard_knn",
        symmetric=True,
        invariances=(UP_TO_ROTATION - {"shift"}, UP_TO_ROTATION - {"shift"}),
        most_images=MOST_IMAGES,
        fewest_images=NeighbourParams().k + 2,
    )

    @property
    def fewest_images(self) -> int:
        """One image more than k neighbours and the image itself; else all neighbours would be in common."""
        return self.params.k + 2

    def prepare(self, gram: Gram) -> Neighbours:
        """Return each image's nearest others."""
        from stitchgrid.matchers.neighbours import neighbours_of

        return neighbours_of(gram, self.params.k)

    def compare(self, pairs: Sequence[tuple[Neighbours, Neighbours]]) -> dict[str, Tensor]:
        """Return `jaccard_knn` of each pair."""
        from stitchgrid.matchers.neighbours import shared_counts

        shared_BN = shared_counts(pairs)
        return {"jaccard_knn": (shared_BN / (2 * self.params.k - shared_BN)).mean(1)}

    def prepared_bytes(self, num_images: int) -> int:
        """Return the size of the positions, and of the booleans."""
        return (8 * self.params.k + num_images) * num_images
