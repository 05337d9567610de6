"""From a job file (TOML) to a `Job`, or to one error that lists every problem in it. Imports no torch."""

from stitchgrid.jobfile.job import Job
from stitchgrid.jobfile.load import load_job
from stitchgrid.jobfile.parse import parse_job

__all__ = ["Job", "load_job", "parse_job"]
