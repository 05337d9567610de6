"""A network as a job names it -> the network, built, cut and identified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from stitchgrid.datasets import Images
from stitchgrid.errors import InputError, StitchgridError, is_out_of_memory
from stitchgrid.matchers.heads import detect_head, num_classes_of
from stitchgrid.models.architecture import code_digest
from stitchgrid.models.build import build_network, default_preprocess, make_network
from stitchgrid.models.cut_network import cut_network_on
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.features import open_features
from stitchgrid.models.fingerprint import NUM_IMAGES, identify, take_fingerprint, tolerance_of, unregistered
from stitchgrid.models.held import hold
from stitchgrid.models.memory import kept_bytes
from stitchgrid.models.proof import first_line
from stitchgrid.models.select import select_layers
from stitchgrid.models.training import TWIN_IMAGES
from stitchgrid.models.user_forward import FAILURES
from stitchgrid.models.weights import load_state, state_digest
from stitchgrid.precision import few_threads
from stitchgrid.preprocess import apply_preprocess, check_channels, output_size
from stitchgrid.records import (
    NO_HEAD,
    DataSpec,
    Fingerprint,
    Head,
    Layer,
    Network,
    NetworkSpec,
    Preprocess,
    TrainNetwork,
)
from stitchgrid.resolve.artefacts import ArtefactReader, is_made
from stitchgrid.resolve.keys import network_id, training_key, twin_images
from stitchgrid.resolve.loading import CPU

FEATURES_SIDE = 32  # pixels, noted for features where images differ in size: the true input size is not known


@dataclass(frozen=True, kw_only=True)
class _Resolved:
    """One network, with the training that it still needs and the fingerprints that the store has to keep."""

    network: Network
    to_train: TrainNetwork | None = None
    fingerprints: Mapping[str, bytes] = field(default_factory=dict)


def resolve_network(
    spec: NetworkSpec, data: DataSpec, images: Images, artefacts: ArtefactReader, *, update: bool, generation: int
) -> _Resolved:
    """Return the network of a specification, built, cut and identified, or the training that has to come first."""
    if spec.is_features:
        return _Resolved(network=_features(spec, images))
    preprocess = spec.preprocess or default_preprocess(spec)
    key = training_key(spec, preprocess, images) if spec.is_made else None
    trained = key is not None and is_made("network", key, artefacts, generation)
    is_known = key is None or trained
    state = load_state(artefacts.read_artefact("network", key)) if key is not None and trained else None
    module = build_network(spec, state=state) if is_known else make_network(spec)
    weights = state_digest(module)  # as they were loaded: cutting may bring them to float32
    cut = cut_network_on(CPU, module, input_shape(preprocess, images), name=spec.name, interface=spec.interface)
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
    except FAILURES as problem:  # the network's own code may fail in any way
        if isinstance(problem, StitchgridError) or is_out_of_memory(problem):
            raise
        raise InputError(f"it fails on the first evaluation images ({first_line(problem)}).") from problem


def _identified(
    network: Network, fingerprint: Fingerprint, artefacts: ArtefactReader, *, tolerance: float, update: bool
) -> _Resolved:
    """Return a network under its address in the store, with the fingerprints that the store has to keep."""
    plain_id = network.network_id
    address, kept = identify(
        plain_id, fingerprint, artefacts, name=network.name, tolerance=tolerance, as_another=update
    )
    return _Resolved(
        network=replace(network, network_id=address, plain_id=plain_id, fingerprint=kept),
        fingerprints=unregistered(plain_id, fingerprint, artefacts, tolerance=tolerance),
    )


def input_shape(preprocess: Preprocess, images: Images) -> tuple[int, int, int]:
    """Return (channels, height, width) of a network's images after its preprocessing.

    Raises:
        InputError: If they have no one size, or cannot have the channels.
    """
    size = images.eval.size
    if not images.eval.is_float:
        check_channels(preprocess, images.eval.channels)
    channels = images.eval.channels if images.eval.is_float else preprocess.channels
    if size is None:
        if preprocess.crop is None and not isinstance(preprocess.resize, tuple):
            raise InputError(
                "the images differ in size, so a network needs preprocess = { resize = ..., crop = ... } "
                "(or resize = [height, width]) to bring them to one size."
            )
        size = (4096, 4096)
    return (channels, *output_size(preprocess, *size))
