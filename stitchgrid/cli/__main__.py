"""`python -m stitchgrid.cli` runs the command line."""

from stitchgrid.cli import main

main()
