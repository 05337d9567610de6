"""Linear centred kernel alignment (Kornblith et al. 2019) of flattened layers.

Shape suffixes: N images, P features of a flattened layer (C*H*W, or tokens*D).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stitchgrid.moments import NOT_FINITE, exact_mean

BLOCK_FEATURES = 4096  # columns multiplied at a time: bounds the float64 copy


def centred_gram(batches: Sequence[Tensor]) -> Tensor:
    """Return the (N, N) float64 Gram matrix of the rows of all batches, features centred over the N images.

    Features are centred in float64 before the products are taken: the square root of a rounded self-product of
    uncentred float32 features may be that of a negative number. Products of centred features are taken in the batches'
    own precision, a block of features at a time, and summed in float64.

    >>> centred_gram([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])]).diagonal().tolist()
    [4.0, 0.0, 4.0]
    """
    num_images, num_features = sum(len(batch) for batch in batches), batches[0].shape[1]
    gram_NN = torch.zeros(num_images, num_images, dtype=torch.float64, device=batches[0].device)
    for start in range(0, num_features, BLOCK_FEATURES):
        block_NP = torch.cat([batch[:, start : start + BLOCK_FEATURES] for batch in batches])
        exact_NP = block_NP.double()
        centred_NP = (exact_NP - exact_mean(exact_NP)).to(block_NP.dtype)
        gram_NN += (centred_NP @ centred_NP.mT).double()
    return gram_NN


def cka(gram_x_NN: Tensor, gram_y_NN: Tensor) -> float:
    """Return the biased linear CKA of two layers from their centred Gram matrices: 1 for equal ones, in [0, 1].

    NaN where a layer does not vary. It is a number about whole activations: the CKA of position rows is another one,
    and the mean over batches a third. It grows as the number of images falls.

    Raises:
        ValueError: If an activation was infinite or NaN.
    """
    norms = torch.linalg.norm(gram_x_NN) * torch.linalg.norm(gram_y_NN)
    if not torch.isfinite(norms):
        raise ValueError(f"cka needs finite activations, got inf or NaN; {NOT_FINITE}.")
    return float(torch.sum(gram_x_NN * gram_y_NN) / norms)
