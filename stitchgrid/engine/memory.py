"""How much memory a shard needs, how much there is, and smaller shards where that is not enough."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from stitchgrid.engine.evaluate import GRAM_BYTES
from stitchgrid.engine.gather import CHUNK_BYTES
from stitchgrid.engine.stitched import STACK_BYTES, stack_images
from stitchgrid.engine.train import CACHE_BYTES
from stitchgrid.matchers.catalogue import MATCHERS, asks_ood
from stitchgrid.plan import images_of
from stitchgrid.records import Block, Layer, Network, Shard, Sweep

PROCESS_BYTES = 600 << 20  # of a worker with torch and torchvision before it has loaded anything
OPERATIONS_PER_CUT = 4  # whose outputs training keeps for the way back: convolution, norm, activation, sum


def shard_bytes(sweep: Sweep, shard: Shard, device: torch.device) -> int:
    """Return the memory a worker takes for a shard: weights, a batch of activations, a stack, moments, Gram matrices.

    An estimate: what a network needs between its layers is guessed from the layers themselves.
    """
    networks = [sweep.networks[position] for position in sorted(shard.networks)]
    keys = {(block.target, layer) for block in shard.blocks for layer in block.target_layers}
    keys |= {(block.source, layer) for block in shard.blocks for layer in range(_num_layers(sweep, block.source))}
    layers = [sweep.networks[network].layers[layer] for network, layer in sorted(keys)]
    kinds = [MATCHERS[sweep.matchers[matcher].kind] for matcher in shard.matchers]
    sizes = [prod(layer.shape) for layer in layers]
    stack = min(STACK_BYTES // 4, stack_images(device) * max(sizes, default=0))
    stack = max(stack, sweep.batch_size * max(sizes, default=0))
    total = 4 * sum(network.num_parameters for network in networks)
    total += 4 * sweep.batch_size * (sum(sizes) + OPERATIONS_PER_CUT * max(sizes, default=0))
    total += 4 * stack * OPERATIONS_PER_CUT
    if trained := [images_of(sweep, m)[0] for m, kind in zip(shard.matchers, kinds, strict=True) if kind.trained]:
        total += min(CACHE_BYTES, 4 * max(trained) * sum(sizes)) + max(
            _kept_for_the_way_back(network, stack, sizes) for network in networks
        )
    if counts := [images_of(sweep, m)[1] for m, kind in zip(shard.matchers, kinds, strict=True) if kind.gram]:
        kept = [min(GRAM_BYTES, 4 * max(counts) * sum(sizes)), 4 * max(counts) * max(sizes, default=0)]
        total += max(kept) + 8 * max(counts) ** 2 * (len(layers) + 1)
        ranks = [sweep.matchers[m].rank for m, kind in zip(shard.matchers, kinds, strict=True) if kind.gram]
        total += 8 * max(counts) ** 2 * sum(r < s.width for r in ranks if r for s in _sources(sweep, shard))
        total += kept[1] * any(ranks)  # coordinates of one layer, at most as many as its activations
    if checked := [images_of(sweep, m)[1] for m in shard.matchers if asks_ood(sweep.matchers[m], "mahalanobis")]:
        num_pairs = sum(len(block.target_layers) * _num_layers(sweep, block.source) for block in shard.blocks)
        total += 2 * 4 * sum(checked) * num_pairs + 8 * sweep.batch_size * max(sizes, default=0)
    if any(asks_ood(sweep.matchers[m], "energy") for m in shard.matchers):
        targets = [(block.target, layer) for block in shard.blocks for layer in block.target_layers]
        total += len(set(targets)) * _detector_bytes(sweep) + 4 * stack * OPERATIONS_PER_CUT
    return total + 2 * CHUNK_BYTES + _moment_bytes(sweep, shard) + _axes_bytes(sweep, shard)


def _detector_bytes(sweep: Sweep) -> int:
    """Return the size of a detector's weights, of whichever kind has most of them."""
    assert sweep.energy is not None
    recipe = sweep.energy.recipe
    of_maps, of_tokens = 11.2e6 * (recipe.width / 64) ** 2, 12.0 * recipe.depth * (3 * recipe.width) ** 2
    return round(4 * max(of_maps, of_tokens))


def _num_layers(sweep: Sweep, network: int) -> int:
    return len(sweep.networks[network].layers)


def _kept_for_the_way_back(network: Network, stack: int, sizes: Sequence[int]) -> int:
    mean_size = sum(prod(layer.shape) for layer in network.layers) / len(network.layers)
    return round(4 * stack / max(sizes) * mean_size * network.num_cuts * OPERATIONS_PER_CUT)


def _moment_bytes(sweep: Sweep, shard: Shard) -> int:
    """Return the bytes of all float64 products, of layers and of pairs, over fit and over evaluation images."""
    total = 0
    for block in shard.blocks:
        sources = sweep.networks[block.source].layers
        targets = [sweep.networks[block.target].layers[position] for position in block.target_layers]
        spaces = len({layer.grid for layer in targets})
        total += sum(layer.width**2 for layer in sources) * spaces + sum(layer.width**2 for layer in targets)
        total += _width(sources) * _width(targets)
    return 2 * 8 * total


def _axes_bytes(sweep: Sweep, shard: Shard) -> int:
    """Return the bytes of the row moments and axes of sources of low rank, for each number of fit images."""
    ranked = [matcher for matcher in shard.matchers if sweep.matchers[matcher].rank]
    counts = {images_of(sweep, matcher)[0] for matcher in ranked}
    return 8 * (3 * len(counts) + len(ranked)) * sum(layer.width**2 for layer in _sources(sweep, shard))


def _sources(sweep: Sweep, shard: Shard) -> list[Layer]:
    return [layer for source in {block.source for block in shard.blocks} for layer in sweep.networks[source].layers]


def probe_halvings(sweep: Sweep, network: int, *, budget: int) -> int:
    """Return how often the batch is to be halved for a network's probes to fit: all its layers are read in one pass.

    One row an image of each layer is kept; a batch is one image at least.
    """
    record = sweep.networks[network]
    sizes = [prod(layer.shape) for layer in record.layers]
    kept = 4 * record.num_parameters + 4 * (sweep.num_probe_fit + sweep.num_eval) * _width(record.layers)
    kept += 2 * CHUNK_BYTES + 8 * 3 * sum(layer.width**2 for layer in record.layers)
    per_image = 4 * (sum(sizes) + OPERATIONS_PER_CUT * max(sizes))
    halvings = 0
    while sweep.batch_size >> halvings > 1 and kept + per_image * (sweep.batch_size >> halvings) > budget:
        halvings += 1
    return halvings


def _width(layers: Sequence[Layer]) -> int:
    return sum(layer.width for layer in layers)


def available_bytes(device: torch.device) -> int:
    """Return how much memory there is to take on a device, or for this process."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    return min(_free_on_machine(), _free_in_group())


def _free_on_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_in_group() -> int:
    """Return what a container's limit leaves, which the machine's figures do not know of."""
    try:
        limit, used, stat = (
            Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current", "memory.stat")
        )
        files = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        return int(limit) - int(used) + files  # what is only cached from files is given back when it is needed
    except (OSError, ValueError):  # no limit: "max"
        return 1 << 62


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
