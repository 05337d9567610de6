"""The store: parts of rows, artefacts, sweeps, journal, in a folder in which nothing is edited in place."""

from stitchgrid.store.cell_status import CellStatus, MadeWith
from stitchgrid.store.check import FileFinding, Report
from stitchgrid.store.compact import Compacted
from stitchgrid.store.damage import Damage
from stitchgrid.store.garbage_collection import Collected, Freed
from stitchgrid.store.lease import Claim, LeaseError, is_fresh
from stitchgrid.store.parts import PartRows
from stitchgrid.store.reading import MANY_PARTS
from stitchgrid.store.recompute_requests import RecomputeRequest
from stitchgrid.store.repair import Repair
from stitchgrid.store.store import Store
from stitchgrid.store.store_merge import FromStore, Merged
from stitchgrid.store.sweeps import StoredPlan

__all__ = [
    "MANY_PARTS",
    "CellStatus",
    "Claim",
    "Collected",
    "Compacted",
    "Damage",
    "FileFinding",
    "Freed",
    "FromStore",
    "LeaseError",
    "MadeWith",
    "Merged",
    "PartRows",
    "RecomputeRequest",
    "Repair",
    "Report",
    "Store",
    "StoredPlan",
    "is_fresh",
]
