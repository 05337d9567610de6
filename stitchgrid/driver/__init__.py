"""Job -> finished sweep: joins the stages, follows them, and says beforehand what they would cost."""

from stitchgrid.driver.launch import Launch, Summary
from stitchgrid.driver.preview import preview
from stitchgrid.driver.revision import check_same_code
from stitchgrid.driver.where import Where

__all__ = ["Launch", "Summary", "Where", "check_same_code", "preview"]
