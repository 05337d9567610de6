"""Networks of a sweep -> modules that run, checked against their fingerprints."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from stitchgrid.cache import default_cache
from stitchgrid.datasets.device_images import Pictures
from stitchgrid.errors import InputError
from stitchgrid.live_networks import live_name
from stitchgrid.models.architecture import code_digest, holding
from stitchgrid.models.build import build_network, make_network
from stitchgrid.models.cut_network import cut_network_on
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.fingerprint import NUM_IMAGES, difference, take_fingerprint, tolerance_of
from stitchgrid.models.freeze import freeze
from stitchgrid.models.held import held_cut
from stitchgrid.models.shared_weights import SharedWeights
from stitchgrid.models.weights import load_into, load_state, state_digest
from stitchgrid.precision import few_threads, running_in
from stitchgrid.preprocess import apply_preprocess, on_device
from stitchgrid.records import Network
from stitchgrid.resolve.artefacts import ArtefactReader
from stitchgrid.resolve.keys import network_id

CPU = torch.device("cpu")


def load_network(
    network: Network, artefacts: ArtefactReader, *, device: torch.device, cache: Path | None = None
) -> CutNetwork:
    """Build a resolved network again, on a worker.

    On the CPU, all workers of a node share the memory of its weights, and weights in the store are read once per node.

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


def _load_module(network: Network, artefacts: ArtefactReader, shared: SharedWeights, device: torch.device) -> nn.Module:
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
    """Check that a network computes on a worker what it did when the sweep was planned.

    Raises:
        InputError: If the network computes something else.
    """
    assert network.fingerprint is not None, f"{network.name} has no fingerprint"
    if cut is held_cut(network):  # the fingerprint was taken of this same object
        return
    pixels = images.batch(torch.arange(min(NUM_IMAGES, images.num), device=images.labels.device))
    seen = apply_preprocess(on_device(pixels, CPU), network.preprocess)
    with running_in("fp32", device), few_threads(cut.flops):
        found, _ = take_fingerprint(cut, [layer.node for layer in network.layers], seen, device=device)
    if told := difference(network.fingerprint, found, tolerance=tolerance_of(cut)):
        raise InputError(
            f"model {network.name!r} does not compute here what it did when the sweep was planned: {told}. A file or "
            "environment variable that its code reads, or the version of a library, differs on this node."
        )


def _load_artefact(module: nn.Module, network: Network, artefacts: ArtefactReader) -> None:
    assert network.artefact is not None
    state = load_state(artefacts.read_artefact("network", network.artefact))
    load_into(module, state, origin=f"the stored state of {network.name!r}")
