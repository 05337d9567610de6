"""From a job to a finished sweep: runs the stages of a launch, shows their progress, and estimates their cost."""

from stitchgrid.cluster.placement import Placement
from stitchgrid.driver.launch import Launch, Summary
from stitchgrid.driver.preview import preview
from stitchgrid.driver.revision import check_same_code

__all__ = ["Launch", "Placement", "Summary", "check_same_code", "preview"]
