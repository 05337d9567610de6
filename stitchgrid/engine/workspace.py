"""The engine's frozen networks and images, and forward passes that serve all consumers at once."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from stitchgrid.datasets.device_images import PicturePair, Pictures
from stitchgrid.engine.kept_passes import KeptPass
from stitchgrid.errors import InputError
from stitchgrid.matchers.params import Rules
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.detector import Detector
from stitchgrid.models.features import FeaturesNetwork, ImagePositions
from stitchgrid.precision import running_back_in, running_in
from stitchgrid.preprocess import apply_preprocess, on_device
from stitchgrid.records import Cell, Layer, Preprocess, Sweep
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.needs import CellGrid, Needs, all_needs
from stitchgrid.statistics.rows import Geometry, RowSpace

Pixels = Tensor | list[Tensor]  # as `Split.batch` returns them


def no_detector(key: LayerKey) -> Detector:
    """Refuse: this workspace has no detectors, since no matcher asks for them."""
    raise AssertionError(f"there is no detector of layer {key} in this workspace")


def not_noted(source: int, target: int) -> str | None:  # noqa: ARG001
    """Return None: the versions of libraries are not recorded."""
    return None


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Frozen networks and images on one device, and how much of them is held at a time."""

    sweep: Sweep
    images: PicturePair
    network: Callable[[int], CutNetwork]
    device: torch.device
    detector: Callable[[LayerKey], Detector] = no_detector  # of a target layer
    libraries: Callable[[int, int], str | None] = not_noted  # of two networks: canonical JSON of name -> version
    kept: KeptPass | None = None  # of passes over the evaluation images
    halvings: int = 0  # of everything that is held at a time, after memory ran out

    @property
    def batch_size(self) -> int:
        """How many images the networks see at a time."""
        return self.halved(self.sweep.batch_size)

    def halved(self, amount: int) -> int:
        """Return a number of images or bytes after the halvings, 1 at least."""
        return max(1, amount >> self.halvings)

    def taps(self, index: int, layers: Sequence[int], *, scores: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Return a function of images: the activations of these layers of a network, then its logits if asked for."""
        network, nodes = self.network(index), self.nodes(index, layers)
        return network.taps([*nodes, network.logits] if scores else nodes)

    def nodes(self, index: int, layers: Sequence[int]) -> list[str]:
        """Return the nodes of some layers of a network."""
        return [self.sweep.networks[index].layers[layer].node for layer in layers]

    def tail(self, key: LayerKey) -> nn.Module:
        """Return the rest of a network behind one of its layers."""
        return self.network(key[0]).suffix(self.layer(key).node)

    def layer(self, key: LayerKey) -> Layer:
        """Return the record of a layer."""
        return self.sweep.networks[key[0]].layers[key[1]]

    @cached_property
    def geometry(self) -> Geometry:
        """The rows of all layers."""
        return Geometry(self.sweep)

    @cached_property
    def needs(self) -> tuple[Needs, ...]:
        """What each matcher reads."""
        return all_needs(self.sweep)

    def asked(self, cells: Iterable[Cell]) -> list[CellGrid]:
        """Return cells as grids of one cell each, with the needs of their matchers."""
        return [
            CellGrid(needs=self.needs[cell.matcher], sources=(cell.source_key,), targets=(cell.target_key,))
            for cell in cells
        ]

    def space(self, cell: Cell) -> RowSpace:
        """Return the rows in which a cell's layers are compared."""
        return self.geometry.between(cell.source_key, cell.target_key, self.needs[cell.matcher].rules)

    def rules(self, cell: Cell) -> Rules:
        """Return the rules by which a stitcher resamples its source to its target."""
        rules = self.needs[cell.matcher].rules
        assert rules is not None, "indices do not resample"
        return rules

    def rank(self, cell: Cell) -> int | None:
        """Return the rank to which a cell reduces its source, None if it keeps all directions."""
        return self.needs[cell.matcher].rank_of(self.layer(cell.source_key).width)

    def precision(self) -> AbstractContextManager[None]:
        """Return a context in which networks run in the job's precision."""
        return running_in(self.sweep.precision, self.device)

    def precision_back(self) -> AbstractContextManager[None]:
        """Return a context in which gradients of networks are computed in the job's precision."""
        return running_back_in(self.sweep.precision)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The activations and logits of networks on the same images."""

    start: int  # position of the first image in its split
    labels_N: Tensor
    activations: dict[LayerKey, Tensor]
    logits: dict[int, Tensor]
    found: dict[Hashable, Tensor] = field(default_factory=dict)  # tensors that `once` has computed, by their keys

    def once(self, what: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of the key `what`, which `make` computes the first time."""
        if what not in self.found:
            self.found[what] = make()
        return self.found[what]

    @property
    def stop(self) -> int:
        """Position after that of the last image."""
        return self.start + len(self.labels_N)

    def count_below(self, stop: int) -> int:
        """Return how many of the batch's images lie below position `stop` of the split."""
        return max(0, min(stop - self.start, len(self.labels_N)))


@torch.no_grad()
def forward(
    work: Workspace,
    pixels: Pixels,
    wanted: Mapping[int, Sequence[int]],
    scored: Collection[int] = (),
    *,
    places: ImagePositions | None = None,
) -> tuple[dict[LayerKey, Tensor], dict[int, Tensor]]:
    """Run each wanted network once over the images, no further than needed.

    Return the activations of their wanted layers, and the logits of those that are scored. Images, and so maps, are in
    the channels-last memory format: it is faster for convolutions, and rows of features are contiguous in it. Features
    are looked up by the `places` of the images, which are None for augmented images.

    Raises:
        InputError: If features of such images are wanted.
    """
    activations: dict[LayerKey, Tensor] = {}
    logits: dict[int, Tensor] = {}
    inputs: dict[Preprocess, Tensor] = {}
    pixels = on_device(pixels, work.device)
    for index, layers in wanted.items():
        network = work.network(index)
        if isinstance(network, FeaturesNetwork):
            found = network.rows(work.nodes(index, layers), _known(places, work.sweep.networks[index].name))
            activations |= {(index, layer): tensor for layer, tensor in zip(layers, found, strict=True)}
            continue
        preprocess = work.sweep.networks[index].preprocess
        if preprocess not in inputs:
            images = apply_preprocess(pixels, preprocess)
            inputs[preprocess] = images.contiguous(memory_format=torch.channels_last)
        with work.precision():
            taken = work.taps(index, layers, scores=index in scored)(inputs[preprocess])
        activations |= {(index, layer): tensor for layer, tensor in zip(layers, taken, strict=False)}
        if index in scored:
            logits[index] = taken[-1]
    return activations, logits


def _known(places: ImagePositions | None, name: str) -> ImagePositions:
    if places is None:
        raise InputError(f'{name} has features of the drawn images, and none of augmented ones; set augment = "none".')
    return places


def batches(
    work: Workspace,
    split: Pictures,
    wanted: Mapping[int, Sequence[int]],
    *,
    scored: Collection[int] = (),
    start: int = 0,
    stop: int,
    keeps: bool = False,
) -> Iterator[Batch]:
    """Yield batches of a split from `start` to `stop` in order, each with the activations of all wanted networks.

    A network whose activations on evaluation images were kept does not run on them again. With `keeps`, those of the
    scored networks are kept.
    """
    kept = work.kept if split is work.images.eval else None
    for first in range(start, stop, work.batch_size):
        last = min(first + work.batch_size, stop)
        left, activations, logits = (wanted, {}, {}) if kept is None else kept.split(wanted, scored, (first, last))
        if left or kept is None:
            at_N = torch.arange(first, last, device=split.labels.device)
            places = ImagePositions(role="fit" if split is work.images.fit else "eval", at_N=at_N)
            made, scores = forward(work, split.batch(at_N), left, scored, places=places)
            activations, logits = activations | made, logits | scores
        if kept is not None and keeps:
            for network in scored:
                of_network = {(network, layer): activations[network, layer] for layer in wanted[network]}
                kept.keep(network, (first, last), of_network, logits[network])
        labels_N = split.labels[first:last].to(work.device)
        yield Batch(start=first, labels_N=labels_N, activations=activations, logits=logits)


def by_network(keys: Iterable[LayerKey]) -> dict[int, list[int]]:
    """Return network -> its layers among the keys, sorted."""
    wanted: dict[int, set[int]] = {}
    for network, layer in keys:
        wanted.setdefault(network, set()).add(layer)
    return {network: sorted(layers) for network, layers in sorted(wanted.items())}
