"""Writes the generated parts of the pages again: `python -m stitchgrid.manual`."""

from stitchgrid.manual import FOLDER, TOPICS, page
from stitchgrid.manual.generated import filled

for topic in TOPICS:
    (FOLDER / f"{topic}.md").write_text(filled(page(topic)), encoding="utf-8")
