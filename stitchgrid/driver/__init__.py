"""Job -> finished sweep: joins the stages, follows them, and says beforehand what they would cost."""

from stitchgrid.driver.launch import Launch, Summary, Where
from stitchgrid.driver.preview import preview

__all__ = ["Launch", "Summary", "Where", "preview"]
