from stitchgrid import errors as errors
from stitchgrid.api import measures as measures
from stitchgrid.api.comparison import compare as compare
from stitchgrid.api.launches import images as images
from stitchgrid.api.launches import launch as launch
from stitchgrid.api.launches import plan as plan
from stitchgrid.api.launches import resume as resume
from stitchgrid.api.runs import Grid as Grid
from stitchgrid.api.runs import Run as Run
from stitchgrid.api.runs import open as open

__version__: str
__all__: list[str]
