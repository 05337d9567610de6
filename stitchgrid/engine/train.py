"""Training stitchers through frozen tails: all sources into one target layer together, all target layers in one pass.

Shape suffixes: S stitched networks, N images, K scores, P numbers of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.stitched import FittedStitch, stacks, stitch_rows
from stitchgrid.engine.training_images import Seen, SourceReader, TargetReader
from stitchgrid.engine.workspace import Workspace
from stitchgrid.matchers.adapters import Adapter
from stitchgrid.matchers.alignment import install
from stitchgrid.matchers.divergence import has_diverged, loss_images
from stitchgrid.matchers.drawing import initial_map, seeded
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.protocol import Mean, Step, Trained
from stitchgrid.matchers.registry import implementation
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.models.select import last_features, later_blocks
from stitchgrid.records import Cell, Layer
from stitchgrid.statistics.base import LayerKey

SCORES = "scores"  # of a network, among its nodes


@dataclass(kw_only=True)
class Tail:
    """The stitched networks of one matcher that end in one target layer."""

    key: LayerKey
    group: list[FittedStitch]
    nodes: list[str]  # behind the layer, where the stitched h is compared with the target's g
    at_stitch: bool  # whether it is compared at the stitch as well
    to_scores: bool

    def run(self, work: Workspace, rows_NPE: Tensor, num_images: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run stacked networks on rows; return activations at the nodes, (S, N, P), and scores, (S, N, K)."""
        layer = work.layer(self.key)
        a, shape = install(rows_NPE, layer), (len(rows_NPE) // num_images, num_images)
        found = {layer.node: _stacked(a.flatten(1), shape)} if self.at_stitch else {}
        if self.to_scores and not self.nodes:
            return found, _stacked(work.tail(self.key)(a), shape)
        network = work.network(self.key[0])
        nodes = [*self.nodes, *([network.logits] if self.to_scores else [])]
        made = list(network.behind(layer.node, nodes)(a)) if nodes else []
        scores = _stacked(made.pop(), shape) if self.to_scores else None
        return found | {n: _stacked(b.flatten(1), shape) for n, b in zip(self.nodes, made, strict=True)}, scores


def _stacked(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return rows of stacked networks with an axis of their own: (S, N, P)."""
    return rows.reshape(*shape, -1)


def train_maps(
    work: Workspace,
    ledger: Ledger,
    cells: Sequence[Cell],
    reader: SourceReader,
    starts: Mapping[str, AffineMap] | None = None,
) -> list[FittedStitch]:
    """Return the trained maps of all cells of one matcher, in the order of the cells, without those that failed.

    `reader` is the cells' `source_reader`. A map is trained on the source as the reader reduces it; the returned map
    takes the unreduced source. `starts` has, by cell, the initial maps that are not drawn at random.

    Every cell starts from its own initial map and sees the images in the order that its matcher's seed decides, so that
    stacking changes a result only by rounding. Only the maps have gradients; the networks stay frozen.
    """
    return _Training(work, ledger, cells, reader, starts or {}).run()


class _Training:
    def __init__(
        self,
        work: Workspace,
        ledger: Ledger,
        cells: Sequence[Cell],
        reader: SourceReader,
        starts: Mapping[str, AffineMap],
    ):
        self.work, self.ledger, self.reader = work, ledger, reader
        self.spec = work.sweep.matchers[cells[0].matcher]
        kind = implementation(self.spec)
        assert isinstance(kind, Trained)
        self.kind: Trained[Any] = kind
        maps, rules = _parameters(work, cells, starts), work.rules(cells[0])
        self.stitches = [
            FittedStitch(cell=cell, map=initial, rules=rules) for cell, initial in zip(cells, maps, strict=True)
        ]
        ordered = sorted(self.stitches, key=lambda stitch: stitch.cell.target_key)
        groups = groupby(ordered, key=lambda stitch: stitch.cell.target_key)
        self.tails = [self._tail(key, list(group)) for key, group in groups]
        self.targets = self._targets()
        self.means = self._means()

    def _tail(self, key: LayerKey, group: list[FittedStitch]) -> Tail:
        network, node = self.work.network(key[0]), self.work.layer(key).node
        if self.kind.layers == "none":
            return Tail(key=key, group=group, nodes=[], at_stitch=False, to_scores=True)
        if self.kind.layers == "later":
            return Tail(key=key, group=group, nodes=later_blocks(network, node), at_stitch=True, to_scores=False)
        last = last_features(network, node)
        return Tail(key=key, group=group, nodes=[last] if last else [], at_stitch=last is None, to_scores=False)

    def _targets(self) -> TargetReader | None:
        """Return the reader of the targets, None if the kind does not read them."""
        if not self.kind.reads_target:
            return None
        nodes: dict[int, dict[str, None]] = {}
        for tail in self.tails:
            of_network, network = nodes.setdefault(tail.key[0], {}), self.work.network(tail.key[0])
            of_network |= dict.fromkeys([self.work.layer(tail.key).node] if tail.at_stitch else [])
            of_network |= dict.fromkeys(tail.nodes)
            of_network |= dict.fromkeys([network.logits] if tail.to_scores else [])
        order = {network: self.work.network(network) for network in nodes}
        return TargetReader(
            self.work, {n: sorted(some, key=lambda node: order[n].cut(node).position) for n, some in nodes.items()}
        )

    def _means(self) -> dict[LayerKey, dict[str, Tensor]]:
        """Return the mean squared norms of g on the fit images at each tail's nodes, from one pass."""
        if self.targets is None:
            return {tail.key: {} for tail in self.tails}
        totals: dict[int, dict[str, Tensor]] = {}
        for seen in self.reader.in_order(self.reader.num_images, self.targets):
            for network, of_nodes in seen.targets.items():
                known = totals.setdefault(network, {})
                for node, a_NP in of_nodes.items():
                    known[node] = known.get(node, 0.0) + a_NP.double().square().sum()
        found = {}
        for tail in self.tails:
            of_network = {node: total / self.reader.num_images for node, total in totals[tail.key[0]].items()}
            scores = of_network.get(self.work.network(tail.key[0]).logits)
            found[tail.key] = of_network | ({SCORES: scores} if scores is not None else {})
        return found

    def run(self) -> list[FittedStitch]:
        """Train all maps."""
        params = self.kind.params
        tensors = [tensor for stitch in self.stitches for tensor in stitch.map.tensors()]
        optimizer = _optimizer(params.optimizer, tensors, lr=params.lr, weight_decay=params.weight_decay)
        seed, size = self.spec.seed or 0, params.batch_size
        for epoch in range(params.epochs):
            for seen in self.reader.epoch(epoch, seed=seed, batch_size=size, targets=self.targets):
                optimizer.zero_grad(set_to_none=True)
                for tail in self.tails:
                    if sound := self.ledger.sound(stitch.cell for stitch in tail.group):
                        with self.ledger.failing(sound):
                            self._backward(tail, seen)
                optimizer.step()
        self._note_diverged()
        return [
            replace(stitch, map=self._of_unreduced(stitch))
            for stitch in self.stitches
            if self.ledger[stitch.cell].error is None
        ]

    def _of_unreduced(self, stitch: FittedStitch) -> AffineMap | Adapter:
        """Return a map as it is measured, for the unreduced source."""
        found, reduction = stitch.map.frozen(), self.reader.reduced.get(stitch.cell.source_key)
        if reduction is None:
            return found
        if isinstance(found, AffineMap):
            return reduction.before(found)
        found.before = reduction
        return found

    def _step(self, tail: Tail, rows_NPE: Tensor | None, seen: Seen) -> Step:
        """Return what the kind's loss reads, of stacked networks or, without rows, of the target alone."""
        network = self.work.network(tail.key[0])
        of_target = seen.targets.get(tail.key[0], {})
        with self.work.precision():
            stitched, scores = tail.run(self.work, rows_NPE, len(seen.labels_N)) if rows_NPE is not None else ({}, None)
        nodes = [*([self.work.layer(tail.key).node] if tail.at_stitch else []), *tail.nodes]
        return Step(
            head=self.work.sweep.networks[tail.key[0]].head,
            labels_N=seen.labels_N,
            scores_SNK=scores,
            target_scores_NK=of_target.get(network.logits) if tail.to_scores else None,
            stitched=stitched,
            target={node: of_target[node] for node in nodes if node in of_target},
            sizes={node: size.float() for node, size in self.means[tail.key].items()},
        )

    def _backward(self, tail: Tail, seen: Seen) -> None:
        """Add the gradients of all stitched networks that end in one target layer."""
        work, layer, num_images = self.work, self.work.layer(tail.key), len(seen.labels_N)
        at_a_time = work.halved(num_images)
        for first in range(0, num_images, at_a_time):
            some = slice(first, min(first + at_a_time, num_images))
            num_some, part_seen = some.stop - some.start, seen.part(some)
            for part in stacks(work, layer, len(tail.group), num_some):
                with torch.enable_grad():
                    # maps are applied in float32, as when they are measured, and so are their gradients
                    rows_NPE = _stacked_rows(work, tail.group[part], layer, part_seen.sources)
                    gradient_NPE = self._tail_gradient(tail, rows_NPE.detach(), part_seen)
                    rows_NPE.backward(gradient_NPE * (num_some / num_images))  # type: ignore[no-untyped-call]

    def _tail_gradient(self, tail: Tail, rows_NPE: Tensor, seen: Seen) -> Tensor:
        """Return the gradient of all stitched networks' losses with respect to the tail's input rows."""
        rows_NPE.requires_grad_()
        loss = self.kind.loss(self._step(tail, rows_NPE, seen))
        with self.work.precision_back():
            return torch.autograd.grad(loss, rows_NPE)[0]

    @torch.no_grad()
    def _note_diverged(self) -> None:
        """Flag the cells whose training diverged, by `has_diverged` on the first `loss_images` fit images."""
        for stitch in self.stitches:
            if isinstance(stitch.map, Adapter):
                stitch.map.eval()
        num_images = loss_images(self.reader.num_images, num_seen=self.kind.params.epochs * self.reader.num_images)
        totals: dict[str, list[Tensor]] = {}  # of losses, batch by batch
        followed: dict[LayerKey, dict[str, _Sums]] = {}
        for seen in self.reader.in_order(num_images, self.targets):
            for tail in self.tails:
                layer = self.work.layer(tail.key)
                sound = [stitch for stitch in tail.group if self.ledger[stitch.cell].error is None]
                for part in stacks(self.work, layer, len(sound), len(seen.labels_N)) if sound else ():
                    with self.ledger.failing(stitch.cell for stitch in sound[part]):
                        step = self._step(tail, _stacked_rows(self.work, sound[part], layer, seen.sources), seen)
                        losses_S = self.kind.losses(step).double().sum(1)
                        for stitch, loss in zip(sound[part], losses_S, strict=True):
                            totals.setdefault(stitch.cell.cell_id, []).append(loss)
                        if part.start == 0:
                            sums = followed.setdefault(tail.key, {})
                            for name, rows_NP in self.kind.followed(step).items():
                                sums.setdefault(name, _Sums()).add(rows_NP)
        constants = {
            tail.key: self.kind.constant_loss(
                {name: sums.mean() for name, sums in followed[tail.key].items()},
                self.work.sweep.networks[tail.key[0]].head,
                self.means[tail.key],
            )
            for tail in self.tails
            if tail.key in followed
        }
        told = torch.stack([torch.stack(some).sum() for some in totals.values()]).tolist() if totals else []
        for cell_id, total in zip(totals, told, strict=True):
            entry = self.ledger.entries[cell_id]
            if has_diverged(total / num_images, constants[entry.cell.target_key]):
                entry.flags.add("diverged")


@dataclass(kw_only=True)
class _Sums:
    """Sums over rows (N, P), in float64."""

    num: int = 0
    total_P: Tensor | None = None
    square: Tensor | None = None

    def add(self, rows_NP: Tensor) -> None:
        exact_NP = rows_NP.double()
        total_P, square = exact_NP.sum(0), exact_NP.square().sum()
        self.num += len(exact_NP)
        self.total_P = total_P if self.total_P is None else self.total_P + total_P
        self.square = square if self.square is None else self.square + square

    def mean(self) -> Mean:
        assert self.total_P is not None, "no rows were added"
        assert self.square is not None
        return Mean(row_P=self.total_P / self.num, square=self.square / self.num)


def _optimizer(name: str, tensors: Sequence[Tensor], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return the optimiser of a matcher: Adam, AdamW, or stochastic gradient descent with momentum 0.9."""
    if name == "sgd":
        return torch.optim.SGD(tensors, lr=lr, weight_decay=weight_decay, momentum=0.9, fused=True)
    make = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return make(tensors, lr=lr, weight_decay=weight_decay, fused=True)


def _parameters(
    work: Workspace, cells: Sequence[Cell], starts: Mapping[str, AffineMap]
) -> Sequence[AffineMap | Adapter]:
    """Return the initial maps of cells on the device, affine ones by one transfer."""
    adapter = TrainingParams.of(work.sweep.matchers[cells[0].matcher]).adapter
    if adapter != "affine":
        return [_adapter(work, cell, adapter) for cell in cells]
    drawn = [starts[cell.cell_id] if cell.cell_id in starts else _initial(work, cell) for cell in cells]
    tensors = [tensor for initial in drawn for tensor in (initial.weight_DE, initial.bias_E)]
    if starts:  # which are on the device already
        tensors = [tensor.to(work.device, torch.float32) for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors]).to(work.device)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    there = [part.view(tensor.shape).clone().requires_grad_() for part, tensor in zip(parts, tensors, strict=True)]
    return [AffineMap(weight_DE=weight, bias_E=bias) for weight, bias in zip(there[::2], there[1::2], strict=True)]


def _adapter(work: Workspace, cell: Cell, kind: str) -> Adapter:
    source, target = work.layer(cell.source_key), work.layer(cell.target_key)
    generator = seeded("initial map", work.sweep.full_rank_id(cell))
    return Adapter(kind, source.width, target.width, target.grid, generator).to(work.device)


def _initial(work: Workspace, cell: Cell) -> AffineMap:
    width_in, width_out = work.layer(cell.source_key).width, work.layer(cell.target_key).width
    if work.sweep.matchers[cell.matcher].values.get("init") == "identity":
        return AffineMap(weight_DE=torch.eye(width_in), bias_E=torch.zeros(width_out))
    return initial_map(width_in, width_out, generator=seeded("initial map", work.sweep.full_rank_id(cell)))


def _stacked_rows(
    work: Workspace, stack: Sequence[FittedStitch], target: Layer, activations: Mapping[LayerKey, Tensor]
) -> Tensor:
    """Return T(A) of all maps on the target's rows, one stitched network after the other: (S N, rows, E)."""
    sources = [s.cell.source_key for s in stack]
    return torch.cat(
        [
            stitch_rows(s.map, activations[key], work.layer(key), target, s.rules)
            for s, key in zip(stack, sources, strict=True)
        ]
    )
