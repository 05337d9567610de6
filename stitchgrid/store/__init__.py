"""The store: parts of rows, artefacts, sweeps, journal, in a folder in which nothing is edited in place."""

from stitchgrid.store.check import Finding, Report
from stitchgrid.store.collecting import Collected, Freed
from stitchgrid.store.compact import Compacted
from stitchgrid.store.damage import Damage
from stitchgrid.store.lease import Claim, LeaseError, is_fresh
from stitchgrid.store.merging import FromStore, Merged
from stitchgrid.store.outcomes import MadeWith, Outcomes
from stitchgrid.store.parts import PartRows
from stitchgrid.store.reading import MANY_PARTS
from stitchgrid.store.repair import Repair
from stitchgrid.store.requests import Request
from stitchgrid.store.store import Store
from stitchgrid.store.sweeps import StoredPlan

__all__ = [
    "MANY_PARTS",
    "Claim",
    "Collected",
    "Compacted",
    "Damage",
    "Finding",
    "Freed",
    "FromStore",
    "LeaseError",
    "MadeWith",
    "Merged",
    "Outcomes",
    "PartRows",
    "Repair",
    "Report",
    "Request",
    "Store",
    "StoredPlan",
    "is_fresh",
]
