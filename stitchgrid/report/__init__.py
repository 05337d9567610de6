"""The report on a sweep's networks and matchers: verdicts, tables and figures, on one page or in Markdown."""

from stitchgrid.report.report import render_report

__all__ = ["render_report"]
