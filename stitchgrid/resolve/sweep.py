"""Job -> sweep; one error names every problem."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stitchgrid.datasets import Images
from stitchgrid.datasets.user_dataset import as_planned_now
from stitchgrid.errors import JobFileError, StitchgridError
from stitchgrid.jobfile import Job
from stitchgrid.matchers.registry import asks_ood, images_used, proves_halves
from stitchgrid.models.architecture import holding
from stitchgrid.records import (
    DataSpec,
    EnergySpec,
    EvaluateNetwork,
    Network,
    ProbeNetwork,
    ProbeSpec,
    Sweep,
    TrainDetector,
    TrainNetwork,
    canonical,
    digest,
)
from stitchgrid.resolve.artefacts import NOTHING_ANEW, Anew, ArtefactReader
from stitchgrid.resolve.images import energy_spec, fit_images_needed, fit_images_wished
from stitchgrid.resolve.keys import DETECTOR_REVISION, EVALUATION_REVISION, PROBE_REVISION, detector_key
from stitchgrid.resolve.networks import resolve_network
from stitchgrid.resolve.problems import (
    notice_of_labels,
    problems_of_evidence,
    problems_of_features,
    problems_of_kinds,
    problems_of_labels,
    problems_of_samples,
    problems_of_size,
)
from stitchgrid.statistics.detector import training_flops


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A sweep, and the networks that have to be made before its cells have addresses."""

    sweep: Sweep  # networks that are still to be made have a provisional id
    to_make: tuple[TrainNetwork, ...]  # networks to train, and twins to initialise
    num_bad_images: int
    class_names: tuple[str, ...]  # of the images
    fingerprints: Mapping[str, bytes]  # that the store has to keep, by key
    notices: tuple[str, ...]  # about the images
    anew: Anew = NOTHING_ANEW

    def evaluations(self) -> list[EvaluateNetwork]:
        """Return the units that measure each network, unstitched, on the evaluation images."""
        sweep = self.sweep
        return [
            EvaluateNetwork(
                unit_id=digest(
                    "evaluation",
                    str(EVALUATION_REVISION),
                    network.network_id,
                    *network.head.address,
                    canonical([[layer.node, layer.layout] for layer in network.layers]),
                    sweep.eval_data,
                    sweep.precision,
                    str(sweep.batch_size),
                    *(() if proves_halves(sweep, network) else ("without halves",)),
                ),
                network=position,
                flops=network.flops * sweep.num_eval,
                generation=self.anew.networks.get(network.name, 0),
            )
            for position, network in enumerate(sweep.networks)
        ]

    def probes(self) -> list[ProbeNetwork]:
        """Return the units that probe each network's layers; none where the job asks for no probes."""
        sweep = self.sweep
        if sweep.probes is None:
            return []
        # Without `samples`: the data's digest covers the images.
        recipe = canonical({**asdict(sweep.probes), "samples": None, "revision": PROBE_REVISION})
        num_images = max(sweep.num_probe_fit, sweep.num_fit_closed) + sweep.num_eval
        return [
            ProbeNetwork(
                unit_id=digest(
                    "probe",
                    network.network_id,
                    canonical([[layer.node, layer.layout] for layer in network.layers]),
                    sweep.probe_data,
                    recipe,
                    sweep.precision,
                ),
                network=position,
                flops=network.flops * num_images,
                generation=self.anew.networks.get(network.name, 0),
            )
            for position, network in enumerate(sweep.networks)
        ]

    def detectors(self) -> list[TrainDetector]:
        """Return the units that make the detectors of all target layers, where a matcher asks for them."""
        sweep = self.sweep
        if sweep.energy is None:
            return []
        return [
            TrainDetector(
                unit_id=detector_key(sweep, target, layer),
                network=target,
                layer=layer,
                flops=training_flops(sweep, target, layer),
                generation=self.anew.of_detector(sweep.networks[target].name),
            )
            for target in sorted({target for _, target in sweep.pairs})
            for layer in range(len(sweep.networks[target].layers))
        ]


def resolve(
    job: Job,
    images: Images,
    artefacts: ArtefactReader,
    *,
    cache: Path | None = None,
    update: bool = False,
    anew: Anew = NOTHING_ANEW,
) -> Resolution:
    """Build every network of a job once, and return the sweep.

    A network that computes something else than its fingerprint in the store is refused; with `update` it becomes
    another network. Networks that are to be made `anew` are not known until they are made.

    Raises:
        JobFileError: With every problem found: architectures, checkpoints, layers, sizes, labels, fingerprints.
    """
    data = as_planned_now(job.data_spec())
    networks: list[Network] = []
    to_make: dict[str, TrainNetwork] = {}  # by unit: networks that are alike but for their checkpoints share a twin
    problems: list[str] = []
    fingerprints: dict[str, bytes] = {}
    for spec in job.network_specs():
        try:
            with holding(spec):
                generation = anew.networks.get(spec.name, 0)
                found = resolve_network(spec, data, images, artefacts, update=update, generation=generation)
        except StitchgridError as problem:
            problems.append(f"model {spec.name!r}: {problem}")
            continue
        networks.append(found.network)
        fingerprints |= found.fingerprints
        if (unit := found.to_train) is not None:
            known = to_make.get(unit.unit_id, unit)
            to_make[unit.unit_id] = max(known, unit, key=lambda one: one.generation)
    problems += problems_of_labels(job, networks, images)
    problems += problems_of_features(job, networks, images)
    problems += problems_of_samples(job, images)
    problems += problems_of_evidence(job, images)
    problems += problems_of_kinds(job, networks, images)
    problems += problems_of_size(job, networks)
    if problems:
        raise JobFileError(f"job {job.name!r} cannot run:", problems)
    notice = notice_of_labels(job, networks, images)
    return Resolution(
        sweep=_sweep(job, data, images, tuple(networks), energy_spec(job, images, cache)),
        to_make=tuple(to_make.values()),
        num_bad_images=images.num_bad,
        class_names=images.class_names,
        fingerprints=fingerprints,
        notices=(*images.notices, *([] if notice is None else [notice])),
        anew=anew,
    )


def _sweep(job: Job, data: DataSpec, images: Images, networks: tuple[Network, ...], energy: EnergySpec | None) -> Sweep:
    num_closed = min(data.fit_samples or images.fit.num, images.fit.num)
    matchers = job.matcher_specs(num_fit=images.num_fit_listed)
    counts = [
        images_used(spec, num_fit=images.fit.num, num_fit_closed=num_closed, num_eval=images.eval.num)
        for spec in matchers
    ]
    probes = job.probe_spec()
    return Sweep(
        name=job.name,
        seed=job.seed,
        data=data,
        networks=networks,
        pairs=job.pairs(),
        matchers=matchers,
        precision=job.numerics.precision,
        batch_size=job.numerics.batch_size,
        compiles=job.numerics.compile,
        eval_data=images.eval.digest(images.eval.num),
        fit_data=images.fit.digest(images.fit.num),
        need_fit=fit_images_needed(job),
        wish_fit=fit_images_wished(job),
        num_fit=images.fit.num,
        num_eval=images.eval.num,
        num_fit_closed=num_closed,
        matcher_data=tuple(
            digest(
                images.fit.digest(fit) if fit else "",
                images.eval.digest(evaluated),
                *(_detector_data(energy) if asks_ood(spec, "energy") else ()),
            )
            for spec, (fit, evaluated) in zip(matchers, counts, strict=True)
        ),
        probes=probes,
        probe_data=_probe_data(images, probes, num_closed) if probes else "",
        energy=energy,
        groups=job.intervals.groups,
        shuffles=job.controls.shuffled,
    )


def _probe_data(images: Images, probes: ProbeSpec, num_closed: int) -> str:
    """Return the digest of a probe's images: for fitting, for the axes that low rank keeps, and for evaluation."""
    fitted = min(probes.samples or num_closed, images.fit.num)
    deciding = num_closed if any(probes.ranks) else 0
    return digest(
        images.fit.digest(fitted),
        images.fit.digest(deciding) if deciding else "",
        images.eval.digest(images.eval.num),
    )


def _detector_data(energy: EnergySpec | None) -> tuple[str, ...]:
    assert energy is not None
    return str(DETECTOR_REVISION), energy.fit_data, energy.outlier_data
