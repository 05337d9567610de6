"""Functional latent alignment, Athanasiadis et al. 2025."""

from stitchgrid.models.select import later_blocks
from stitchgrid.reference.stitchers.following import Follows


class FollowsLaterBlocks(Follows):
    """The activations of g at the stitch and at all later blocks."""

    def compared(self) -> list[str]:
        """Return the nodes of the stitch and of all later blocks."""
        return [self.node, *later_blocks(self.network, self.node)]


functional_alignment = FollowsLaterBlocks
