"""From a parsed TOML table to a `Job`, or to all problems in it at once."""

from stitchgrid.jobfile.parse.job import parse_job, read_job

__all__ = [
    "parse_job",
    "read_job",
]
