"""A job file (TOML) -> a `Job`, or one error that lists every problem in it. No torch here."""

from stitchgrid.jobfile.job import Job
from stitchgrid.jobfile.load import load_job
from stitchgrid.jobfile.parse import parse_job

__all__ = ["Job", "load_job", "parse_job"]
