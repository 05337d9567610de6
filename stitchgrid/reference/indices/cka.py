"""Linear CKA, Kornblith et al. 2019."""

from torch import Tensor

from stitchgrid.reference.arithmetic import ratio

READS = "flattened"


def cka(x_ND: Tensor, y_NE: Tensor) -> dict[str, float]:
    """Return <K, L> / (||K|| ||L||) of the centred Gram matrices."""
    grams = [(rows - rows.mean(0)) @ (rows - rows.mean(0)).mT for rows in (x_ND, y_NE)]
    norms = [gram.square().sum().sqrt().item() for gram in grams]
    return {"cka": ratio((grams[0] * grams[1]).sum().item(), norms[0] * norms[1])}
