"""Reads activations of sources and targets on training images, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.low_rank import Reductions, projected
from stitchgrid.engine.workspace import Pixels, Workspace, by_network, forward
from stitchgrid.matchers.drawing import image_order
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.models.features import ImagePositions
from stitchgrid.preprocess import apply_preprocess, augment_crop4_flip, on_device
from stitchgrid.records import Cell
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.passes import CACHE_BYTES, reading_of


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Labels of a batch, and activations of sources and targets on it."""

    labels_N: Tensor
    sources: dict[LayerKey, Tensor]
    targets: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # by network and node; (N, P), float32

    def part(self, some: slice) -> "Seen":
        """Return the labels and activations of some of its images."""
        return Seen(
            labels_N=self.labels_N[some],
            sources={key: a[some] for key, a in self.sources.items()},
            targets={n: {node: a[some] for node, a in of.items()} for n, of in self.targets.items()},
        )


def _places(indices: Tensor) -> ImagePositions:
    return ImagePositions(role="fit", at_N=indices)


class TargetReader:
    """Reads the targets' own activations on the images on which maps are trained."""

    def __init__(self, work: Workspace, nodes: Mapping[int, Sequence[str]]):
        self.work, self.nodes = work, nodes

    @torch.no_grad()
    def read(self, pixels: Pixels) -> dict[int, dict[str, Tensor]]:
        """Return the activations at the nodes of each network, flattened: (N, P), float32."""
        pixels, found = on_device(pixels, self.work.device), {}
        for network, nodes in self.nodes.items():
            images = apply_preprocess(pixels, self.work.sweep.networks[network].preprocess)
            run = self.work.network(network).taps(nodes)
            parts = []
            for part in torch.split(images.contiguous(memory_format=torch.channels_last), self.work.batch_size):
                with self.work.precision():
                    parts.append([a.float().flatten(1) for a in run(part)])
            found[network] = {node: torch.cat(a) for node, a in zip(nodes, zip(*parts, strict=True), strict=True)}
        return found


def source_reader(
    work: Workspace,
    ledger: Ledger,
    cells: Sequence[Cell],
    reductions: Reductions | None = None,
    *,
    like: "SourceReader | None" = None,
) -> "SourceReader":
    """Return a reader of the sources of one matcher's cells: `like`, another matcher's, if it reads the same."""
    reader = SourceReader(
        work,
        sorted({cell.source_key for cell in cells}),
        ledger[cells[0]].num_fit or 0,
        augment=work.sweep.matchers[cells[0].matcher].values["augment"],
        reduced={cell.source_key: found for cell in cells if reductions and (found := reductions.get(cell))},
    )
    return like if like is not None and like.reads_as(reader) else reader


class SourceReader:
    """Reads activations of sources on training images, batch by batch, in an order that a seed decides."""

    def __init__(
        self,
        work: Workspace,
        keys: Sequence[LayerKey],
        num_images: int,
        *,
        augment: str,
        reduced: Mapping[LayerKey, Reduction] | None = None,
    ):
        self.work, self.keys, self.num_images, self.augment = work, list(keys), num_images, augment
        self.reduced = reduced or {}
        self.wanted = by_network(keys)
        reading = reading_of(work.geometry, self.keys, num_images=num_images, augment=augment)
        self._keeps = reading.keeps(work.halved(CACHE_BYTES))
        self.kept: dict[LayerKey, Tensor] | None = None  # from the first epoch on

    def reads_as(self, other: "SourceReader") -> bool:
        """Return whether another reader reads the same layers of the same images in the same way."""
        alike = (self.work.halvings, self.keys, self.num_images, self.augment, self.reduced.keys())
        if alike != (other.work.halvings, other.keys, other.num_images, other.augment, other.reduced.keys()):
            return False
        return all(reduction is other.reduced[key] for key, reduction in self.reduced.items())

    def in_order(self, num_images: int, targets: TargetReader | None = None) -> Iterator[Seen]:
        """Yield the first images in batches, not augmented."""
        labels = self.work.images.fit.labels
        for start in range(0, num_images, self.work.batch_size):
            some = slice(start, min(start + self.work.batch_size, num_images))
            indices = torch.arange(some.start, some.stop, device=labels.device)
            if self.kept is not None:
                yield self._seen(indices, {key: tensor[some] for key, tensor in self.kept.items()}, targets)
            else:
                yield self._read(indices, None, targets)

    def _read_all(self) -> dict[LayerKey, Tensor]:
        parts: dict[LayerKey, list[Tensor]] = {key: [] for key in self.keys}
        for start in range(0, self.num_images, self.work.batch_size):
            stop = min(start + self.work.batch_size, self.num_images)
            indices = torch.arange(start, stop, device=self.work.images.fit.labels.device)
            for key, tensor in self._run(self.work.images.fit.batch(indices), _places(indices)).items():
                parts[key].append(tensor)
        return {key: torch.cat(tensors) for key, tensors in parts.items()}

    def _read(self, indices: Tensor, generator: torch.Generator | None, targets: TargetReader | None) -> Seen:
        pixels = self.work.images.fit.batch(indices)
        if generator is not None:
            pixels = augment_crop4_flip(pixels, generator)
        places = None if generator is not None else _places(indices)
        return self._seen(indices, self._run(pixels, places), targets, pixels)

    def _seen(
        self,
        indices: Tensor,
        sources: dict[LayerKey, Tensor],
        targets: TargetReader | None,
        pixels: Pixels | None = None,
    ) -> Seen:
        labels_N = self.work.images.fit.labels[indices].to(self.work.device)
        if targets is None:
            return Seen(labels_N=labels_N, sources=sources)
        return Seen(
            labels_N=labels_N,
            sources=sources,
            targets=targets.read(self.work.images.fit.batch(indices) if pixels is None else pixels),
        )

    def _run(self, pixels: Pixels, places: ImagePositions | None) -> dict[LayerKey, Tensor]:
        size = self.work.batch_size
        some = [slice(start, start + size) for start in range(0, len(pixels), size)]
        parts = [forward(self.work, pixels[part], self.wanted, places=places and places.part(part))[0] for part in some]
        return {key: self._reduced(key, torch.cat([part[key].float() for part in parts])) for key in self.keys}

    def _reduced(self, key: LayerKey, a: Tensor) -> Tensor:
        return projected(a, self.reduced[key], self.work.layer(key).feature_axis) if key in self.reduced else a

    def epoch(self, epoch: int, *, seed: int, batch_size: int, targets: TargetReader | None = None) -> Iterator[Seen]:
        """Yield every batch, with the targets' activations on the same images if `targets` is given.

        The last batch may be smaller.
        """
        if self._keeps and self.kept is None:
            self.kept = self._read_all()
        order, generator = image_order(self.num_images, seed=seed, epoch=epoch)
        labels = self.work.images.fit.labels
        for indices in torch.split(order.to(labels.device), batch_size):
            if self.kept is not None:
                positions = indices.to(self.work.device)
                yield self._seen(indices, {key: tensor[positions] for key, tensor in self.kept.items()}, targets)
            else:
                yield self._read(indices, generator if self.augment != "none" else None, targets)
