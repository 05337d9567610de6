"""Job -> sweep: networks are built once, cut and hashed, images are drawn; one error names every problem."""

from stitchgrid.resolve.artefacts import Anew, ArtefactReader, not_made
from stitchgrid.resolve.images import open_job_images, open_outliers
from stitchgrid.resolve.keys import EVALUATION_REVISION, detector_key, network_id, training_key, twin_images
from stitchgrid.resolve.loading import check_fingerprint, load_network
from stitchgrid.resolve.sweep import Resolution, resolve

__all__ = [
    "EVALUATION_REVISION",
    "Anew",
    "ArtefactReader",
    "Resolution",
    "check_fingerprint",
    "detector_key",
    "load_network",
    "network_id",
    "not_made",
    "open_job_images",
    "open_outliers",
    "resolve",
    "training_key",
    "twin_images",
]
