"""The extracts of a snapshot: for every sweep the rows of its cells, tier by tier, and its cells with their status."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage, DamagedFileError
from stitchgrid.store.duplicates import Numbers
from stitchgrid.store.id_hashes import id_hashes, meet
from stitchgrid.store.layout import EXTRACTS
from stitchgrid.store.result_tables import results_of, states_of
from stitchgrid.store.row_status import COLUMNS
from stitchgrid.store.schemas import PART, RESULTS, TEXT, no_rows
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.sweeps import StoredPlan, Sweeps
from stitchgrid.store.tiers import Extract, Snapshot, Tier

CELLS_AT_ONCE = 400_000  # of plans held at a time: bounds the memory


class MaterializedViews:
    """Makes the extracts that a snapshot lacks."""

    def __init__(self, snapshots: Snapshots, number: int):
        self.snapshots, self.number = snapshots, number
        self.damaged: list[Damage] = []
        self.written: list[str] = []
        self._of_tiers: dict[str, Numbers] = {}  # hashes of cells, by the file of ids
        self._of_plans: dict[str, Numbers] = {}  # by sweep
        self._stamps: dict[str, tuple[int, str]] = {}  # of the sweeps with a plan
        self._here = {f"{EXTRACTS}/{name}" for name in snapshots.files.names(EXTRACTS)}

    def make(
        self, tiers: Sequence[Tier], previous: Snapshot, touched: Sequence[Numbers] | None
    ) -> tuple[list[Tier], dict[str, Extract]]:
        """Return the tiers with the extracts of their rows, and the extracts of the sweeps' cells.

        `touched` are hashes of the cells that got rows since the previous snapshot; None: rows were lost, and it is not
        known which.
        """
        found = {}
        looked_at: set[str] = set()
        for plans in self._plans(list(tiers), previous, touched is None or bool(touched)):
            tiers = [self._with_results(tier, plans) for tier in tiers]
            for sweep, plan in plans.items():
                known = previous.cells.get(sweep)
                if known and self._is_current(known, sweep) and touched is not None and not self._any(touched, plan):
                    found[sweep] = known
                else:
                    found[sweep] = self._states(plan, tiers)
            looked_at |= plans.keys()
            plans.clear()  # before the next ones are read
            self._of_plans.clear()
        for sweep, one in previous.cells.items():
            if sweep not in looked_at and self._is_known(sweep):
                found[sweep] = one
        found = {sweep: one for sweep, one in found.items() if all(sweep in tier.results for tier in tiers)}
        return [replace(tier, results={s: tier.results[s] for s in found}) for tier in tiers], found

    def _plans(self, tiers: Sequence[Tier], previous: Snapshot, is_touched: bool) -> Iterator[dict[str, StoredPlan]]:
        """Yield the latest plan of every sweep with extracts that are, or may be, missing or stale; some at a time."""
        sweeps = Sweeps(self.snapshots.files)
        plans: dict[str, StoredPlan] = {}
        for sweep in sweeps.names():
            try:
                stamp = sweeps.stamp(sweep)
                extracts = [previous.cells.get(sweep), *(tier.results.get(sweep) for tier in tiers)]
                if stamp is None:
                    continue
                self._stamps[sweep] = stamp
                if not is_touched and all(self._is_current(one, sweep) for one in extracts):
                    continue
                if plan := sweeps.read_plan(sweep, stamp[0]):
                    plans[sweep] = plan
            except StoreError as problem:
                self.damaged.append(Damage(file=f"sweeps/{sweep}", reason=str(problem)))
            if sum(one.cells.num_rows for one in plans.values()) >= CELLS_AT_ONCE:
                yield plans
                plans = {}
        yield plans

    def _is_current(self, extract: Extract | None, sweep: str) -> bool:
        return extract is not None and extract.is_current(self._stamps.get(sweep), self._here)

    def _is_known(self, sweep: str) -> bool:
        return Sweeps(self.snapshots.files).latest_plan(sweep) is not None

    def _with_results(self, tier: Tier, plans: Mapping[str, StoredPlan]) -> Tier:
        stale = [plan for sweep, plan in plans.items() if not self._is_current(tier.results.get(sweep), sweep)]
        if not stale:
            return tier
        met = {plan.sweep for plan in stale if meet(self._of_tier(tier), self._of_plan(plan))}
        rows = self._rows(tier, PART.names) if met else None
        made = {}
        for plan in stale:
            is_met = rows is not None and plan.sweep in met
            made[plan.sweep] = self._write(
                plan, results_of(plan.sweep, plan.cells, rows) if is_met else RESULTS.empty_table()
            )
        return replace(tier, results={**tier.results, **made})

    def _states(self, plan: StoredPlan, tiers: Sequence[Tier]) -> Extract:
        ids = pc.unique(plan.cells["cell_id"])
        tables = [no_rows(COLUMNS)]
        for tier in tiers:
            if meet(self._of_tier(tier), self._of_plan(plan)):
                rows = self._rows(tier, COLUMNS)
                tables.append(rows.filter(pc.is_in(rows["cell_id"].cast(TEXT), value_set=ids)))
        rows = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        return self._write(plan, states_of(plan.sweep, plan.cells, rows))

    def _of_tier(self, tier: Tier) -> Numbers:
        """Return the hashes of the cells of a tier."""
        if tier.ids not in self._of_tiers:
            self._of_tiers[tier.ids] = id_hashes(self.snapshots.ids(tier))
        return self._of_tiers[tier.ids]

    def _of_plan(self, plan: StoredPlan) -> Numbers:
        """Return the hashes of the cells of a plan."""
        if plan.sweep not in self._of_plans:
            self._of_plans[plan.sweep] = id_hashes(plan.cells["cell_id"])
        return self._of_plans[plan.sweep]

    def _any(self, touched: Sequence[Numbers], plan: StoredPlan) -> bool:
        return any(meet(some, self._of_plan(plan)) for some in touched)

    def _rows(self, tier: Tier, columns: Sequence[str]) -> pa.Table:
        try:
            return self.snapshots.rows(tier, columns)
        except (DamagedFileError, StoreError) as problem:
            self.damaged.append(Damage(file=tier.file, reason=str(problem)))
            return no_rows(columns)

    def _write(self, plan: StoredPlan, table: pa.Table) -> Extract:
        name = self.snapshots.write_extract(self.number, table)
        self.written.append(name)
        self._here.add(name)
        return Extract(revision=plan.revision, file=name, plan=self._stamps[plan.sweep][1])
