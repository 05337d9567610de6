"""Final feature matching: the map is trained to give the target's last features (Mai et al. 2026)."""

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.protocol import About
from stitchgrid.matchers.stitchers.following import Following


class FinalFeature(Following[TrainingParams]):
    """||h - g||^2 at the last cut before the scores, over ||g||^2 on the fit images. No labels are read."""

    layers = "last"
    about = About(
        kind="final_feature",
        family="stitcher",
        summary="affine map trained on the target's last features before its scores (FFM)",
        source="Mai et al. 2026",
        use=(
            "Final feature matching (FFM) is like `soft_label`, but for the target's last features instead of its "
            "scores."
        ),
        bias="only the last features are followed: what lies before them may leave the target's distribution",
        not_when="the target's last cut is the stitch itself: there is nothing behind it to follow",
        params=TrainingParams,
        metrics=OF_STITCHERS,
        score="agreement",
        is_trained=True,
    )
