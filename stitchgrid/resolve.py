"""Job -> sweep: networks are built once, cut and hashed, images are drawn; every problem is named at once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from stitchgrid.cache import default_cache
from stitchgrid.datasets import Images, open_images
from stitchgrid.datasets.images import Split
from stitchgrid.errors import InputError, JobFileError, StitchgridError
from stitchgrid.jobfile import Job
from stitchgrid.matchers.catalogue import MATCHERS, asks_ood, images_used
from stitchgrid.models.architecture import code_digest, holding
from stitchgrid.models.build import build_network, default_preprocess, make_network
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.cutting import cut_network, cut_network_on
from stitchgrid.models.freeze import freeze
from stitchgrid.models.memory import kept_bytes
from stitchgrid.models.select import select_layers
from stitchgrid.models.shared import SharedWeights
from stitchgrid.models.weights import load_into, load_state, state_digest
from stitchgrid.plan import training_flops
from stitchgrid.preprocess import output_size
from stitchgrid.records import (
    DataSpec,
    EnergyRecipe,
    EnergySpec,
    EvaluateNetwork,
    Network,
    NetworkSpec,
    Preprocess,
    ProbeNetwork,
    ProbeSpec,
    Sweep,
    TrainDetector,
    TrainNetwork,
    Unit,
    canonical,
    digest,
)

PROBE_REVISION = 1  # raised when the maths of probes changes
DETECTOR_REVISION = 1  # the same for detectors, and for cells that their scores decide
TRAINING_REVISION = 1  # raised when the training loop changes, so that stored networks are not mistaken for new ones


class Artefacts(Protocol):
    """Where trained networks are kept."""

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether it is there."""
        ...

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return its content."""
        ...


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A sweep, and what has to be made before its cells have addresses."""

    sweep: Sweep  # networks still to be trained stand in with an id of their own
    untrained: tuple[TrainNetwork, ...]
    num_bad_images: int

    def evaluations(self) -> list[EvaluateNetwork]:
        """Return the units that measure each network, unstitched, on the evaluation images."""
        sweep = self.sweep
        return [
            EvaluateNetwork(
                unit_id=digest("evaluation", network.network_id, sweep.eval_data, sweep.precision),
                network=position,
                flops=network.flops * sweep.num_eval,
            )
            for position, network in enumerate(sweep.networks)
        ]

    def probes(self) -> list[ProbeNetwork]:
        """Return the units that probe each network's layers; none where the job asks for no probes."""
        sweep = self.sweep
        if sweep.probes is None:
            return []
        recipe = canonical({**asdict(sweep.probes), "samples": None, "revision": PROBE_REVISION})  # data has the images
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
            )
            for target in sorted({target for _, target in sweep.pairs})
            for layer in range(len(sweep.networks[target].layers))
        ]


def not_made(kind: str, units: Sequence[Unit], artefacts: Artefacts) -> list[Unit]:
    """Return the units whose artefacts of a kind are not there, each once: two names may stand for one network."""
    by_key = {unit.unit_id: unit for unit in units}
    return [unit for key, unit in by_key.items() if not artefacts.has_artefact(kind, key)]


def open_job_images(job: Job, *, cache: Path | None = None) -> Images:
    """Return the images a job looks at, decoded as far as its matchers and recipes need them."""
    return open_images(job.data_spec(), need_fit=_fit_images_needed(job), cache=cache)


def _fit_images_needed(job: Job) -> int | None:
    """Return how many fit images the job looks at, None for all of them."""
    specs = job.matcher_specs()
    stitchers = [spec for spec in specs if MATCHERS[spec.kind].family == "stitcher"]
    recipe = energy_recipe(job)
    whole = any(MATCHERS[spec.kind].trained and spec.samples is None for spec in stitchers)
    whole |= recipe is not None and recipe.samples is None
    closed = job.data_spec().fit_samples
    if whole or closed is None or any(spec.recipe for spec in job.network_specs()):
        return None
    probed = (job.probe_spec() or ProbeSpec()).samples or 0
    detected = recipe.samples or 0 if recipe else 0
    return max([closed, probed, detected, *(spec.samples or 0 for spec in stitchers)])


def energy_recipe(job: Job) -> EnergyRecipe | None:
    """Return how a job's detectors are made, None where no matcher asks for them."""
    return next((matcher.energy for matcher in job.matchers if matcher.energy), None)


def open_outliers(spec: DataSpec, *, cache: Path | None = None) -> Split:
    """Return the images of another data set, in drawn order."""
    return open_images(spec, cache=cache, need_fit=0).eval


def detector_key(sweep: Sweep, target: int, layer: int) -> str:
    """Return the address of a layer's detector: all that decides what it becomes."""
    assert sweep.energy is not None
    network = sweep.networks[target]
    return digest(
        "detector",
        str(DETECTOR_REVISION),
        network.network_id,
        network.layers[layer].node,
        network.layers[layer].layout,
        canonical(asdict(sweep.energy.recipe)),
        sweep.energy.fit_data,
        sweep.energy.outlier_data,
        sweep.precision,
    )


def _energy(job: Job, images: Images, cache: Path | None) -> EnergySpec | None:
    recipe, outliers = energy_recipe(job), job.outliers_spec()
    if recipe is None:
        return None
    num_fit = min(recipe.samples or images.fit.num, images.fit.num)
    if num_fit < 2:
        raise JobFileError(f"a detector by energy needs 2 fit images at least, got {num_fit}; raise fit's samples.")
    other = open_outliers(outliers, cache=cache) if outliers else None
    return EnergySpec(
        recipe=recipe,
        num_fit=num_fit,
        fit_data=images.fit.digest(num_fit),
        outliers=outliers,
        outlier_data=other.digest(other.num) if other else "",
    )


def resolve(
    job: Job,
    images: Images,
    artefacts: Artefacts,
    *,
    cache: Path | None = None,
) -> Resolution:
    """Build every network of a job once, and return the sweep.

    Raises:
        JobFileError: With every problem found: architectures, checkpoints, layers, sizes, labels.
    """
    data = job.data_spec()
    networks: list[Network] = []
    untrained: list[TrainNetwork] = []
    problems: list[str] = []
    for spec in job.network_specs():
        try:
            with holding(spec):
                network, to_train = _resolve_network(spec, data, images, artefacts)
        except StitchgridError as problem:
            problems.append(f"model {spec.name!r}: {problem}")
            continue
        networks.append(network)
        if to_train is not None:
            untrained.append(to_train)
    problems += _problems_of_labels(job, networks, images.num_classes)
    if problems:
        raise JobFileError(f"job {job.name!r} cannot run:", problems)
    return Resolution(
        sweep=_sweep(job, data, images, tuple(networks), _energy(job, images, cache)),
        untrained=tuple(untrained),
        num_bad_images=images.num_bad,
    )


def _sweep(job: Job, data: DataSpec, images: Images, networks: tuple[Network, ...], energy: EnergySpec | None) -> Sweep:
    num_closed = min(data.fit_samples or images.fit.num, images.fit.num)
    matchers = job.matcher_specs()
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
        need_fit=_fit_images_needed(job),
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
    )


def _probe_data(images: Images, probes: ProbeSpec, num_closed: int) -> str:
    """Return the digest of the images a probe is fitted on, those that decide what low rank keeps, and the last."""
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


def _resolve_network(
    spec: NetworkSpec,
    data: DataSpec,
    images: Images,
    artefacts: Artefacts,
) -> tuple[Network, TrainNetwork | None]:
    preprocess = spec.preprocess or default_preprocess(spec)
    key = training_key(spec, preprocess, images) if spec.recipe else None
    trained = key is not None and artefacts.has_artefact("network", key)
    state = load_state(artefacts.read_artefact("network", key)) if key is not None and trained else None
    module = make_network(spec) if key is not None and not trained else build_network(spec, state=state)
    cut = cut_network(module, input_shape(preprocess, images))
    weights = state_digest(module)
    network = Network(
        spec=spec,
        network_id=f"untrained-{key}" if key and not trained else network_id(spec, preprocess, weights),
        artefact=key,
        weights_digest="" if key and not trained else weights,
        preprocess=preprocess,
        layers=tuple(chosen.layer for chosen in select_layers(cut, spec.layers)),
        num_cuts=len(cut.cuts),
        num_classes=cut.num_classes,
        is_labelled=cut.num_classes == images.num_classes,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        input_shape=cut.input_shape,
        flops=cut.flops,
        num_kept_bytes=kept_bytes(module, cut.input_shape),
        way=cut.way,
        code=code_digest(spec),
    )
    if key is None or trained or spec.recipe is None:
        return network, None
    # A step costs a forward pass and about twice that backward.
    flops = 3 * cut.flops * images.fit.num * spec.recipe.epochs
    return network, TrainNetwork(unit_id=key, spec=replace(spec, preprocess=preprocess), data=data, flops=flops)


def _problems_of_labels(job: Job, networks: Sequence[Network], num_classes: int) -> list[str]:
    """Return what forbids stitching into networks whose classes are not those of the images."""
    specs = job.network_specs()
    targets = {specs[target].name for _, target in job.pairs()}
    kinds = {spec.kind: MATCHERS[spec.kind] for spec in job.matcher_specs()}
    stitchers = [kind for kind, matcher in kinds.items() if matcher.family == "stitcher"]
    if job.data.labels == "agreement":
        stitchers = [kind for kind in stitchers if kinds[kind].trained]
        way_out = '; labels = "agreement" does without labels, but not for kinds that are trained on them.'
    else:
        way_out = ', or set labels = "agreement" in [data], to have its agreement alone reported.'
    if not stitchers:
        return []
    found = []
    for network in networks:
        if network.is_labelled or network.name not in targets:
            continue
        has_any_head = network.spec.weights == "random" or network.spec.recipe
        other_head = f"give it num_classes = {num_classes} in args, " if has_any_head else ""
        found.append(
            f"model {network.name!r}: the images have {num_classes} classes, the network {network.num_classes}, so "
            f"that {', '.join(stitchers)} into it cannot be compared with labels; {other_head}or use it as a source "
            f"alone ([grid] pairs){way_out}"
        )
    return found


def network_id(spec: NetworkSpec, preprocess: Preprocess, weights_digest: str) -> str:
    """Return the address of a frozen network: what it computes from an image, whatever it is called."""
    return digest("network", weights_digest, code_digest(spec), spec.args, canonical(asdict(preprocess)))


def training_key(spec: NetworkSpec, preprocess: Preprocess, images: Images) -> str:
    """Return the address of a network that a recipe trains: the recipe and everything it starts from."""
    assert spec.recipe is not None
    return digest(
        "recipe",
        str(TRAINING_REVISION),
        canonical(asdict(spec.recipe)),
        code_digest(spec),
        spec.args,
        str(spec.seed),
        canonical(asdict(preprocess)),
        images.fit.digest(images.fit.num),
    )


def load_network(
    network: Network, artefacts: Artefacts, *, device: torch.device, cache: Path | None = None
) -> CutNetwork:
    """Build a resolved network again, on a worker.

    On the CPU its weights are memory that all workers of a node share; the store's are read from it once per node.

    Args:
        network: The network.
        artefacts: Where its weights are if the sweep trained it.
        device: Where it is to run.
        cache: Folder for weights; default $STITCHGRID_CACHE, else the user's cache folder.

    Raises:
        InputError: If its code or weights are no longer those the sweep was planned with; other code is not run.
    """
    with holding(network.spec):
        if network.code and (found := code_digest(network.spec)) != network.code:
            raise InputError(
                f"the code behind model {network.name!r} ({network.spec.architecture}) is not what the sweep was "
                f"planned with (wanted {network.code}, got {found}), and was not run; launch the job again. Packages "
                "of more than 20 MB are not sent to other nodes: install them there."
            )
        module = _load_module(network, artefacts, SharedWeights(cache or default_cache()), device)
    return cut_network_on(device, module, network.input_shape, name=network.name)


def _load_module(network: Network, artefacts: Artefacts, shared: SharedWeights, device: torch.device) -> nn.Module:
    if network.artefact is not None:
        module = freeze(make_network(network.spec))
        shared.share(module, network.weights_digest, load=partial(_load_artefact, module, network, artefacts))
    else:
        module = build_network(network.spec)
    found = network_id(network.spec, network.preprocess, state_digest(module))
    if found != network.network_id:
        raise InputError(
            f"model {network.name!r} is not what it was when the sweep was planned (wanted network "
            f"{network.network_id}, got {found}): its checkpoint or code has changed; launch the job again."
        )
    if network.artefact is None and device.type == "cpu":
        shared.share(module, network.weights_digest)
    return module


def _load_artefact(module: nn.Module, network: Network, artefacts: Artefacts) -> None:
    assert network.artefact is not None
    state = load_state(artefacts.read_artefact("network", network.artefact))
    load_into(module, state, origin=f"the stored state of {network.name!r}")


def input_shape(preprocess: Preprocess, images: Images) -> tuple[int, int, int]:
    """Return (3, height, width) of a network's images after its preprocessing."""
    size = images.eval.size
    if size is None:
        if preprocess.crop is None and not isinstance(preprocess.resize, tuple):
            raise InputError(
                "the images differ in size, so a network needs preprocess = { resize = ..., crop = ... } "
                "(or resize = [height, width]) to bring them to one."
            )
        size = (4096, 4096)
    return (3, *output_size(preprocess, *size))
