"""The stages of a launch: units of work given to workers, followed as they run."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from stitchgrid.cluster import Executor, Outcome, Progress, open_executor
from stitchgrid.cluster.placement import Placement
from stitchgrid.display import Display
from stitchgrid.driver.auto_compaction import AutoCompaction
from stitchgrid.driver.expected_time import expected_seconds
from stitchgrid.driver.heartbeat import Heartbeat
from stitchgrid.driver.progress import StageProgress
from stitchgrid.driver.shutdown import Shutdown
from stitchgrid.errors import StitchgridError
from stitchgrid.jobfile import Job
from stitchgrid.planning import Plan, split_shard
from stitchgrid.records import ProbeNetwork, Shard, Sweep, TrainDetector, Unit
from stitchgrid.resolve import not_made
from stitchgrid.rows import lost_rows
from stitchgrid.store import Store
from stitchgrid.worker import Worker


class Stages:
    """Runs the units of one launch, stage by stage, on workers that all stages share."""

    def __init__(
        self,
        job: Job,
        store: Store,
        display: Display,
        *,
        launch_id: str,
        on_exit: ExitStack,
        shutdown: Shutdown,
        heartbeat: Heartbeat,
        placement: Placement,
        package: Path | None,
        max_units: int,
        cache: Path | None,
    ):
        """Take what every stage needs.

        Args:
            job: The job.
            store: Where its results go.
            display: Where progress is shown.
            launch_id: The launch, for the journal.
            on_exit: Closes the workers at the end of the launch.
            shutdown: What signals do meanwhile.
            heartbeat: Tells what is going on.
            placement: Where to compute, with an address.
            package: The users' own code behind the networks, for workers on other nodes.
            max_units: Most units of a stage: more workers would have nothing to do.
            cache: Folder for images and weights; None: the usual one.
        """
        self.job, self.store, self.display, self.launch_id, self.cache = job, store, display, launch_id, cache
        self.on_exit, self.shutdown, self.heartbeat = on_exit, shutdown, heartbeat
        self.placement, self.package, self.max_units = placement, package, max_units
        self._executor: Executor | None = None

    def _workers(self) -> Executor:
        """Return the executor, started when the first stage needs it and kept for the next ones."""
        if self._executor is None:
            placement = self.placement
            factory = partial(
                Worker,
                store=self.store.uri,
                device=placement.device(self.job.numerics.device),
                threads=placement.threads,
                cache=self.cache,
                keeps_passes=placement.keeps_passes,
            )
            self._executor = self.on_exit.enter_context(
                open_executor(
                    placement.address or "local",
                    factory=factory,
                    workers=placement.workers,
                    cpus_per_worker=placement.cpus_per_worker,
                    gpus_per_worker=placement.gpus_per_worker,
                    max_units=self.max_units,
                    package=self.package,
                )
            )
        return self._executor

    def prepare(self, title: str, units: Sequence[Unit], sweep: Sweep, *, noun: str = "networks") -> None:
        """Run units that later stages need, every one of them.

        Raises:
            StitchgridError: If one of them failed.
        """
        outcome = self.run(title, units, sweep, noun=noun, fail_fast=True)
        lost = [*outcome.failed, *outcome.quarantined]
        if lost:
            raise StitchgridError(f"{title} failed: {lost[0].reason}")

    def run(
        self, title: str, units: Sequence[Unit], sweep: Sweep, *, noun: str = "networks", fail_fast: bool
    ) -> Outcome:
        """Run units that write one artefact each."""
        workers = self._workers()
        with self._observed(title, units, noun, num_done=0) as watch, self.shutdown.stopping(workers):
            return workers.run(
                units, sweep, on_event=watch.on_event, before_submit=watch.before_submit, fail_fast=fail_fast
            )

    def make(
        self,
        kind: str,
        title: str,
        units: Sequence[ProbeNetwork | TrainDetector],
        sweep: Sweep,
        *,
        noun: str = "networks",
    ) -> None:
        """Make those artefacts of a kind that the store lacks.

        Raises:
            StitchgridError: If one of them could not be made.
        """
        if missing := not_made(kind, units, self.store):
            self.prepare(title, missing, sweep, noun=noun)

    def compute(self, plan: Plan, *, fail_fast: bool) -> int:
        """Run the shards that are left; return the number of cells that got values."""

        def split(unit: Unit) -> tuple[Unit, Unit] | None:
            assert isinstance(unit, Shard)
            return split_shard(plan.sweep, unit)

        compaction = AutoCompaction(self.store, self.display.say)

        def on_event(event: Progress) -> None:
            watch.on_event(event)
            if event.kind == "finished":
                compaction.part_written()

        expected = expected_seconds(plan, self.placement, device=self.job.numerics.device, max_units=self.max_units)
        workers = self._workers()
        with (
            self._observed("computing cells", plan.todo, "cells", num_done=plan.num_done, expected=expected) as watch,
            self.shutdown.stopping(workers),
        ):
            outcome = workers.run(
                plan.todo,
                plan.sweep,
                split=split,
                on_event=on_event,
                before_submit=watch.before_submit,
                fail_fast=fail_fast,
            )
            self._write_losses(plan.sweep, outcome)
        compaction.finish()
        return sum(report.num_cells for report in outcome.finished)

    def _write_losses(self, sweep: Sweep, outcome: Outcome) -> None:
        """Store the error of every cell whose shard raised or was given up, since its worker could not."""
        for status, losses in (("failed", outcome.failed), ("quarantined", outcome.quarantined)):
            for loss in losses:
                assert isinstance(loss.unit, Shard)
                rows = lost_rows(sweep, loss.unit, status=status, reason=loss.reason)
                self.store.write_part(loss.unit.unit_id, list(rows))

    @contextmanager
    def _observed(
        self, title: str, units: Sequence[Unit], noun: str, *, num_done: int, expected: float | None = None
    ) -> Iterator[StageProgress]:
        total = sum(unit.num_cells for unit in units)
        with self.display.stage(title, total, noun, expected=expected) as stage:
            watch = StageProgress(self.store, self.job.name, self.launch_id, stage, num_done=num_done)
            with self.heartbeat.telling(watch.tell):
                yield watch
            self.heartbeat.require_lease()
