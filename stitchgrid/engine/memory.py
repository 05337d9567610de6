"""How much memory a shard needs, how much is available, and pieces of a shard that needs more."""

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

Halved = Callable[[int], int]  # reduces a number of images or bytes where memory is short

PROCESS_BYTES = 600 << 20  # of a worker with torch and torchvision before it has loaded anything
NO_HELP = 1.1  # times the need of single images: below that, halving saves less than it costs
OPERATIONS_PER_CUT = 4  # whose outputs exist at one time, roughly: convolution, norm, activation, sum


def shard_bytes(sweep: Sweep, shard: Shard, device: torch.device, *, halvings: int = 0) -> int:
    """Return the bytes that a worker needs for a shard: weights, a batch of activations, a stack, and all statistics.

    This is an estimate: the need between a network's layers is guessed from the layers themselves. `halvings` are those
    of a workspace; they leave the size of weights, moments and Gram matrices unchanged.
    """
    return _Need(Collector(sweep, shard.matchers), shard, device).total(halvings)


def shard_halvings(sweep: Sweep, shard: Shard, device: torch.device, *, budget: int) -> int:
    """Return how often to halve the batch so that a shard fits into the budget; 0 if it fits as it is.

    If not even single images fit, halving stops where it no longer helps, since most of the need does not shrink.
    """
    most, need = sweep.batch_size.bit_length() - 1, _Need(Collector(sweep, shard.matchers), shard, device)
    goal = max(budget, round(NO_HELP * need.total(most)))
    return next((halvings for halvings in range(most) if need.total(halvings) <= goal), most)


class _Need:
    """The memory that a shard needs, part by part, in bytes."""

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
        """Return the whole need, after a number of halvings of what is held at a time."""
        halved = partial(_halved, halvings=halvings)
        passing = self._activations(halved)
        passing += 4 * OPERATIONS_PER_CUT * (halved(self.sweep.batch_size) * self.largest + self._stack(halved))
        weights = 4 * sum(network.num_parameters for network in self.networks) + self._features()
        chunks = 2 * max(halved(chunk_bytes(self.device)), 8 * sum(self.values.values()))
        total = weights + passing + chunks + self._training(halved) + self._grams(halved) + self._scores(halved)
        found = self.statistics
        return total + found.moment_bytes() + total_bytes(found.row_axes) + self._centred(halved)

    def _features(self) -> int:
        """Return the bytes of features: the rows of all drawn images, which are kept."""
        given = sum(num for key, num in self.values.items() if self.sweep.networks[key[0]].spec.is_features)
        return 4 * (self.sweep.num_fit + self.sweep.num_eval) * given

    def _activations(self, halved: Halved) -> int:
        """Return the bytes of a batch: of all layers, or of trained maps' sources, whose batches are not halved."""
        read = max((one.batch_size for one in self.trained), default=0)
        held = 2 * BLOCK_IMAGES * any(one.is_shuffled for one in self.needs)
        of_sources = sum(self.values[key] for key in self.sources)
        of_all = (halved(self.sweep.batch_size) + 2 * held) * sum(self.values.values())
        return 4 * max(of_all, read * of_sources)

    def _stack(self, halved: Halved) -> int:
        """Return how many numbers a stack of stitched networks has at the stitch."""
        batch_size = halved(max([self.sweep.batch_size, *(one.batch_size for one in self.trained)]))
        stack = min(halved(STACK_BYTES) // 4, halved(stack_images(self.device)) * self.largest)
        return max(stack, batch_size * self.largest)

    def _training(self, halved: Halved) -> int:
        """Return the bytes of activations that are kept between epochs, and of the backward pass through a tail."""
        if not self.trained:
            return 0
        readings = [one for one in self.statistics.training if isinstance(one, SourceReading)]
        kept = max((one.kept_bytes(halved(CACHE_BYTES)) for one in readings), default=0)
        return kept + max(self._way_back(key, halved) for key in self.targets)

    def _way_back(self, key: LayerKey, halved: Halved) -> int:
        """Return the bytes that stitched networks trained together into a layer keep for their gradients."""
        record = self.sweep.networks[key[0]]
        fitting = images_per_stack(record.layers[key[1]], self.device, halved)
        batch_size = halved(max(one.batch_size for one in self.trained))
        return max(batch_size, fitting) * record.num_kept_bytes

    def _grams(self, halved: Halved) -> int:
        """Return the bytes of activations kept for Gram matrices, of these, and of what is prepared from them."""
        budget = halved(gram_bytes(self.device))
        passing = sum(one.passing_bytes(budget) for one in self.statistics.grams)
        return passing + total_bytes(self.statistics.grams)

    def _scores(self, halved: Halved) -> int:
        """Return the bytes of targets' Gaussians and scores by them, and of detectors and their activations."""
        found = self.statistics
        total = total_bytes(found.gaussians) + total_bytes(found.tails)
        total += 8 * halved(self.sweep.batch_size) * self.largest * bool(found.gaussians)
        return total + 4 * OPERATIONS_PER_CUT * self._stack(halved) * any(one.asks_energies for one in self.needs)

    def _centred(self, halved: Halved) -> int:
        """Return the bytes of centred products of some layer pairs at a time, for indices and for their variants."""
        of_index = any(one.has_rows and not one.is_stitcher for one in self.needs)
        pairs = 8 * of_index * self.statistics.num_products
        num_variants = max(self.sweep.groups or 0, self.sweep.shuffles)
        alone = 8 * num_variants * prod(self.widths)
        return min(halved(MOMENT_BYTES), pairs) + max(alone, min(halved(MOMENT_BYTES), pairs * num_variants))


def _halved(amount: int, *, halvings: int) -> int:
    """Return what is left of an amount of images or bytes after some halvings."""
    return max(1, amount >> halvings)


def probe_halvings(sweep: Sweep, network: int, device: torch.device, *, budget: int) -> int:
    """Return how often the batch is to be halved for a network's probes to fit: all its layers are read in one pass.

    One row per image is kept of each layer; a batch has one image at least.
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
    """Return the bytes of memory on a device that one of `sharing` processes may take.

    It is what is free, but no more than an equal part of the whole. GPU memory that this process has reserved but does
    not use counts as free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return min(free + reusable, total // sharing)
    free, total = _memory_of_machine()
    free_in_group, limit = _memory_of_group()
    return min(free, free_in_group, min(total, limit) // sharing)


def _memory_of_machine() -> tuple[int, int]:
    """Return the machine's free and total memory, in bytes."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    except OSError:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    found = {name.rstrip(":"): 1024 * int(number) for name, number, *_ in lines}
    return found["MemAvailable"], found["MemTotal"]


def _memory_of_group() -> tuple[int, int]:
    """Return the bytes that a container's limit leaves free, and the limit; the machine's figures do not include it."""
    try:
        limit, used, stat = (
            Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current", "memory.stat")
        )
        files = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        return int(limit) - int(used) + files, int(limit)  # cached files are dropped when memory is needed
    except (OSError, ValueError):  # no limit: "max"
        return 1 << 62, 1 << 62


def fitting_pieces(sweep: Sweep, shard: Shard, device: torch.device, *, budget: int) -> Iterator[Shard]:
    """Yield a shard in pieces of consecutive target layers, each within the budget or with a single target layer."""
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
