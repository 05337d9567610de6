"""`python -m stitchgrid.cli` is the command line too."""

from stitchgrid.cli import main

main()
