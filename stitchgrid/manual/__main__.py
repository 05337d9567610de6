"""Writes what pages and measures take from the code again: `python -m stitchgrid.manual`."""

from stitchgrid.manual.generated import FILES, filled

for file in FILES:
    file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
