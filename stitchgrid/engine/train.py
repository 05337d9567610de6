"""Training stitchers through frozen tails: all sources into one target layer together, all target layers in one pass.

Shape suffixes: S stitched networks, N images, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.low_rank import Reductions, projected
from stitchgrid.engine.stitched import Stitch, stacks, stitch_rows
from stitchgrid.engine.workspace import LayerKey, Workspace, by_network, forward
from stitchgrid.matchers.alignment import install
from stitchgrid.matchers.divergence import constant_loss, has_diverged, loss_images
from stitchgrid.matchers.drawing import image_order, initial_map, seeded
from stitchgrid.matchers.heads import losses
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.matchers.stitchers.task_loss import stacked_task_loss
from stitchgrid.preprocess import augment_crop4_flip
from stitchgrid.records import Cell, Layer, Network

CACHE_BYTES = 1 << 30  # of source activations kept between epochs, where nothing changes them


def train_task_loss(
    work: Workspace,
    ledger: Ledger,
    cells: Sequence[Cell],
    reader: "SourceReader",
) -> list[Stitch]:
    """Return the trained maps of all cells of one matcher, in the order of the cells, but for those that failed.

    `reader` is the cells' `source_reader`. A map is trained on its source as that reduces it; the one returned takes
    the unreduced source.

    Every cell starts from its own initialisation and sees the images in the order its matcher's seed decides, so that
    stacking changes a result by rounding alone. Only the maps have gradients; the networks stay frozen.
    """
    spec = work.sweep.matchers[cells[0].matcher]
    params = spec.values
    maps = _parameters(work, cells)
    rules = work.rules(cells[0])
    stitches = [Stitch(cell=cell, map=initial, rules=rules) for cell, initial in zip(cells, maps, strict=True)]
    tensors = [tensor for stitch in stitches for tensor in (stitch.map.weight_DE, stitch.map.bias_E)]
    adam = torch.optim.Adam(tensors, lr=params["lr"], weight_decay=params["weight_decay"], fused=True)
    ordered = sorted(stitches, key=lambda stitch: stitch.cell.target_key)
    tails = [(key, list(group)) for key, group in groupby(ordered, key=lambda stitch: stitch.cell.target_key)]
    for epoch in range(params["epochs"]):
        for labels_N, activations in reader.epoch(epoch, seed=spec.seed or 0, batch_size=params["batch_size"]):
            adam.zero_grad(set_to_none=True)
            for target, group in tails:
                if sound := ledger.sound(stitch.cell for stitch in group):
                    with ledger.failing(sound):
                        _backward(work, target, group, activations, labels_N)
            adam.step()
    _note_diverged(work, ledger, tails, reader, num_seen=params["epochs"] * reader.num_images)
    done = [replace(s, map=s.map.double()) for s in stitches if ledger[s.cell].error is None]
    return [
        replace(s, map=reader.reduced[s.cell.source_key].before(s.map)) if s.cell.source_key in reader.reduced else s
        for s in done
    ]


def _note_diverged(
    work: Workspace,
    ledger: Ledger,
    tails: Sequence[tuple[LayerKey, list[Stitch]]],
    reader: "SourceReader",
    *,
    num_seen: int,
) -> None:
    """Flag the cells whose training came to nothing, by `has_diverged` on the first `loss_images` fit images."""
    num_images = loss_images(reader.num_images, num_seen=num_seen)
    totals: dict[str, list[Tensor]] = {}  # of losses, batch by batch
    for labels_N, activations in reader.in_order(num_images):
        for target, group in tails:
            sound = [stitch for stitch in group if ledger[stitch.cell].error is None]
            for part in stacks(work, work.layer(target), len(sound), len(labels_N)) if sound else ():
                with ledger.failing(stitch.cell for stitch in sound[part]):
                    losses_S = _losses(work, target, sound[part], activations, labels_N)
                    for stitch, loss in zip(sound[part], losses_S, strict=True):
                        totals.setdefault(stitch.cell.cell_id, []).append(loss)
    labels = work.images.fit.labels[:num_images]
    constants = {
        key: constant_loss(labels, _network(work, key).head, _network(work, key).num_classes) for key, _ in tails
    }
    told = torch.stack([torch.stack(some).sum() for some in totals.values()]).tolist() if totals else []
    for cell_id, total in zip(totals, told, strict=True):
        entry = ledger.entries[cell_id]
        if has_diverged(total / num_images, constants[entry.cell.target_key]):
            entry.flags.add("diverged")


@torch.no_grad()
def _losses(
    work: Workspace, target: LayerKey, stack: Sequence[Stitch], activations: dict[LayerKey, Tensor], labels_N: Tensor
) -> Tensor:
    """Return the summed cross-entropy of each stitched network on some images: (S,), float64."""
    layer = work.layer(target)
    rows_NPE = _stacked_rows(work, stack, layer, activations)
    with work.precision():
        logits_NK = work.tail(target)(install(rows_NPE, layer))
    scores_SNK = logits_NK.float().unflatten(0, (len(stack), len(labels_N)))
    return losses(scores_SNK, labels_N, _network(work, target).head).double().sum(1)


def _network(work: Workspace, key: LayerKey) -> Network:
    return work.sweep.networks[key[0]]


def source_reader(
    work: Workspace,
    ledger: Ledger,
    cells: Sequence[Cell],
    reductions: Reductions | None = None,
    *,
    like: "SourceReader | None" = None,
) -> "SourceReader":
    """Return what reads the sources of one matcher's cells: `like`, which another has used, if it reads the same."""
    reader = SourceReader(
        work,
        sorted({cell.source_key for cell in cells}),
        ledger[cells[0]].num_fit or 0,
        augment=work.sweep.matchers[cells[0].matcher].values["augment"],
        reduced={cell.source_key: found for cell in cells if reductions and (found := reductions.get(cell))},
    )
    return like if like is not None and like.reads_as(reader) else reader


def _parameters(work: Workspace, cells: Sequence[Cell]) -> list[AffineMap]:
    """Return the maps that cells start from, brought to the device in one transfer."""
    drawn = [
        initial_map(
            work.layer(cell.source_key).width,
            work.layer(cell.target_key).width,
            generator=seeded("initial map", work.sweep.full_rank_id(cell)),
        )
        for cell in cells
    ]
    tensors = [tensor for initial in drawn for tensor in (initial.weight_DE, initial.bias_E)]
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(work.device)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    there = [part.view(tensor.shape).clone().requires_grad_() for part, tensor in zip(parts, tensors, strict=True)]
    return [AffineMap(weight_DE=weight, bias_E=bias) for weight, bias in zip(there[::2], there[1::2], strict=True)]


def _backward(
    work: Workspace, target: LayerKey, group: Sequence[Stitch], activations: dict[LayerKey, Tensor], labels_N: Tensor
) -> None:
    """Add the gradients of all stitched networks that end in one target layer."""
    layer = work.layer(target)
    num_images = len(labels_N)
    at_a_time = work.share(num_images)
    for first in range(0, num_images, at_a_time):
        some = slice(first, min(first + at_a_time, num_images))
        num_some = some.stop - some.start
        for part in stacks(work, layer, len(group), num_some):
            stack = group[part]
            with torch.enable_grad():
                # the maps are applied as they are when they are measured, in float32, and their gradients found so
                rows_NPE = _stacked_rows(work, stack, layer, {key: a[some] for key, a in activations.items()})
                gradient_NPE = _tail_gradient(work, target, rows_NPE.detach(), labels_N[some])
                rows_NPE.backward(gradient_NPE * (num_some / num_images))  # type: ignore[no-untyped-call]


def _stacked_rows(
    work: Workspace, stack: Sequence[Stitch], target: Layer, activations: dict[LayerKey, Tensor]
) -> Tensor:
    """Return what all maps make of their sources on the target's rows, stitched networks one after the other."""
    sources = [s.cell.source_key for s in stack]
    return torch.cat(
        [
            stitch_rows(s.map, activations[key], work.layer(key), target, s.rules)
            for s, key in zip(stack, sources, strict=True)
        ]
    )


def _tail_gradient(work: Workspace, target: LayerKey, rows_NPE: Tensor, labels_N: Tensor) -> Tensor:
    """Return the gradient of all stitched networks' losses with respect to what the tail is given."""
    rows_NPE.requires_grad_()
    with work.precision():
        logits_NK = work.tail(target)(install(rows_NPE, work.layer(target)))
    scores_SNK = logits_NK.unflatten(0, (len(rows_NPE) // len(labels_N), len(labels_N)))
    loss = stacked_task_loss(scores_SNK, labels_N, _network(work, target).head)
    with work.precision_back():
        return torch.autograd.grad(loss, rows_NPE)[0]


class SourceReader:
    """Source activations of the training images, batch by batch, in an order that a seed decides."""

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
        bytes_per_image = 4 * sum(torch.Size(work.layer(key).shape).numel() for key in keys)
        self._keeps = augment == "none" and bytes_per_image * num_images <= work.share(CACHE_BYTES)
        self.kept: dict[LayerKey, Tensor] | None = None  # from the first epoch on

    def reads_as(self, other: "SourceReader") -> bool:
        """Return whether another reads the same from the same images."""
        alike = (self.work.halvings, self.keys, self.num_images, self.augment, self.reduced.keys())
        if alike != (other.work.halvings, other.keys, other.num_images, other.augment, other.reduced.keys()):
            return False
        return all(reduction is other.reduced[key] for key, reduction in self.reduced.items())

    def in_order(self, num_images: int) -> Iterator[tuple[Tensor, dict[LayerKey, Tensor]]]:
        """Yield labels and source activations of the first images in batches, not augmented."""
        labels = self.work.images.fit.labels
        for start in range(0, num_images, self.work.batch_size):
            some = slice(start, min(start + self.work.batch_size, num_images))
            labels_N = labels[some].to(self.work.device)
            if self.kept is not None:
                yield labels_N, {key: tensor[some] for key, tensor in self.kept.items()}
            else:
                yield labels_N, self._run(torch.arange(some.start, some.stop, device=labels.device), None)

    def _read_all(self) -> dict[LayerKey, Tensor]:
        parts: dict[LayerKey, list[Tensor]] = {key: [] for key in self.keys}
        for start in range(0, self.num_images, self.work.batch_size):
            stop = min(start + self.work.batch_size, self.num_images)
            indices = torch.arange(start, stop, device=self.work.images.fit.labels.device)
            for key, tensor in self._run(indices, None).items():
                parts[key].append(tensor)
        return {key: torch.cat(tensors) for key, tensors in parts.items()}

    def _run(self, indices: Tensor, generator: torch.Generator | None) -> dict[LayerKey, Tensor]:
        pixels = self.work.images.fit.batch(indices)
        if generator is not None:
            pixels = augment_crop4_flip(pixels, generator)
        size = self.work.batch_size
        parts = [forward(self.work, pixels[k : k + size], self.wanted)[0] for k in range(0, len(pixels), size)]
        return {key: self._reduced(key, torch.cat([part[key].float() for part in parts])) for key in self.keys}

    def _reduced(self, key: LayerKey, a: Tensor) -> Tensor:
        return projected(a, self.reduced[key], self.work.layer(key).feature_axis) if key in self.reduced else a

    def epoch(self, epoch: int, *, seed: int, batch_size: int) -> Iterator[tuple[Tensor, dict[LayerKey, Tensor]]]:
        """Yield labels and source activations of every batch; the last one may be short."""
        if self._keeps and self.kept is None:
            self.kept = self._read_all()
        order, generator = image_order(self.num_images, seed=seed, epoch=epoch)
        labels = self.work.images.fit.labels
        for indices in torch.split(order.to(labels.device), batch_size):
            labels_N = labels[indices].to(self.work.device)
            if self.kept is not None:
                positions = indices.to(self.work.device)
                yield labels_N, {key: tensor[positions] for key, tensor in self.kept.items()}
            else:
                yield labels_N, self._run(indices, generator if self.augment != "none" else None)
