"""Job -> sweep: networks are built once, cut and hashed, images are drawn; every problem is named at once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from stitchgrid.cache import default_cache
from stitchgrid.datasets import Images, open_images
from stitchgrid.datasets.images import Split
from stitchgrid.datasets.own import as_planned_now
from stitchgrid.datasets.resident import Pictures
from stitchgrid.errors import InputError, JobFileError, StitchgridError, is_out_of_memory
from stitchgrid.jobfile import Job
from stitchgrid.live import live_name
from stitchgrid.matchers.evidence import FEWEST_PER_GROUP
from stitchgrid.matchers.heads import detect_head, num_classes_of
from stitchgrid.matchers.protocol import About
from stitchgrid.matchers.registry import (
    MATCHERS,
    asks_ood,
    default_metrics,
    images_used,
    implementation,
    kind_of,
    needs_no_tail,
    proves_halves,
)
from stitchgrid.models.architecture import code_digest, holding
from stitchgrid.models.build import build_network, default_preprocess, make_network
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.cutting import cut_network_on
from stitchgrid.models.features import has_fit_rows, open_features
from stitchgrid.models.fingerprint import (
    NUM_IMAGES,
    difference,
    identify,
    take_fingerprint,
    tolerance_of,
    unregistered,
)
from stitchgrid.models.freeze import freeze
from stitchgrid.models.held import held_cut, hold
from stitchgrid.models.memory import kept_bytes
from stitchgrid.models.proof import first_line
from stitchgrid.models.select import select_layers
from stitchgrid.models.shared import SharedWeights
from stitchgrid.models.training import TWIN_IMAGES
from stitchgrid.models.weights import load_into, load_state, state_digest
from stitchgrid.precision import few_threads, running_in
from stitchgrid.preprocess import apply_preprocess, on_device, output_size
from stitchgrid.records import (
    NO_HEAD,
    DataSpec,
    EnergySpec,
    EvaluateNetwork,
    Fingerprint,
    Head,
    Layer,
    Network,
    NetworkSpec,
    OfNetwork,
    Preprocess,
    ProbeNetwork,
    ProbeSpec,
    Sweep,
    TrainDetector,
    TrainNetwork,
    canonical,
    digest,
)
from stitchgrid.statistics.detector import training_flops

Maker = TypeVar("Maker", bound=OfNetwork | TrainNetwork)  # of one artefact
_CPU = torch.device("cpu")

EVALUATION_REVISION = 2  # raised when networks are proven by more than before
PROBE_REVISION = 1  # raised when the maths of probes changes
DETECTOR_REVISION = 1  # the same for detectors, and for cells that their scores decide
TWIN_REVISION = 1  # the same for untrained twins
FEATURES_SIDE = 32  # pixels, of images that differ in size: what features were made of is not known
TRAINING_REVISION = 1  # raised when the training loop changes, so that stored networks are not mistaken for new ones


class Artefacts(Protocol):
    """Where trained networks are kept."""

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether it is there."""
        ...

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return its content."""
        ...

    def artefact_generation(self, kind: str, key: str) -> int:
        """Return the generation of the cells for which it was made anew, 0 where it was not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    """What is to be made anew, with the generation that it gets; what has it already is there."""

    networks: Mapping[str, int] = field(default_factory=dict)  # by name: what is trained, measured and probed of each
    detectors: int = 0  # those of all target layers

    def of_detector(self, network: str) -> int:
        """Return the generation that the detectors of a network get."""
        return max(self.detectors, self.networks.get(network, 0))


NOTHING_ANEW = Anew()


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A sweep, and what has to be made before its cells have addresses."""

    sweep: Sweep  # networks still to be trained stand in with an id of their own
    untrained: tuple[TrainNetwork, ...]
    num_bad_images: int
    class_names: tuple[str, ...]  # of the images
    fingerprints: Mapping[str, bytes]  # that the store has to keep, by key
    notices: tuple[str, ...]  # what to know of the images
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


def not_made(kind: str, units: Sequence[Maker], artefacts: Artefacts) -> list[Maker]:
    """Return the units whose artefacts of a kind are not there, each once: two names may stand for one network."""
    by_key = {unit.unit_id: unit for unit in sorted(units, key=lambda unit: unit.generation)}
    return [unit for key, unit in by_key.items() if not _is_there(kind, key, artefacts, unit.generation)]


def _is_there(kind: str, key: str, artefacts: Artefacts, generation: int) -> bool:
    return artefacts.has_artefact(kind, key) and (
        not generation or artefacts.artefact_generation(kind, key) >= generation
    )


def open_job_images(job: Job, *, cache: Path | None = None) -> Images:
    """Return the images a job looks at, decoded as far as its matchers and recipes need them."""
    return open_images(job.data_spec(), need_fit=_fit_images_needed(job), wish_fit=_fit_images_wished(job), cache=cache)


def _fit_images_wished(job: Job) -> int:
    """Return how many fit images the job looks at where there are as many: those of untrained twins."""
    return TWIN_IMAGES if any(spec.is_twin for spec in job.network_specs()) else 0


def _fit_images_needed(job: Job) -> int | None:
    """Return how many fit images the job looks at, None for all of them."""
    specs = job.matcher_specs()
    stitchers = [spec for spec in specs if MATCHERS[spec.kind].family == "stitcher"]
    recipe = job.energy_recipe()
    whole = any(
        spec.samples == "all" or (MATCHERS[spec.kind].is_trained and spec.samples is None) for spec in stitchers
    )
    whole |= recipe is not None and recipe.samples is None
    closed = job.data_spec().fit_samples
    networks = job.network_specs()
    if whole or closed is None or any(spec.recipe for spec in networks):
        return None
    probed = (job.probe_spec() or ProbeSpec()).samples or 0
    detected = recipe.samples or 0 if recipe else 0
    return max([closed, probed, detected, *(spec.samples for spec in stitchers if isinstance(spec.samples, int))])


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
    recipe, outliers = job.energy_recipe(num_fit=images.num_fit_listed), job.outliers_spec()
    if recipe is None:
        return None
    num_fit = min(recipe.samples or images.fit.num, images.fit.num)
    if num_fit < 2:
        raise JobFileError(f"a detector by energy needs 2 fit images at least, got {num_fit}; raise fit's samples.")
    outliers = None if outliers is None else as_planned_now(outliers)
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
    update: bool = False,
    anew: Anew = NOTHING_ANEW,
) -> Resolution:
    """Build every network of a job once, and return the sweep.

    A network that computes something else than the store knows of it is refused or, with `update`, another network.
    Trained networks that are to be made `anew` count as untrained until they are.

    Raises:
        JobFileError: With every problem found: architectures, checkpoints, layers, sizes, labels, fingerprints.
    """
    data = as_planned_now(job.data_spec())
    networks: list[Network] = []
    untrained: dict[str, TrainNetwork] = {}  # by unit: networks that are alike but for their checkpoints share a twin
    problems: list[str] = []
    fingerprints: dict[str, bytes] = {}
    for spec in job.network_specs():
        try:
            with holding(spec):
                generation = anew.networks.get(spec.name, 0)
                found = _resolve_network(spec, data, images, artefacts, update=update, generation=generation)
        except StitchgridError as problem:
            problems.append(f"model {spec.name!r}: {problem}")
            continue
        networks.append(found.network)
        fingerprints |= found.fingerprints
        if found.to_train is not None:
            untrained[found.to_train.unit_id] = found.to_train
    problems += _problems_of_labels(job, networks, images.num_classes)
    problems += _problems_of_features(job, networks, images)
    problems += _problems_of_samples(job, images)
    problems += _problems_of_evidence(job, images)
    problems += _problems_of_kinds(job, networks, images)
    if problems:
        raise JobFileError(f"job {job.name!r} cannot run:", problems)
    return Resolution(
        sweep=_sweep(job, data, images, tuple(networks), _energy(job, images, cache)),
        untrained=tuple(untrained.values()),
        num_bad_images=images.num_bad,
        class_names=images.class_names,
        fingerprints=fingerprints,
        notices=images.notices,
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
        need_fit=_fit_images_needed(job),
        wish_fit=_fit_images_wished(job),
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


@dataclass(frozen=True, kw_only=True)
class _Resolved:
    """One network, and what has to be made or kept of it."""

    network: Network
    to_train: TrainNetwork | None = None
    fingerprints: Mapping[str, bytes] = field(default_factory=dict)


def _resolve_network(
    spec: NetworkSpec, data: DataSpec, images: Images, artefacts: Artefacts, *, update: bool, generation: int
) -> _Resolved:
    if spec.is_features:
        return _Resolved(network=_features(spec, images))
    preprocess = spec.preprocess or default_preprocess(spec)
    key = training_key(spec, preprocess, images) if spec.is_made else None
    trained = key is not None and _is_there("network", key, artefacts, generation)
    is_known = key is None or trained
    state = load_state(artefacts.read_artefact("network", key)) if key is not None and trained else None
    module = build_network(spec, state=state) if is_known else make_network(spec)
    weights = state_digest(module)  # as they were loaded: cutting may bring them to float32
    cut = cut_network_on(_CPU, module, input_shape(preprocess, images), name=spec.name, interface=spec.interface)
    layers = tuple(chosen.layer for chosen in select_layers(cut, spec.layers))
    fingerprint, scores = _fingerprint(cut, layers, preprocess, images)
    head = detect_head(scores, ends_in=cut.ends_in, named=spec.head)
    network = Network(
        spec=spec,
        network_id=network_id(spec, preprocess, weights) if is_known else f"untrained-{key}",
        artefact=key,
        weights_digest=weights if is_known else "",
        preprocess=preprocess,
        layers=layers,
        num_cuts=len(cut.cuts),
        num_classes=num_classes_of(head, cut.num_classes),
        is_labelled=images.are_labels_of(num_classes_of(head, cut.num_classes)),
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        input_shape=cut.input_shape,
        flops=cut.flops,
        num_kept_bytes=kept_bytes(module, cut.input_shape),
        way=cut.way,
        head=head,
        types=cut.types,
        code=code_digest(spec),
    )
    if is_known:
        found = _identified(network, fingerprint, artefacts, tolerance=tolerance_of(cut), update=update)
        hold(found.network, cut)
        return found
    assert key is not None
    if spec.recipe is None:
        flops = cut.flops * min(TWIN_IMAGES, twin_images(images).num)
    else:  # a step costs a forward pass and about twice that backward
        flops = 3 * cut.flops * images.fit.num * spec.recipe.epochs
    made = replace(spec, preprocess=preprocess)
    to_train = TrainNetwork(unit_id=key, spec=made, data=data, flops=flops, generation=generation)
    return _Resolved(network=network, to_train=to_train)


def _features(spec: NetworkSpec, images: Images) -> Network:
    """Return the record of features, which have layers and nothing behind them."""
    found = open_features(spec, images)
    height, width = images.eval.size or (FEATURES_SIDE, FEATURES_SIDE)
    return Network(
        spec=spec,
        network_id=found.address,
        weights_digest=found.address,
        preprocess=Preprocess(),
        layers=found.layers,
        num_cuts=found.num_layers,
        num_classes=0,
        is_labelled=False,
        num_parameters=0,
        input_shape=(3, height, width),
        flops=0.0,
        num_kept_bytes=0,
        way="features",
        head=Head(kind=NO_HEAD),
    )


def _fingerprint(
    cut: CutNetwork, layers: Sequence[Layer], preprocess: Preprocess, images: Images
) -> tuple[Fingerprint, Tensor]:
    """Return a network's fingerprint, and its scores of the images looked at."""
    pixels = images.eval.batch(0, NUM_IMAGES)
    try:
        with few_threads(cut.flops):
            return take_fingerprint(cut, [layer.node for layer in layers], apply_preprocess(pixels, preprocess))
    except Exception as problem:  # the network's own code may fail in any way
        if isinstance(problem, StitchgridError) or is_out_of_memory(problem):
            raise
        said = f"{type(problem).__name__}: {first_line(problem)}"
        raise InputError(f"it fails on the first evaluation images ({said}).") from problem


def _identified(
    network: Network, fingerprint: Fingerprint, artefacts: Artefacts, *, tolerance: float, update: bool
) -> _Resolved:
    """Return a network under the address that the store knows it by, and what the store has to keep of it."""
    plain_id = network.network_id
    address, kept = identify(
        plain_id, fingerprint, artefacts, name=network.name, tolerance=tolerance, as_another=update
    )
    return _Resolved(
        network=replace(network, network_id=address, plain_id=plain_id, fingerprint=kept),
        fingerprints=unregistered(plain_id, fingerprint, artefacts, tolerance=tolerance),
    )


def _problems_of_samples(job: Job, images: Images) -> list[str]:
    """Return who asks for more images than there are."""
    fit, evaluation = ("fit", images.fit.num, job.data.fit.split), ("evaluation", images.eval.num, job.data.eval.split)
    asked = []
    for position, matcher in enumerate(job.matchers):
        role = fit if MATCHERS[matcher.kind].family == "stitcher" else evaluation
        asked.append((f"matchers[{position}].samples", matcher.kind, matcher.samples, role))
    if job.probes is not None:
        asked.append(("probes.samples", "a probe", job.probes.samples, fit))
    if job.energy_recipe() is not None:
        asked.append(("diagnostics.energy.samples", "a detector", job.diagnostics.energy.samples, fit))
    return [
        f"{where}: {who} asks for {samples} {role} images, and split {split!r} has {num}; lower it"
        + (', or write "all"' if who != "a probe" else "")
        for where, who, samples, (role, num, split) in asked
        if isinstance(samples, int) and samples > num
    ]


def _problems_of_evidence(job: Job, images: Images) -> list[str]:
    """Return what stands against intervals: groups of so few images that values without one are not defined."""
    groups = job.intervals.groups
    if groups is None:
        return []
    short: dict[int, dict[str, None]] = {}  # by number of images
    for spec in job.matcher_specs(num_fit=images.num_fit_listed):
        _, num = images_used(spec, num_fit=images.fit.num, num_fit_closed=images.fit.num, num_eval=images.eval.num)
        kept = num - -(-num // groups)
        if num < FEWEST_PER_GROUP * groups or kept < implementation(spec).fewest_images:
            short.setdefault(num, {})[spec.kind] = None
    return [
        f"intervals.groups: {num} evaluation images ({', '.join(kinds)}) cannot be divided into {groups} groups of "
        f"{FEWEST_PER_GROUP} or more, each of which can be left out; ask for fewer groups, or for more images"
        for num, kinds in short.items()
    ]


def _problems_of_kinds(job: Job, networks: Sequence[Network], images: Images) -> list[str]:
    """Return the matchers that have too few images, or say nothing of any two layers of the job."""
    found = []
    by_name = {network.name: network for network in networks}
    names = [spec.name for spec in job.network_specs()]
    known = [(by_name[names[f]], by_name[names[g]]) for f, g in job.pairs() if {names[f], names[g]} <= by_name.keys()]
    for position, matcher in enumerate(job.matchers):
        about, kind = MATCHERS[matcher.kind], kind_of(matcher.kind)(matcher.params)
        num = matcher.samples if isinstance(matcher.samples, int) and about.family == "index" else images.eval.num
        if matcher.samples is None:
            num = min(num, about.most_images or num)
        if num < kind.fewest_images:
            found.append(f"matchers[{position}]: {about.kind} needs {kind.fewest_images} images at least, got {num}")
        reasons = (kind.why_not(*layers) for f, g in known for layers in product(f.layers, g.layers))
        first = next(reasons, None)
        if first and all(reasons):
            found.append(f"matchers[{position}]: {first}; so it is with all layer pairs of the job: leave it out")
        pairs = (layers for f, g in known for layers in product(f.layers, g.layers) if kind.why_not(*layers) is None)
        if missing := next(filter(None, (kind.not_installed(*layers) for layers in pairs)), None):
            found.append(f"matchers[{position}]: {missing}")
    return found


def _problems_of_features(job: Job, networks: Sequence[Network], images: Images) -> list[str]:
    """Return what is asked of features that they cannot give: they have no rest that could be run, and fixed rows."""
    names = {network.name for network in networks if network.spec.is_features}
    if not names:
        return []
    specs, matchers, found = job.network_specs(), job.matcher_specs(), []
    sources, targets = ([name for f, g in job.pairs() if (name := specs[(f, g)[k]].name) in names] for k in (0, 1))
    stitchers = {spec.kind: spec for spec in matchers if MATCHERS[spec.kind].family == "stitcher"}
    alone = "use it as a source alone ([grid] pairs)"
    for name in dict.fromkeys(targets):
        if trained := [kind for kind in stitchers if MATCHERS[kind].is_trained]:
            found.append(
                f"model {name!r} is features: no network lies behind its layers through which {', '.join(trained)} "
                f"could be trained; {alone}, or leave these matchers out"
            )
        for spec in stitchers.values():
            tail = [metric for metric in spec.metrics if not needs_no_tail(spec.kind, metric)]
            is_asked = spec.metrics != default_metrics(spec.kind) and not MATCHERS[spec.kind].is_trained
            if tail and is_asked:
                found.append(
                    f"model {name!r} is features: no network lies behind its layers, so that {', '.join(tail)} of "
                    f"{spec.kind} into it cannot be measured; residual and r2 can: set metrics, or {alone}"
                )
    if sources and (some := [spec.kind for spec in matchers if spec.values.get("augment", "none") != "none"]):
        found.append(
            f"model {sources[0]!r} is features of the images as they are, and {some[0]} augments them; set "
            'augment = "none", or take it out of the sources ([grid] pairs)'
        )
    needs_fit = bool(stitchers) or job.probes is not None or any(spec.rank for spec in matchers)
    for network in networks:
        if network.name in names and needs_fit and images.fit.num and not has_fit_rows(network.spec, images):
            found.append(
                f"model {network.name!r} has features of split {job.data.eval.split!r} alone, and maps, probes and "
                f"ranks are fitted on split {job.data.fit.split!r}; add its features, or ask for indices alone"
            )
    return found


def _problems_of_labels(job: Job, networks: Sequence[Network], num_classes: int) -> list[str]:
    """Return what forbids stitching into networks whose classes are not those of the images."""
    specs = job.network_specs()
    targets = {specs[target].name for _, target in job.pairs()}
    kinds = {spec.kind: MATCHERS[spec.kind] for spec in job.matcher_specs()}
    stitchers = [kind for kind, matcher in kinds.items() if matcher.family == "stitcher"]
    if job.data.labels in ("agreement", "none"):
        stitchers = [kind for kind in stitchers if kinds[kind].needs_labels]
        way_out = '; labels = "agreement" does without labels, but not for kinds that are trained on them.'
    else:
        way_out = ', or set labels = "agreement" in [data], to have its agreement alone reported.'
    found: list[str] = []
    for network in networks:
        if network.is_labelled or network.name not in targets or network.spec.is_features:
            continue
        if not network.head.has_classes:
            found += _problems_without_classes(network, kinds)
            continue
        if not stitchers:
            continue
        has_any_head = network.spec.is_untrained or network.spec.recipe
        other_head = f"give it num_classes = {num_classes} in args, " if has_any_head else ""
        found.append(
            f"model {network.name!r}: the images have {num_classes} classes, the network {network.num_classes}, so "
            f"that {', '.join(stitchers)} into it cannot be compared with labels; {other_head}or use it as a source "
            f"alone ([grid] pairs){way_out}"
        )
    return found


def _problems_without_classes(network: Network, kinds: Mapping[str, About]) -> list[str]:
    """Return what forbids training maps into a network that knows no classes."""
    trained = [kind for kind, matcher in kinds.items() if matcher.needs_labels]
    if not trained:
        return []
    return [
        f"model {network.name!r} knows no classes (its head is {network.head.kind!r}), so {', '.join(trained)} into it "
        "cannot be trained on labels; use it as a source alone ([grid] pairs), or leave these matchers out."
    ]


def network_id(spec: NetworkSpec, preprocess: Preprocess, weights_digest: str) -> str:
    """Return the address of a frozen network: what it computes from an image, whatever it is called."""
    called = spec.interface.address
    return digest("network", weights_digest, code_digest(spec), spec.args, preprocess.address, *called)


def training_key(spec: NetworkSpec, preprocess: Preprocess, images: Images) -> str:
    """Return the address of a network that the sweep makes: the recipe, if any, and everything it starts from."""
    if spec.recipe is None:
        seen = twin_images(images)
        return digest(
            "twin",
            str(TWIN_REVISION),
            code_digest(spec),
            spec.args,
            str(spec.seed),
            preprocess.address,
            seen.digest(min(TWIN_IMAGES, seen.num)),
            *spec.interface.address,
        )
    return digest(
        "recipe",
        str(TRAINING_REVISION),
        canonical(asdict(spec.recipe)),
        code_digest(spec),
        spec.args,
        str(spec.seed),
        preprocess.address,
        images.fit.digest(images.fit.num),
        *spec.interface.address,
    )


def twin_images(images: Images) -> Split:
    """Return the images that give untrained twins their statistics: those for fitting, else those measured on."""
    return images.fit if images.fit.num else images.eval


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
    assert not network.spec.is_features, network.name
    if device.type == "cpu" and (held := held_cut(network)) is not None:
        return held
    with holding(network.spec):
        if network.code and (found := code_digest(network.spec)) != network.code:
            raise InputError(
                f"the code behind model {network.name!r} ({network.spec.architecture}) is not what the sweep was "
                f"planned with (wanted {network.code}, got {found}), and was not run; launch the job again. Packages "
                "of more than 20 MB are not sent to other nodes: install them there."
            )
        module = _load_module(network, artefacts, SharedWeights(cache or default_cache()), device)
    return cut_network_on(device, module, network.input_shape, name=network.name, interface=network.spec.interface)


def _load_module(network: Network, artefacts: Artefacts, shared: SharedWeights, device: torch.device) -> nn.Module:
    if network.artefact is not None:
        module = freeze(make_network(network.spec))
        shared.share(module, network.weights_digest, load=partial(_load_artefact, module, network, artefacts))
    else:
        module = build_network(network.spec)
    found = network_id(network.spec, network.preprocess, state_digest(module))
    wanted = network.plain_id or network.network_id
    if found != wanted:
        raise InputError(
            f"model {network.name!r} is not what it was when the sweep was planned (wanted network "
            f"{wanted}, got {found}): its checkpoint or code has changed; launch the job again."
        )
    if network.artefact is None and device.type == "cpu" and live_name(network.spec.architecture) is None:
        shared.share(module, network.weights_digest)
    return module


def check_fingerprint(network: Network, cut: CutNetwork, images: Pictures, *, device: torch.device) -> None:
    """See that a network computes on a worker what it did when the sweep was planned.

    Raises:
        InputError: If it does not.
    """
    assert network.fingerprint is not None, f"{network.name} has no fingerprint"
    if cut is held_cut(network):  # the very network that it was taken of
        return
    pixels = images.batch(torch.arange(min(NUM_IMAGES, images.num), device=images.labels.device))
    seen = apply_preprocess(on_device(pixels, torch.device("cpu")), network.preprocess)
    with running_in("fp32", device), few_threads(cut.flops):
        found, _ = take_fingerprint(cut, [layer.node for layer in network.layers], seen, device=device)
    if told := difference(network.fingerprint, found, tolerance=tolerance_of(cut)):
        raise InputError(
            f"model {network.name!r} does not compute here what it did when the sweep was planned: {told}. A file or "
            "environment variable that its code reads, or the version of a library, is another one on this node."
        )


def _load_artefact(module: nn.Module, network: Network, artefacts: Artefacts) -> None:
    assert network.artefact is not None
    state = load_state(artefacts.read_artefact("network", network.artefact))
    load_into(module, state, origin=f"the stored state of {network.name!r}")


def input_shape(preprocess: Preprocess, images: Images) -> tuple[int, int, int]:
    """Return (channels, height, width) of a network's images after its preprocessing."""
    size, channels = images.eval.size, images.eval.channels or preprocess.channels
    if size is None:
        if preprocess.crop is None and not isinstance(preprocess.resize, tuple):
            raise InputError(
                "the images differ in size, so a network needs preprocess = { resize = ..., crop = ... } "
                "(or resize = [height, width]) to bring them to one."
            )
        size = (4096, 4096)
    return (channels, *output_size(preprocess, *size))
