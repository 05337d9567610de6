"""Functional latent alignment: the map is trained on all later blocks of the target (Athanasiadis et al. 2025)."""

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.protocol import About
from stitchgrid.matchers.stitchers.following import Following


class FunctionalAlignment(Following[TrainingParams]):
    """||h_l - g_l||^2 over ||g_l||^2 on the fit images, the mean over the stitch and all later blocks; no labels.

    The idea is that of arXiv:2505.20142; here all layers weigh the same. The scores are left out.
    """

    layers = "later"
    about = About(
        kind="functional_alignment",
        family="stitcher",
        summary="affine map trained on the stitch and all later blocks of the target (FuLA)",
        source="Athanasiadis et al. 2025",
        use=(
            "Functional alignment (FuLA) follows the target in the stitch and in all later blocks, all of equal "
            "weight, so that it cannot take a path through the target that the target itself never takes."
        ),
        bias="none is known",
        not_when="its values are compared with the authors' numbers: their weights of the layers were not available",
        params=TrainingParams,
        metrics=OF_STITCHERS,
        score="agreement",
        is_trained=True,
    )
