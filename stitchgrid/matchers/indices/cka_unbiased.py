"""Linear centred kernel alignment from the unbiased estimate of HSIC (Song et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.indices.cka import MOST_IMAGES, inner_product
from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, GramIndex

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.gram import Gram

    Prepared = tuple[Tensor, Tensor]


class CKAUnbiased(GramIndex[NoParams, "Prepared"]):
    """<K, L> / (||K|| ||L||) of the U-centred Gram matrices K and L, in [-1, 1].

    1 for equal layers, about 0 for independent ones even with few images; negative values are kept. NaN where a layer
    does not vary, or varies in a single image, so that its U-centred matrix is 0. It is computed over all images: the
    mean over batches, which other code computes, depends on the batch size.
    """

    operations_per_pair_of_images = 80.0
    about = About(
        kind="cka_unbiased",
        family="index",
        summary="linear centred kernel alignment, unbiased and signed, of flattened layers",
        source="Song et al. 2012; Nguyen et al. 2021",
        use=(
            "The index to begin with: layers that have nothing to do with each other get about 0, however few the "
            "images."
        ),
        bias="the HSIC estimates have none; their ratio may have a little, and may be below 0 for unrelated rows",
        not_when=(
            "directions of small variance matter: like all kinds of CKA it depends on those of large variance; nor "
            "where rows are few: its values then scatter widely"
        ),
        metrics=(Metric(name="cka_unbiased", better="higher", bounds=(-1.0, 1.0), ends=UNIT),),
        score="cka_unbiased",
        symmetric=True,
        invariances=(UP_TO_ROTATION, UP_TO_ROTATION),
        most_images=MOST_IMAGES,
        fewest_images=4,
    )

    def prepare(self, gram: Gram) -> Prepared:
        """Return the U-centred Gram matrix with its norm, NaN where that is 0 up to rounding."""
        import torch

        centred_NN = u_centred(gram.centred_NN)
        norm, whole = torch.linalg.norm(centred_NN), torch.linalg.norm(gram.centred_NN)
        return centred_NN, torch.where(norm > 2 * gram.rounding * whole, norm, torch.nan)

    def compare(self, pairs: Sequence[tuple[Prepared, Prepared]]) -> dict[str, Tensor]:
        """Return `cka_unbiased` of each pair."""
        import torch

        from stitchgrid.moments import within

        values = [inner_product(x_NN, y_NN) / (norm_x * norm_y) for (x_NN, norm_x), (y_NN, norm_y) in pairs]
        return {"cka_unbiased": within(torch.stack(values), -1.0, 1.0)}

    def prepared_bytes(self, num_images: int) -> int:
        """Return the size of the U-centred matrix."""
        return 8 * num_images**2


def u_centred(gram_NN: Tensor) -> Tensor:
    """Return the U-centred matrix (Szekely & Rizzo 2014): its diagonal is 0, and all rows and columns sum to 0.

    <K, L> of two U-centred matrices is n (n - 3) times the unbiased HSIC. The given Gram matrix may be centred or not:
    U-centring removes what centring the features adds to row i and column i.
    """
    num_images = len(gram_NN)
    hollow_NN = gram_NN.clone().fill_diagonal_(0.0)
    sums_N = hollow_NN.sum(0)
    shares_N = (sums_N - sums_N.sum() / (2 * (num_images - 1))) / (num_images - 2)
    hollow_NN -= shares_N[:, None]
    hollow_NN -= shares_N
    return hollow_NN.fill_diagonal_(0.0)
