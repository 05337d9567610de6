"""A parsed TOML table -> a `Job`, or every problem in it at once."""

from stitchgrid.jobfile.parse.job import parse_job, read_job

__all__ = [
    "parse_job",
    "read_job",
]
