"""Does one unit of work and writes the result; knows nothing of Ray.

A worker holds frozen networks and images between units, so that units which share them need not load them again.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from platform import node
from time import perf_counter
from typing import TypeVar

import torch

from stitchgrid.allocator import give_back_freed_memory
from stitchgrid.datasets import Images, open_images
from stitchgrid.datasets.device_images import PicturePair, Pictures, ResidentImages, near
from stitchgrid.engine.energy_detector import train_detector
from stitchgrid.engine.host import set_up_torch
from stitchgrid.engine.kept_passes import SHARE, KeptPass
from stitchgrid.engine.memory import available_bytes, fitting_pieces, probe_halvings, shard_bytes, shard_halvings
from stitchgrid.engine.plain_networks import measure_network
from stitchgrid.engine.probes import as_artefact
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.stitched import stack_images
from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import InputError, StoreError, is_out_of_memory
from stitchgrid.models.architecture import holding
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.detector import Detector, restore_detector
from stitchgrid.models.features import features_network
from stitchgrid.models.memory import move
from stitchgrid.models.training import TWIN_IMAGES, initialise_twin, train_network
from stitchgrid.models.versions import library_versions
from stitchgrid.models.weights import load_state, save_state
from stitchgrid.precision import choose_device
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.records import (
    DataSpec,
    EvaluateNetwork,
    OfNetwork,
    Preprocess,
    ProbeNetwork,
    Row,
    Shard,
    Sweep,
    TrainDetector,
    TrainNetwork,
    Unit,
    UnitReport,
    canonical,
)
from stitchgrid.resolve import check_fingerprint, detector_key, load_network, open_outliers, training_key, twin_images
from stitchgrid.statistics.base import LayerKey
from stitchgrid.store import Store
from stitchgrid.worker_logs import Notes, taking_notes

T = TypeVar("T")

_log = logging.getLogger(__name__)

MEMORY_SHARE = 0.8  # of the available memory, for one shard
MAX_NETWORKS = 32  # held at a time; the least recently used goes first


class Worker:
    """One worker on one device, with a number of threads of its own."""

    def __init__(
        self,
        *,
        store: str,
        device: str = "auto",
        threads: int | None = None,
        cache: Path | None = None,
        keeps_passes: bool = False,
    ):
        self.store = Store.open(store)
        self.cache = cache
        self.device = torch.device(choose_device(device))
        self._keeps_memory = set_up_torch(threads)
        self._networks: OrderedDict[str, CutNetwork] = OrderedDict()
        self._images: tuple[tuple[DataSpec, int | None, int], Images] | None = None
        self._near_images: PicturePair | None = None  # where the device finds them fastest
        self._kept = KeptPass(int(SHARE * available_bytes(self.device))) if keeps_passes else None
        self._checked: set[str] = set()
        self._libraries: dict[tuple[str, ...], str] = {}  # by the ids of a source and a target
        self._halvings = 0  # of what is held at a time after memory ran out, besides those known beforehand
        self._sharing = 1  # workers, this one included, that share the device's memory

    def set_num_workers(self, *, on_host: int, on_gpu: int) -> None:
        """Set how many workers, this one included, share the memory of this machine and of this GPU."""
        self._sharing = on_gpu if self.device.type == "cuda" else on_host

    def check(self, context: Sweep) -> None:
        """Check that this worker can read the images that a sweep's units need.

        Raises:
            InputError: If the images are missing, or are not those the sweep was planned with.
        """
        self.workspace(context)

    def run(self, unit: Unit, context: Sweep) -> UnitReport:
        """Do one unit of work of a sweep, whose networks need not all be trained yet."""
        with taking_notes() as notes:
            try:
                return self._run(unit, context)
            except Exception:
                _log.info("given up", exc_info=True)
                raise
            finally:
                self._keep(notes, context.name, unit.unit_id)

    def _run(self, unit: Unit, context: Sweep) -> UnitReport:
        start = perf_counter()
        _log.info("%s %s on %s, process %d, %s", type(unit).__name__, unit.unit_id, node(), os.getpid(), self.device)
        _log.info("chosen: %s", ", ".join(self.settings(context)))
        report = self._do(unit, context)
        seconds = perf_counter() - start
        _log.info("finished in %.2f s: %d with values, %d failed", seconds, report.num_cells, report.num_failed)
        return replace(report, seconds=seconds)

    def _do(self, unit: Unit, sweep: Sweep) -> UnitReport:
        match unit:
            case TrainNetwork():
                return self._train(unit)
            case EvaluateNetwork():
                return self._evaluate(unit, sweep)
            case ProbeNetwork():
                return self._probe(unit, sweep)
            case TrainDetector():
                return self._detect(unit, sweep)
            case Shard():
                return self._shard(unit, sweep)

    def _keep(self, notes: Notes, sweep: str, unit_id: str) -> None:
        try:
            self.store.write_log(sweep, unit_id, notes.text)
        except StoreError as problem:  # a lost log must not cost the result
            _log.warning("no log could be kept of %s: %s", unit_id, problem)

    def _train(self, unit: TrainNetwork) -> UnitReport:
        preprocess = unit.spec.preprocess or Preprocess()
        images = self._open(unit.data, *((1, TWIN_IMAGES) if unit.spec.is_twin else (None, 0)))
        with holding(unit.spec):
            return self._train_on(unit, images, preprocess)

    def _train_on(self, unit: TrainNetwork, images: Images, preprocess: Preprocess) -> UnitReport:
        if training_key(unit.spec, preprocess, images) != unit.unit_id:
            raise InputError(
                f"model {unit.spec.name!r} would not be trained as the sweep was planned: its code or the images have "
                "changed; launch the job again."
            )
        prepare = partial(apply_preprocess, preprocess=preprocess)
        if unit.spec.is_twin:
            module = initialise_twin(unit.spec, twin_images(images), prepare, device=self.device)
        else:
            module = train_network(unit.spec, images.fit, prepare, device=self.device).module
        self._write("network", unit, save_state(module), suffix=".safetensors")
        return UnitReport(unit_id=unit.unit_id, num_cells=1)

    def _write(self, kind: str, unit: TrainNetwork | OfNetwork, data: bytes, *, suffix: str) -> None:
        self.store.write_artefact(kind, unit.unit_id, data, suffix=suffix, generation=unit.generation)

    def _evaluate(self, unit: EvaluateNetwork, sweep: Sweep) -> UnitReport:
        """Prove a network, and measure it unstitched on the evaluation images."""
        found = self._until_it_fits(lambda work: measure_network(work, unit.network), self.workspace(sweep))
        self._write("evaluation", unit, json.dumps(found).encode(), suffix=".json")
        return UnitReport(unit_id=unit.unit_id, num_cells=1)

    def _probe(self, unit: ProbeNetwork, sweep: Sweep) -> UnitReport:
        """Probe all layers of a network."""
        halvings = probe_halvings(sweep, unit.network, self.device, budget=self._budget)
        found = self._until_it_fits(partial(as_artefact, unit.network), self.workspace(sweep), halvings=halvings)
        self._write("probe", unit, json.dumps(found).encode(), suffix=".json")
        return UnitReport(unit_id=unit.unit_id, num_cells=1)

    def _detect(self, unit: TrainDetector, sweep: Sweep) -> UnitReport:
        """Make the detector of a target layer."""
        key, outliers = (unit.network, unit.layer), self._outliers(sweep)
        detector = self._until_it_fits(lambda work: train_detector(work, key, outliers), self.workspace(sweep))
        self._write("detector", unit, save_state(detector), suffix=".safetensors")
        return UnitReport(unit_id=unit.unit_id, num_cells=1)

    def _outliers(self, sweep: Sweep) -> Pictures | None:
        assert sweep.energy is not None
        if sweep.energy.outliers is None:
            return None
        outliers = open_outliers(sweep.energy.outliers, cache=self.cache)
        if (found := outliers.digest(outliers.num)) != sweep.energy.outlier_data:
            raise InputError(
                f"the outliers of {sweep.energy.outliers.dataset} at {sweep.energy.outliers.root} are not those the "
                f"sweep was planned with (wanted {sweep.energy.outlier_data}, got {found}); launch the job again."
            )
        return outliers

    def _detector(self, sweep: Sweep, key: LayerKey) -> Detector:
        """Return the stored detector of a target layer."""
        assert sweep.energy is not None
        network, layer = sweep.networks[key[0]], sweep.networks[key[0]].layers[key[1]]
        state = load_state(self.store.read_artefact("detector", detector_key(sweep, *key)))
        height, width = network.input_shape[1:]
        detector = restore_detector(layer, sweep.energy.recipe, size=(height, width), state=state)
        move(detector, self.device, f"the detector of {network.name} {layer.name}")
        return detector

    def _shard(self, shard: Shard, sweep: Sweep) -> UnitReport:
        rows = self.rows(shard, self.workspace(sweep))
        part = self.store.write_part(shard.unit_id, rows)
        failed = {row.cell_id for row in rows if row.error is not None}
        return UnitReport(
            unit_id=shard.unit_id,
            num_cells=len({row.cell_id for row in rows}) - len(failed),
            num_failed=len(failed),
            part=part,
        )

    def rows(self, shard: Shard, work: Workspace) -> list[Row]:
        """Return a shard's rows; compute it in pieces, or with smaller batches, if memory requires that."""
        budget = self._budget
        need = shard_bytes(work.sweep, shard, self.device)
        share = f", the share of one of {self._sharing} workers" if self._sharing > 1 else ""
        _log.info("needs about %.2g GB, %.2g GB may be taken%s", need / 1e9, budget / 1e9, share)
        rows: list[Row] = []
        for piece in fitting_pieces(work.sweep, shard, self.device, budget=budget):
            halvings = shard_halvings(work.sweep, piece, self.device, budget=budget)
            if halvings:
                full = work.sweep.batch_size
                _log.info("a target layer needs more: %d images at a time for it, not %d", full >> halvings, full)
            rows += self._until_it_fits(partial(run_shard, piece), work, halvings=halvings)
        return rows

    @property
    def _budget(self) -> int:
        """How many bytes a unit may take."""
        return int(MEMORY_SHARE * available_bytes(self.device, sharing=self._sharing))

    def _until_it_fits(self, compute: Callable[[Workspace], T], work: Workspace, *, halvings: int = 0) -> T:
        """Return the result of `compute`; while memory runs out, try again with half as much at a time.

        `halvings` are those known to be needed beforehand. Further ones also hold for later units.
        """
        while True:
            work = replace(work, halvings=halvings + self._halvings)
            try:
                return compute(work)
            except Exception as problem:
                if not is_out_of_memory(problem):
                    raise
                if isinstance(problem, InputError) or work.batch_size == 1:  # less at a time does not help
                    self._halvings = 0  # and is not kept for later units
                    raise
            self._halvings += 1
            if self._kept is not None:
                self._kept.clear()
            _log.warning("out of memory: half as many images at a time from now on (%d halvings)", self._halvings)
            if self.device.type == "cuda":
                self._networks.clear()  # also those of other units
                torch.cuda.empty_cache()

    def settings(self, sweep: Sweep) -> list[str]:
        """Return the settings with which this worker computes a sweep; they change values by rounding at most."""
        onednn = "oneDNN" if torch.backends.mkldnn.enabled and self.device.type == "cpu" else ""
        return [
            f"{torch.get_num_threads()} threads",
            *([onednn] if onednn else []),
            f"{max(1, sweep.batch_size >> self._halvings)} images at a time",
            "maps channels-last",
            *(["networks compiled"] if sweep.compiles else []),
            *(["images on the device"] if isinstance(self._near_images, ResidentImages) else []),
            f"{stack_images(self.device)} images of stitched networks at a time",
            "freed memory kept" if self._keeps_memory else "freed memory given back",
        ]

    def workspace(self, sweep: Sweep) -> Workspace:
        """Return the workspace of a sweep's shards: its networks and images on this worker's device.

        Raises:
            InputError: If the images are not those the sweep was planned with.
        """
        images = self._open(sweep.data, sweep.need_fit, sweep.wish_fit)
        if sweep.eval_data not in self._checked:
            _check_images(images, sweep)
            self._checked.add(sweep.eval_data)
        if self._near_images is None:
            self._near_images = near(images, self.device, sharing=self._sharing)
        return Workspace(
            sweep=sweep,
            images=self._near_images,
            network=lambda position: self._network(sweep, position),
            device=self.device,
            detector=lambda key: self._detector(sweep, key),
            libraries=lambda source, target: self._libraries_of(sweep, source, target),
            kept=self._kept,
        )

    def _libraries_of(self, sweep: Sweep, *networks: int) -> str:
        """Return the versions of the libraries that networks' code imports, as rows have them: canonical JSON."""
        key = tuple(sweep.networks[position].network_id for position in networks)
        if key not in self._libraries:
            found: dict[str, str] = {}
            for position in networks:
                with holding(sweep.networks[position].spec):
                    found |= library_versions(sweep.networks[position].spec)
            self._libraries[key] = canonical(found)
        return self._libraries[key]

    def _open(self, data: DataSpec, need_fit: int | None, wish_fit: int) -> Images:
        if self._images is None or self._images[0] != (data, need_fit, wish_fit):
            self._near_images = None
            found = open_images(data, need_fit=need_fit, wish_fit=wish_fit, cache=self.cache)
            self._images = ((data, need_fit, wish_fit), found)
        return self._images[1]

    def _network(self, sweep: Sweep, position: int) -> CutNetwork:
        record = sweep.networks[position]
        if record.network_id not in self._networks:
            if record.spec.is_features:
                images = self._open(sweep.data, sweep.need_fit, sweep.wish_fit)
                loaded: CutNetwork = features_network(record, images, self.device)
            else:
                loaded = load_network(record, self.store, device=self.device, cache=self.cache)
            if record.fingerprint is not None:
                images = self._open(sweep.data, sweep.need_fit, sweep.wish_fit)
                check_fingerprint(record, loaded, images.eval, device=self.device)
            self._networks[record.network_id] = loaded
            give_back_freed_memory()  # which building the network has used
            if len(self._networks) > MAX_NETWORKS:
                self._networks.popitem(last=False)
        self._networks.move_to_end(record.network_id)
        network = self._networks[record.network_id]
        network.compiles = sweep.compiles
        return network


def _check_images(images: Images, sweep: Sweep) -> None:
    found = images.eval.digest(images.eval.num), images.fit.digest(images.fit.num)
    if found != (sweep.eval_data, sweep.fit_data):
        raise InputError(
            f"the images of {sweep.data.dataset} at {sweep.data.root} are not those the sweep was planned with "
            f"(wanted digests {sweep.eval_data}, {sweep.fit_data}; got {found[0]}, {found[1]}); launch the job again."
        )
