"""Centred kernel alignment with Gaussian kernels (Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stitchgrid.matchers.indices.cka import MOST_IMAGES, inner_product
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import Params
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, GramIndex

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.gram import Gram

    Prepared = tuple[Tensor, Tensor]


class KernelParams(Params):
    """Width of the kernels."""

    bandwidth: float = Field(default=0.5, gt=0)
    """width of the kernels, in roots of the median squared distance"""


class CKARBF(GramIndex[KernelParams, "Prepared"]):
    """CKA, biased, of the kernels exp(-||x - y||^2 / (2 b^2 m)), in [0, 1].

    b is the `bandwidth`, and m is each layer's median of the squared distances of all pairs of images i < j. NaN where
    m is 0: then at least half of the pairs are of equal images.
    """

    reads_distances = True
    operations_per_pair_of_images = 400.0
    about = About(
        kind="cka_rbf",
        family="index",
        summary="centred kernel alignment, biased, with Gaussian kernels of flattened layers",
        source="Kornblith et al. 2019",
        use="CKA that looks at neighbourhoods rather than at whole axes of variance.",
        bias="as `cka`: well above 0 for unrelated rows where N is small, more so for a narrow kernel",
        not_when=(
            "images are few, or you have no reason for one `bandwidth`: values of different bandwidths cannot be "
            "compared"
        ),
        params=KernelParams,
        metrics=(Metric(name="cka_rbf", better="higher", bounds=UNIT),),
        score="cka_rbf",
        symmetric=True,
        invariances=(UP_TO_ROTATION, UP_TO_ROTATION),
        most_images=MOST_IMAGES,
    )

    def prepare(self, gram: Gram) -> Prepared:
        """Return the centred kernel matrix with its norm, NaN where the median distance is 0."""
        import torch

        width = 2 * self.params.bandwidth**2 * median_distance(gram.distances_NN)
        kernel_NN = torch.exp(-gram.distances_NN / torch.where(width > 0, width, torch.nan))
        mean_N = kernel_NN.mean(0)
        kernel_NN -= mean_N[:, None]
        kernel_NN -= mean_N - mean_N.mean()
        return kernel_NN, torch.linalg.norm(kernel_NN)

    def compare(self, pairs: Sequence[tuple[Prepared, Prepared]]) -> dict[str, Tensor]:
        """Return `cka_rbf` of each pair."""
        import torch

        from stitchgrid.moments import within

        values = [inner_product(x_NN, y_NN) / (norm_x * norm_y) for (x_NN, norm_x), (y_NN, norm_y) in pairs]
        return {"cka_rbf": within(torch.stack(values), 0.0, 1.0)}

    def prepared_bytes(self, num_images: int) -> int:
        """Return the size of the kernel matrix."""
        return 8 * num_images**2


def median_distance(distances_NN: Tensor) -> Tensor:
    """Return the median over i < j; for an even number of distances, the mean of the two in the middle."""
    import torch

    from stitchgrid.matchers.gram import pairs_of_images

    distances_M = pairs_of_images(distances_NN)
    lower, upper = (len(distances_M) - 1) // 2 + 1, len(distances_M) // 2 + 1
    return torch.stack([distances_M.kthvalue(k).values for k in (lower, upper)]).mean()
