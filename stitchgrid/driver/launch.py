"""One launch: from a job to a finished sweep, stage by stage, without what the store already holds."""

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from stitchgrid.cluster import require_place
from stitchgrid.cluster.placement import Placement
from stitchgrid.datasets import Images
from stitchgrid.display import Display
from stitchgrid.driver.heartbeat import Heartbeat
from stitchgrid.driver.missing_artefacts import artefact_keys, units_before
from stitchgrid.driver.network_remarks import network_remarks, problem_of
from stitchgrid.driver.preview import damage_notices, evidence_told, geometry_notices, matcher_lines
from stitchgrid.driver.recompute import Recomputation, recomputation
from stitchgrid.driver.refused_networks import refusal, refused_by, without_refused
from stitchgrid.driver.revision import HeldCode, check_same_cells, check_same_code, code_record
from stitchgrid.driver.shutdown import Shutdown
from stitchgrid.driver.stages import Stages
from stitchgrid.driver.sweep_tables import cell_table, layer_table, model_table, probe_table
from stitchgrid.errors import StitchgridError, StoreError, UnseenError
from stitchgrid.jobfile import Job
from stitchgrid.matchers.describe import as_record
from stitchgrid.matchers.registry import MATCHERS, stored_metrics_of
from stitchgrid.models.held import holding_cuts, let_go
from stitchgrid.models.user_code import staged
from stitchgrid.planning import Plan, make_plan
from stitchgrid.profiling.assumed_speed import KEY, planned_speed, speed_there
from stitchgrid.records import Unit
from stitchgrid.resolve import Resolution, not_made, open_job_images, resolve
from stitchgrid.rows import lost_rows
from stitchgrid.store import Damage, LeaseError, Store

U = TypeVar("U", bound=Unit)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a launch."""

    sweep: str
    num_cells: int
    num_done: int  # cells that have all their metrics in the store now
    num_computed: int  # cells that this launch gave values
    failures: dict[str, int]  # reason -> number of cells without values
    seconds: float


class Launch:
    """One launch of one job on one store."""

    def __init__(self, job: Job, store: Store, where: Placement, display: Display, *, cache: Path | None = None):
        self.job, self.store, self.where, self.display, self.cache = job, store, where, display, cache
        self.launch_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._exit = ExitStack()
        self._code: dict[str, Any] = {}  # the users' own code, as the store notes it
        self._shutdown = Shutdown(where.drain_seconds, display.say)
        self._again = Recomputation()
        self._left_out: tuple[Damage, ...] = ()  # files of the store that cannot be trusted

    def run(
        self,
        *,
        update: bool = False,
        retry_failed: bool = False,
        fail_fast: bool = False,
        force: bool = False,
        same_code: bool = False,
        wait: bool = False,
        recompute: Sequence[str] = (),
    ) -> Summary:
        """Compute what the store lacks, and compute again what `recompute` names: globs over matchers and models.

        Args:
            update: If the cells differ from those under the sweep's name, make them its next revision.
            retry_failed: Compute failed cells again.
            fail_fast: End the computation of cells at the first failure.
            force: Take the sweep over if another launch holds it.
            same_code: Run users' own code only if it is the code that the sweep was planned with.
            wait: If another launch holds the sweep, wait for its end.
            recompute: The globs; "all" matches everything.

        Raises:
            LeaseError: If another launch holds this sweep, or takes it over.
            KeyboardInterrupt: If a signal ended it; what was finished is kept.
            InputError: If a glob to recompute matches nothing.
            JobFileError: If the job cannot run, its code has changed, or the sweep's name stands for other cells and
                `update` is off.
            StitchgridError: If a network cannot be trained or measured.
        """
        start = perf_counter()
        with self._exit, self._shutdown.listening():
            if self.where.address == "local":
                self._require_place()  # an error before any work
            if self.where.address in (None, "none"):
                self._exit.enter_context(holding_cuts())
            if wait and not force:
                self.store.leases.wait_until_free(self.job.name, say=self.display.say)
            elif not force:
                self.store.leases.require_free(self.job.name, say=self.display.say)
            if update:
                self.store.require_next_revision(self.job.name)
            before = self.store.leases.last_number(self.job.name)
            self._again = recomputation(self.job, recompute, self.store)
            code = HeldCode(self.job)
            with code.running():
                if same_code:
                    check_same_code(self.store, self.job)
                images = open_job_images(self.job, cache=self.cache)
                resolution, plan = self._resolve(images, update=update, retry_failed=retry_failed)
                heartbeat = self._claim(force=force, wait=wait)
                if heartbeat.claim.number > before + 1:  # another launch came and went meanwhile
                    resolution, plan = self._resolve(images, update=update, retry_failed=retry_failed)
                self._settle(resolution, plan)
                self._again.note(self.store, self.job.name)
                package = self._stage_own_code(resolution)
            self._say_what_was_found(resolution)
            stages = Stages(
                self.job,
                self.store,
                self.display,
                launch_id=self.launch_id,
                on_exit=self._exit,
                shutdown=self._shutdown,
                heartbeat=heartbeat,
                placement=self.where,
                package=package,
                max_units=max(len(plan.shards), len(resolution.sweep.networks), len(resolution.detectors())),
                cache=self.cache,
            )
            revision = self._revision()
            if resolution.to_make:
                stages.prepare("making networks", resolution.to_make, resolution.sweep)
                with code.running():
                    resolution, plan = self._resolve(images, update=update, retry_failed=retry_failed)
            self._keep_fingerprints(resolution)
            sweep = resolution.sweep
            measured = self._measure(resolution, stages)
            remarks = self._say_remarks(resolution, measured)
            refused = {k: problem for k, found in enumerate(measured) if (problem := problem_of(found))}
            stages.make("probe", "probing layers", _without(resolution.probes(), refused), sweep)
            detectors = _without(resolution.detectors(), refused)
            stages.make("detector", "training detectors", detectors, sweep, noun="detectors")
            self._write_plan(revision, plan, resolution, measured, remarks)
            plan = self._leave_out(plan, refused)
            num_computed = stages.compute(plan, fail_fast=fail_fast) if plan.todo else 0
            self._again.settle(self.store, sweep, (cell for shard in plan.shards for cell in sweep.cells(shard)))
        return self._summary(plan, refused, num_computed, perf_counter() - start)

    def _resolve(self, images: Images, *, update: bool, retry_failed: bool) -> tuple[Resolution, Plan]:
        """Return the sweep and its plan, after a check that the sweep's name still stands for these cells."""
        anew, again = self._again.anew(self.job), self._again.of_cells
        resolution = resolve(self.job, images, self.store, cache=self.cache, update=update, anew=anew)
        speed = planned_speed(self.store, self.job.name, update=update) or self._speed
        done = self.store.cell_status()
        self._left_out = done.damaged
        plan = make_plan(resolution.sweep, done, retry_failed=retry_failed, again=again(resolution.sweep), speed=speed)
        check_same_cells(self.store, resolution.sweep, plan.shards, update=update or self._again.may_change(self.job))
        return resolution, plan

    @cached_property
    def _speed(self) -> float:
        return speed_there(self.job.numerics.device, self.where)

    def _settle(self, resolution: Resolution, plan: Plan) -> None:
        """Decide where to compute, if the user leaves that open."""
        if self.where.address is not None:
            return
        flops = plan.flops + sum(unit.flops for unit in units_before(resolution, plan, self.store))
        self.where = self.where.settled(flops / plan.speed)
        if self.where.address == "local":
            self._require_place()
            let_go()
        elif flops:
            self.display.say("small enough for this process; --address local has Ray compute it")

    def _require_place(self) -> None:
        """Require a folder for Ray's files, and say so if it is not the usual one."""
        if (told := require_place()) is not None:
            self.display.say(told)

    def _claim(self, *, force: bool, wait: bool) -> Heartbeat:
        """Claim the sweep for this launch, and return its heartbeat, which beats until the launch ends."""
        leases, say = self.store.leases, self.display.say
        while True:
            try:
                claim = leases.claim(self.job.name, self.launch_id, force=force, say=say)
                break
            except LeaseError:
                if not wait:
                    raise
                leases.wait_until_free(self.job.name, say=say)
        return self._exit.enter_context(Heartbeat(self.store, self.job.name, claim, on_lost=self._shutdown.stop))

    def _stage_own_code(self, resolution: Resolution) -> Path | None:
        """Record users' own code as it is now; return the folder of a copy for workers on other nodes, if any."""
        specs = [network.spec for network in resolution.sweep.networks]
        self._code = code_record(self.job, specs)
        return None if self.where.address == "none" else self._exit.enter_context(staged(specs))

    def _say_what_was_found(self, resolution: Resolution) -> None:
        sweep = resolution.sweep
        layers = sum(len(network.layers) for network in sweep.networks)
        self.display.say(
            f"{sweep.name}: {len(sweep.networks)} networks, {layers} layers, {len(sweep.matchers)} matchers; "
            f"{sweep.num_fit} fit and {sweep.num_eval} evaluation images"
        )
        for line in (*matcher_lines(sweep), *evidence_told(sweep).values()):
            self.display.say(f"  {line}")
        for notice in (*resolution.notices, *geometry_notices(sweep), *damage_notices(self._left_out)):
            self.display.say(notice)
        if resolution.num_bad_images:
            self.display.say(f"{resolution.num_bad_images} unreadable images were skipped")

    def _revision(self) -> int:
        """Return the number of the sweep's latest revision if it has this very job, else of a new revision with it."""
        revision = self.store.latest_revision(self.job.name)
        if revision is None or not self._is_job_of(revision):
            revision = self.store.write_job(self.job.name, self.job.to_dict())
        self.store.write_code(self.job.name, revision, self._code)
        return revision

    def _is_job_of(self, revision: int) -> bool:
        try:
            return self.store.read_job(self.job.name, revision) == self.job.to_dict()
        except UnseenError:
            raise
        except StoreError:  # a damaged revision stays as it is; the next one has the job
            return False

    def _keep_fingerprints(self, resolution: Resolution) -> None:
        """Store those fingerprints of networks that the store does not have yet.

        Raises:
            StitchgridError: If another launch has just stored another fingerprint under the same key.
        """
        for key, content in resolution.fingerprints.items():
            if not self.store.write_artefact("fingerprint", key, content) and (
                self.store.read_artefact("fingerprint", key) != content
            ):
                raise StitchgridError("another launch has just stored another fingerprint of a network; launch again.")

    def _measure(self, resolution: Resolution, stages: Stages) -> list[dict[str, Any]]:
        """Return the evaluation of each network, after proving and measuring those that the store has none of.

        A network that cannot be measured costs only its own cells.
        """
        units, sweep = resolution.evaluations(), resolution.sweep
        lost: dict[str, str] = {}
        if missing := not_made("evaluation", units, self.store):
            outcome = stages.run("proving networks", missing, sweep, fail_fast=False)
            lost = {loss.unit.unit_id: loss.reason for loss in (*outcome.failed, *outcome.quarantined)}
        found = []
        for unit in units:
            if unit.unit_id in lost or not self.store.has_artefact("evaluation", unit.unit_id):
                found.append({"problems": [lost.get(unit.unit_id, "it was not measured")]})
            else:
                found.append(json.loads(self.store.read_artefact("evaluation", unit.unit_id)))
        return found

    def _say_remarks(self, resolution: Resolution, measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Return the remarks on each network, and say them."""
        sweep = resolution.sweep
        remarks = [
            network_remarks(network, found, resolution.class_names, precision=sweep.precision)
            for network, found in zip(sweep.networks, measured, strict=True)
        ]
        for network, some in zip(sweep.networks, remarks, strict=True):
            for remark in some:
                self.display.say(f"{network.name}: {remark}")
        return remarks

    def _leave_out(self, plan: Plan, refused: Mapping[int, str]) -> Plan:
        """Return the plan without the cells of refused networks, and store an error for each of these."""
        left, lost = without_refused(plan, refused)
        for shard, reason in lost:
            rows = lost_rows(plan.sweep, shard, status="failed", reason=reason)
            self.store.write_part(shard.unit_id, list(rows))
        return left

    def _write_plan(
        self,
        revision: int,
        plan: Plan,
        resolution: Resolution,
        measured: Sequence[Mapping[str, Any]],
        remarks: Sequence[Sequence[str]],
    ) -> None:
        tables = {
            "cells": cell_table(plan.sweep, plan.shards),
            "models": model_table(plan.sweep, measured, remarks),
            "layers": layer_table(plan.sweep),
        }
        if resolution.probes():
            tables["probes"] = probe_table(plan.sweep, self._probes(resolution))
        stored = self.store.read_plan(self.job.name, revision)
        same_files = self.store.read_plan_info(self.job.name).get("own_data", {}) == self._code["own_data"]
        if stored is not None and not (same_files and stored.holds(**tables)):
            revision = self.store.write_job(self.job.name, self.job.to_dict())  # other weights, images, files or shards
        info = {
            "num_fit": plan.sweep.num_fit,
            "num_fit_closed": plan.sweep.num_fit_closed,
            "num_eval": plan.sweep.num_eval,
            "dataset": plan.sweep.data.dataset,
            "precision": plan.sweep.precision,
            "num_shards": len(plan.shards),
            KEY: plan.speed,
            "matchers": [as_record(MATCHERS[kind]) for kind in dict.fromkeys(s.kind for s in plan.sweep.matchers)],
            "artefacts": artefact_keys(resolution, self.store),
            "groups": plan.sweep.groups,
            "shuffles": plan.sweep.shuffles,
            **self._code,
        }
        self.store.write_plan(self.job.name, revision, **tables, info=info)

    def _probes(self, resolution: Resolution) -> list[dict[str, Any] | None]:
        """Return the stored probes of each network, None for a network that could not be probed."""
        return [
            json.loads(self.store.read_artefact("probe", unit.unit_id))
            if self.store.has_artefact("probe", unit.unit_id)
            else None
            for unit in resolution.probes()
        ]

    def _summary(self, plan: Plan, refused: Mapping[int, str], num_computed: int, seconds: float) -> Summary:
        """Return the outcome; a cell of a refused network counts as failed, even if the store has older values."""
        status = self.store.cell_status()
        failures: Counter[str] = Counter()
        num_done = 0
        for shard in plan.shards:
            for cell in plan.sweep.cells(shard):
                if (position := refused_by(cell, refused)) is not None:
                    failures[refusal(plan.sweep, position, refused)] += 1
                elif status.metrics_done(cell.cell_id).issuperset(stored_metrics_of(plan.sweep, cell)):
                    num_done += 1
                else:
                    failures[status.failed(cell.cell_id) or "not computed"] += 1
        return Summary(
            sweep=self.job.name,
            num_cells=plan.num_cells,
            num_done=num_done,
            num_computed=num_computed,
            failures=dict(failures.most_common()),
            seconds=seconds,
        )


def _without(units: Sequence[U], refused: Mapping[int, str]) -> list[U]:
    """Return the units that involve no refused network."""
    return [unit for unit in units if not unit.networks & refused.keys()]
