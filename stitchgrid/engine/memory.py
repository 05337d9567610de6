"""How much memory a shard needs, how much there is, and smaller shards where that is not enough."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import torch

from stitchgrid.engine.gram_matrices import gram_bytes
from stitchgrid.engine.moment_values import MOMENT_BYTES
from stitchgrid.engine.pair_moments import chunk_bytes
from stitchgrid.engine.shuffles import BLOCK_IMAGES
from stitchgrid.engine.stitched import STACK_BYTES, images_per_stack, stack_images
from stitchgrid.records import Block, Layer, Shard, Sweep
from stitchgrid.statistics.base import LayerKey, total_bytes
from stitchgrid.statistics.passes import CACHE_BYTES, SourceReading
from stitchgrid.statistics.shard import Collector

Share = Callable[[int], int]  # of an amount of images or bytes, what is left where memory is short

PROCESS_BYTES = 600 << 20  # of a worker with torch and torchvision before it has loaded anything
NO_HELP = 1.1  # times what single images need: halving further saves less than it costs
OPERATIONS_PER_CUT = 4  # whose outputs are there at a time, about: convolution, norm, activation, sum


def shard_bytes(sweep: Sweep, shard: Shard, device: torch.device, *, halvings: int = 0) -> int:
    """Return the memory a worker takes for a shard: weights, a batch of activations, a stack, and all that is found.

    An estimate: what a network needs between its layers is guessed from the layers themselves. `halvings` are those of
    a workspace; weights, moments and Gram matrices stay what they are.
    """
    return _Need(Collector(sweep, shard.matchers), shard, device).total(halvings)


def shard_halvings(sweep: Sweep, shard: Shard, device: torch.device, *, budget: int) -> int:
    """Return how often the batch is to be halved for a shard to fit, 0 where it does.

    Where even single images do not make it fit, no further than it helps: what does not shrink is most of it then.
    """
    most, need = sweep.batch_size.bit_length() - 1, _Need(Collector(sweep, shard.matchers), shard, device)
    goal = max(budget, round(NO_HELP * need.total(most)))
    return next((halvings for halvings in range(most) if need.total(halvings) <= goal), most)


class _Need:
    """What a shard takes, part by part, in bytes."""

    def __init__(self, collector: Collector, shard: Shard, device: torch.device):
        self.sweep, self.device = collector.sweep, device
        self.statistics = collector.of(shard.blocks)
        self.needs = collector.needs
        self.networks = [self.sweep.networks[position] for position in sorted(shard.networks)]
        self.sources = {(block.source, layer) for block in shard.blocks for layer in block.source_layers}
        self.targets = {(block.target, layer) for block in shard.blocks for layer in block.target_layers}
        size = collector.geometry.size
        #: Numbers of every layer, for one image.
        self.values = {key: size(key).num_values for key in self.sources | self.targets}
        self.widths = [max(size(key).width for key in side) for side in (self.sources, self.targets)]
        self.largest = max(self.values.values())
        self.trained = [one for one in self.needs if one.is_trained]

    def total(self, halvings: int) -> int:
        """Return all of it, with so many halvings of what is held at a time."""
        share = partial(_share, halvings=halvings)
        passing = self._activations(share)
        passing += 4 * OPERATIONS_PER_CUT * (share(self.sweep.batch_size) * self.largest + self._stack(share))
        weights = 4 * sum(network.num_parameters for network in self.networks) + self._features()
        chunks = 2 * max(share(chunk_bytes(self.device)), 8 * sum(self.values.values()))
        total = weights + passing + chunks + self._training(share) + self._grams(share) + self._scores(share)
        found = self.statistics
        return total + found.moment_bytes() + total_bytes(found.row_axes) + self._centred(share)

    def _features(self) -> int:
        """Of features: the rows of all drawn images, which are kept."""
        given = sum(num for key, num in self.values.items() if self.sweep.networks[key[0]].spec.is_features)
        return 4 * (self.sweep.num_fit + self.sweep.num_eval) * given

    def _activations(self, share: Share) -> int:
        """Of a batch: of all layers, or of the sources that maps are trained on, whose batches are read as they are."""
        read = max((one.batch_size for one in self.trained), default=0)
        held = 2 * BLOCK_IMAGES * any(one.is_shuffled for one in self.needs)
        of_sources = sum(self.values[key] for key in self.sources)
        of_all = (share(self.sweep.batch_size) + 2 * held) * sum(self.values.values())
        return 4 * max(of_all, read * of_sources)

    def _stack(self, share: Share) -> int:
        """Numbers that stitched networks put behind their stitch together."""
        batch_size = share(max([self.sweep.batch_size, *(one.batch_size for one in self.trained)]))
        stack = min(share(STACK_BYTES) // 4, share(stack_images(self.device)) * self.largest)
        return max(stack, batch_size * self.largest)

    def _training(self, share: Share) -> int:
        """Activations that are kept between epochs, and what the way back through a tail asks for."""
        if not self.trained:
            return 0
        readings = [one for one in self.statistics.training if isinstance(one, SourceReading)]
        kept = max((one.kept_bytes(share(CACHE_BYTES)) for one in readings), default=0)
        return kept + max(self._way_back(key, share) for key in self.targets)

    def _way_back(self, key: LayerKey, share: Share) -> int:
        """Return what the stitched networks that are trained together into a layer keep for their gradients."""
        record = self.sweep.networks[key[0]]
        fitting = images_per_stack(record.layers[key[1]], self.device, share)
        batch_size = share(max(one.batch_size for one in self.trained))
        return max(batch_size, fitting) * record.num_kept_bytes

    def _grams(self, share: Share) -> int:
        """Activations kept for Gram matrices, these, and what is found of them."""
        budget = share(gram_bytes(self.device))
        passing = sum(one.passing_bytes(budget) for one in self.statistics.grams)
        return passing + total_bytes(self.statistics.grams)

    def _scores(self, share: Share) -> int:
        """Gaussians of targets and scores by these, detectors, and what these put behind the stitch."""
        found = self.statistics
        total = total_bytes(found.gaussians) + total_bytes(found.tails)
        total += 8 * share(self.sweep.batch_size) * self.largest * bool(found.gaussians)
        return total + 4 * OPERATIONS_PER_CUT * self._stack(share) * any(one.asks_energies for one in self.needs)

    def _centred(self, share: Share) -> int:
        """Centred products of some layer pairs at a time, for indices, without each group and in each draw."""
        of_index = any(one.has_rows and not one.is_stitcher for one in self.needs)
        pairs = 8 * of_index * self.statistics.num_products
        num_variants = max(self.sweep.groups or 0, self.sweep.shuffles)
        alone = 8 * num_variants * prod(self.widths)
        return min(share(MOMENT_BYTES), pairs) + max(alone, min(share(MOMENT_BYTES), pairs * num_variants))


def _share(amount: int, *, halvings: int) -> int:
    """Return what is left of an amount of images or bytes after some halvings."""
    return max(1, amount >> halvings)


def probe_halvings(sweep: Sweep, network: int, device: torch.device, *, budget: int) -> int:
    """Return how often the batch is to be halved for a network's probes to fit: all its layers are read in one pass.

    One row an image of each layer is kept; a batch is one image at least.
    """
    record = sweep.networks[network]
    sizes = [prod(layer.shape) for layer in record.layers]
    kept = 4 * record.num_parameters + 4 * (sweep.num_probe_fit + sweep.num_eval) * _width(record.layers)
    kept += 2 * chunk_bytes(device) + 8 * 3 * sum(layer.width**2 for layer in record.layers)
    per_image = 4 * (sum(sizes) + OPERATIONS_PER_CUT * max(sizes))
    halvings = 0
    while sweep.batch_size >> halvings > 1 and kept + per_image * (sweep.batch_size >> halvings) > budget:
        halvings += 1
    return halvings


def _width(layers: Sequence[Layer]) -> int:
    return sum(layer.width for layer in layers)


def available_bytes(device: torch.device, *, sharing: int = 1) -> int:
    """Return how much memory there is to take on a device for one of so many processes that share it.

    No more than is free, nor than an equal part of all there is. What this process keeps of a GPU to use again is free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return min(free + reusable, total // sharing)
    free, total = _memory_of_machine()
    free_in_group, limit = _memory_of_group()
    return min(free, free_in_group, min(total, limit) // sharing)


def _memory_of_machine() -> tuple[int, int]:
    """Return what is free, and all of it."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    except OSError:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    found = {name.rstrip(":"): 1024 * int(number) for name, number, *_ in lines}
    return found["MemAvailable"], found["MemTotal"]


def _memory_of_group() -> tuple[int, int]:
    """Return what a container's limit leaves, and the limit, which the machine's figures do not know of."""
    try:
        limit, used, stat = (
            Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current", "memory.stat")
        )
        files = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        return int(limit) - int(used) + files, int(limit)  # what is cached from files is given back when it is needed
    except (OSError, ValueError):  # no limit: "max"
        return 1 << 62, 1 << 62


def fitting_pieces(sweep: Sweep, shard: Shard, device: torch.device, *, budget: int) -> Iterator[Shard]:
    """Yield a shard in runs of target layers, each within the budget or of a single target layer."""
    if shard_bytes(sweep, shard, device) <= budget:
        yield shard
        return
    for block in shard.blocks:
        run: tuple[int, ...] = ()
        for layer in block.target_layers:
            if run and shard_bytes(sweep, _piece(shard, block, (*run, layer)), device) > budget:
                yield _piece(shard, block, run)
                run = ()
            run = (*run, layer)
        yield _piece(shard, block, run)


def _piece(shard: Shard, block: Block, target_layers: tuple[int, ...]) -> Shard:
    return replace(shard, blocks=(replace(block, target_layers=target_layers),))
