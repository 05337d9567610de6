"""Share of the nearest neighbours that two layers have in common (Huh et al. 2024)."""

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


class MutualKNN(GramIndex[NeighbourParams, "Neighbours"]):
    """The mean over images of |A & B| / k, A and B the image's k nearest others in either layer, in [0, 1].

    Nearness is the cosine of flattened features, not centred. An image is not its own neighbour; of equally near images
    the first are taken. NaN if all images of a layer are equally near.
    """

    reads_rows = True
    reads_distances = True
    operations_per_pair_of_images = 1200.0
    about = About(
        kind="mutual_knn",
        family="index",
        summary="share of the k nearest neighbours in common, by the cosine of flattened layers",
        source="Huh et al. 2024",
        use="It shows whether images have the same nearest neighbours, as in studies across very different networks.",
        bias="for unrelated rows it is about k / (N - 1), not 0: compare it with the value for shuffled rows",
        not_when=(
            "many images are alike, or more than the nearest neighbours should count: it ignores all other distances"
        ),
        params=NeighbourParams,
        metrics=(Metric(name="mutual_knn", better="higher", bounds=UNIT),),
        score="mutual_knn",
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
        """Return `mutual_knn` of each pair."""
        from stitchgrid.matchers.neighbours import shared_counts

        return {"mutual_knn": shared_counts(pairs).mean(1) / self.params.k}

    def prepared_bytes(self, num_images: int) -> int:
        """Return the size of the positions, and of the booleans."""
        return (8 * self.params.k + num_images) * num_images
