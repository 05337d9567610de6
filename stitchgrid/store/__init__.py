"""The store: parts of rows, artefacts, sweeps, journal, in a folder in which nothing is edited in place."""

from stitchgrid.store.lease import Claim, LeaseError, is_fresh
from stitchgrid.store.outcomes import Outcomes
from stitchgrid.store.parts import Damage, PartRows
from stitchgrid.store.store import Store
from stitchgrid.store.sweeps import StoredPlan

__all__ = ["Claim", "Damage", "LeaseError", "Outcomes", "PartRows", "Store", "StoredPlan", "is_fresh"]
