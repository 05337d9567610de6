"""Final feature matching, Mai et al. 2026."""

from stitchgrid.reference.stitchers.following import Follows


class FollowsLastFeatures(Follows):
    """The last features of g before its scores."""

    def compared(self) -> list[str]:
        """Return the last node before the scores that can be stitched; the stitch where none lies behind it."""
        order, end = [cut.node for cut in self.network.cuts], self.network.logits
        able = [cut.node for cut in self.network.cuts if cut.can_be_stitched and cut.node != end]
        return [able[-1] if able and order.index(able[-1]) > order.index(self.node) else self.node]


final_feature = FollowsLastFeatures
