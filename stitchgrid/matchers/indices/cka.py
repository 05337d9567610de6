"""Linear centred kernel alignment of flattened layers (Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import UNIT, Metric
from stitchgrid.matchers.params import NoParams
from stitchgrid.matchers.protocol import UP_TO_ROTATION, About, GramIndex

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.matchers.gram import Gram

    Prepared = tuple[Tensor, Tensor]

BLOCK_NUMBERS = 1 << 30  # of a Gram matrix, multiplied with those of another at a time
MOST_IMAGES = 1_000  # by default: n x n matrices grow with the square of their number


class CKA(GramIndex[NoParams, "Prepared"]):
    """<K, L> / (||K|| ||L||) of the centred n x n Gram matrices K and L, biased.

    It lies in [0, 1], is 1 for equal matrices, and NaN if a layer does not vary. It compares whole activations: the CKA
    of position rows is a different number, and so is the mean over batches.
    """

    about = About(
        kind="cka",
        family="index",
        summary="linear centred kernel alignment, biased, of flattened layers",
        source="Kornblith et al. 2019",
        use="The index that most papers report.",
        bias=(
            "with N below D it is well above 0 for unrelated rows (0.91 for independent noise of 1,000 features in 100 "
            "images); `cka_unbiased` is not"
        ),
        not_when=(
            "images are few and layers wide: use `cka_unbiased`; or where a few directions or outliers carry nearly "
            "all of the variance: they decide the value"
        ),
        metrics=(Metric(name="cka", better="higher", bounds=UNIT),),
        score="cka",
        symmetric=True,
        invariances=(UP_TO_ROTATION, UP_TO_ROTATION),
        most_images=MOST_IMAGES,
    )

    def prepare(self, gram: Gram) -> Prepared:
        """Return the centred Gram matrix with its norm."""
        import torch

        return gram.centred_NN, torch.linalg.norm(gram.centred_NN)

    def compare(self, pairs: Sequence[tuple[Prepared, Prepared]]) -> dict[str, Tensor]:
        """Return `cka` of each pair."""
        import torch

        from stitchgrid.moments import within

        values = [inner_product(x_NN, y_NN) / (norm_x * norm_y) for (x_NN, norm_x), (y_NN, norm_y) in pairs]
        return {"cka": within(torch.stack(values), 0.0, 1.0)}


def inner_product(x_NN: Tensor, y_NN: Tensor) -> Tensor:
    """Return the sum of the products of two matrices' entries, in blocks since `torch.dot` takes 2^31 - 1 at most."""
    import torch

    blocks = zip(*(torch.split(gram_NN.flatten(), BLOCK_NUMBERS) for gram_NN in (x_NN, y_NN)), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in blocks]).sum()
