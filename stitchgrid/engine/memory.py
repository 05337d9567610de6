"""How much memory a shard needs, how much there is, and smaller shards where that is not enough."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

import torch

from stitchgrid.engine.evaluate import MOMENT_BYTES, gram_bytes
from stitchgrid.engine.gather import RowSpace, chunk_bytes, index_space, stitch_space
from stitchgrid.engine.shuffles import BLOCK_IMAGES
from stitchgrid.engine.stitched import STACK_BYTES, images_per_stack, stack_images
from stitchgrid.engine.training_images import CACHE_BYTES
from stitchgrid.engine.workspace import LayerKey
from stitchgrid.matchers.alignment import Layout, layout_of
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import About, ClosedForm, GramIndex, MomentIndex
from stitchgrid.matchers.registry import MATCHERS, asks_ood, implementation, is_a, is_shuffled
from stitchgrid.planning import images_of, is_closed_form
from stitchgrid.records import Block, Layer, Network, Shard, Sweep

PROCESS_BYTES = 600 << 20  # of a worker with torch and torchvision before it has loaded anything
NO_HELP = 1.1  # times what single images need: halving further saves less than it costs
OPERATIONS_PER_CUT = 4  # whose outputs are there at a time, about: convolution, norm, activation, sum


def shard_bytes(sweep: Sweep, shard: Shard, device: torch.device, *, halvings: int = 0) -> int:
    """Return the memory a worker takes for a shard: weights, a batch of activations, a stack, moments, Gram matrices.

    An estimate: what a network needs between its layers is guessed from the layers themselves. `halvings` are those of
    a workspace; weights, moments and Gram matrices stay what they are.
    """
    return _Need(sweep=sweep, shard=shard, device=device, halvings=halvings).total


def shard_halvings(sweep: Sweep, shard: Shard, device: torch.device, *, budget: int) -> int:
    """Return how often the batch is to be halved for a shard to fit, 0 where it does.

    Where even single images do not make it fit, no further than it helps: what does not shrink is most of it then.
    """
    most = sweep.batch_size.bit_length() - 1
    goal = max(budget, round(NO_HELP * shard_bytes(sweep, shard, device, halvings=most)))
    fits = (halvings for halvings in range(most) if shard_bytes(sweep, shard, device, halvings=halvings) <= goal)
    return next(fits, most)


@dataclass(frozen=True, kw_only=True)
class _Need:
    """What a shard takes, part by part, in bytes."""

    sweep: Sweep
    shard: Shard
    device: torch.device
    halvings: int

    @property
    def total(self) -> int:
        passing = self._activations + 4 * OPERATIONS_PER_CUT * (self._share(self.sweep.batch_size) * self._largest)
        passing += 4 * OPERATIONS_PER_CUT * self._stack
        weights = 4 * sum(network.num_parameters for network in self._networks)
        chunks = 2 * max(self._share(chunk_bytes(self.device)), 8 * sum(self._sizes))
        weights += self._features
        total = weights + passing + chunks + self._training + self._grams + self._distances + self._detectors
        return total + _moment_bytes(self.sweep, self.shard, self._share) + _axes_bytes(self.sweep, self.shard)

    def _share(self, amount: int) -> int:
        return max(1, amount >> self.halvings)

    @cached_property
    def _networks(self) -> list[Network]:
        return [self.sweep.networks[position] for position in sorted(self.shard.networks)]

    @property
    def _features(self) -> int:
        """Of features: the rows of all drawn images, which are kept."""
        keys = _source_keys(self.shard) | _target_keys(self.shard)
        given = [(n, layer) for n, layer in keys if self.sweep.networks[n].spec.is_features]
        num_images = self.sweep.num_fit + self.sweep.num_eval
        return 4 * num_images * sum(prod(self.sweep.networks[n].layers[layer].shape) for n, layer in given)

    @cached_property
    def _sizes(self) -> list[int]:
        """Numbers of every layer, for one image."""
        keys = _source_keys(self.shard) | _target_keys(self.shard)
        return [prod(self.sweep.networks[network].layers[layer].shape) for network, layer in sorted(keys)]

    @property
    def _largest(self) -> int:
        return max(self._sizes, default=0)

    @cached_property
    def _trained(self) -> list[tuple[int, int]]:
        """Fit images and batch size of trained matchers."""
        trained = [m for m in self.shard.matchers if self._kind(m).is_trained]
        return [(images_of(self.sweep, m)[0], self.sweep.matchers[m].values["batch_size"]) for m in trained]

    def _kind(self, matcher: int) -> About:
        return MATCHERS[self.sweep.matchers[matcher].kind]

    @property
    def _activations(self) -> int:
        """Of a batch: of all layers, or of the sources that maps are trained on, whose batches are read as they are."""
        read = max((batch_size for _, batch_size in self._trained), default=0)
        held = 2 * BLOCK_IMAGES * any(is_shuffled(self.sweep, self.sweep.matchers[m]) for m in self.shard.matchers)
        of_sources = sum(prod(layer.shape) for layer in _sources(self.sweep, self.shard))
        return 4 * max((self._share(self.sweep.batch_size) + 2 * held) * sum(self._sizes), read * of_sources)

    @property
    def _stack(self) -> int:
        """Numbers that stitched networks put behind their stitch together."""
        batch_size = self._share(max([self.sweep.batch_size, *(batch_size for _, batch_size in self._trained)]))
        stack = min(self._share(STACK_BYTES) // 4, self._share(stack_images(self.device)) * self._largest)
        return max(stack, batch_size * self._largest)

    @property
    def _training(self) -> int:
        if not self._trained:
            return 0
        kept = min(self._share(CACHE_BYTES), 4 * max(num for num, _ in self._trained) * sum(self._sizes))
        return kept + max(self._way_back(network, layer) for network, layer in _target_keys(self.shard))

    def _way_back(self, network: int, layer: int) -> int:
        """Return what the stitched networks that are trained together into a layer keep for their gradients."""
        record = self.sweep.networks[network]
        fitting = images_per_stack(record.layers[layer], self.device, self._share)
        batch_size = self._share(max(batch_size for _, batch_size in self._trained))
        return max(batch_size, fitting) * record.num_kept_bytes

    @property
    def _grams(self) -> int:
        of_grams = [matcher for matcher in self.shard.matchers if is_a(self.sweep.matchers[matcher], GramIndex)]
        counts = {images_of(self.sweep, matcher)[1] for matcher in of_grams}  # each has its own
        count = sum(counts)
        one_layer = 4 * count * self._largest
        kept = max(min(self._share(gram_bytes(self.device)) * len(counts), 4 * count * sum(self._sizes)), one_layer)
        ranks = [rank for matcher in of_grams if (rank := self.sweep.matchers[matcher].rank)]
        reduced = sum(rank < layer.width for rank in ranks for layer in _sources(self.sweep, self.shard))
        kept += one_layer * any(ranks)  # coordinates of one layer, at most as many as its activations
        kept += 8 * sum(count**2 for count in counts) * (len(self._sizes) + 1 + reduced)
        kept += self._prepared(of_grams) * (len(self._sizes) + reduced)
        if of_grams and (self.sweep.groups or self.sweep.shuffles):  # those of some images, or of shuffled ones
            one = 8 * max(counts) ** 2 + self._prepared(of_grams)
            kept += one * (len(self._sizes) + reduced + 2)
        return kept

    def _prepared(self, of_grams: Sequence[int]) -> int:
        """Return what indices find of a layer beside its Gram matrix: one kind's at a time, and distances for all."""
        found, with_distances = [0], set()
        for matcher in of_grams:
            kind, (_, count) = implementation(self.sweep.matchers[matcher]), images_of(self.sweep, matcher)
            assert isinstance(kind, GramIndex)
            found.append(kind.prepared_bytes(count))
            with_distances |= {count} if kind.reads_distances else set()
        return max(found) + 8 * sum(count**2 for count in with_distances)

    @property
    def _distances(self) -> int:
        asking = [m for m in self.shard.matchers if asks_ood(self.sweep.matchers[m], "mahalanobis")]
        if not asking:
            return 0
        pairs = sum(len(block.target_layers) * len(block.source_layers) for block in self.shard.blocks)
        scores = 2 * 4 * sum(images_of(self.sweep, matcher)[1] for matcher in asking) * pairs
        return scores + 8 * self._share(self.sweep.batch_size) * self._largest

    @property
    def _detectors(self) -> int:
        if not any(asks_ood(self.sweep.matchers[matcher], "energy") for matcher in self.shard.matchers):
            return 0
        return len(_target_keys(self.shard)) * _detector_bytes(self.sweep) + 4 * self._stack * OPERATIONS_PER_CUT


def _detector_bytes(sweep: Sweep) -> int:
    """Return the size of a detector's weights, of whichever kind has most of them."""
    assert sweep.energy is not None
    recipe = sweep.energy.recipe
    of_maps, of_tokens = 11.2e6 * (recipe.width / 64) ** 2, 12.0 * recipe.depth * (3 * recipe.width) ** 2
    return round(4 * max(of_maps, of_tokens))


def _source_keys(shard: Shard) -> set[LayerKey]:
    return {(block.source, layer) for block in shard.blocks for layer in block.source_layers}


def _target_keys(shard: Shard) -> set[LayerKey]:
    return {(block.target, layer) for block in shard.blocks for layer in block.target_layers}


def _moment_bytes(sweep: Sweep, shard: Shard, share: Callable[[int], int]) -> int:
    """Return the float64 bytes of maps and moments: the fit's, or the evaluation's with what is kept of the fit.

    Maps of all matchers are there while the evaluation's moments are, and the axes on which they were fitted. Groups of
    images have moments of their own, and draws of shuffled images products and maps.
    """
    #: Number of images, and which fold of how many -> how rows are laid, None: compared as indices do.
    fit: dict[tuple[int, int, int], set[Rules | None]] = {}
    evaluation: dict[int, set[Rules | None]] = {}
    drawn_fit: dict[int, set[Rules | None]] = {}  # of those that are shuffled, too
    drawn: dict[int, set[Rules | None]] = {}
    num_maps = 0
    for matcher in shard.matchers:
        spec, (num_fit, num_eval) = sweep.matchers[matcher], images_of(sweep, matcher)
        is_stitcher = MATCHERS[spec.kind].family == "stitcher"
        rules = Rules.of(spec) if is_stitcher else None
        num_maps += is_stitcher
        if is_stitcher or is_a(spec, MomentIndex):
            evaluation.setdefault(num_eval, set()).add(rules)
            if is_shuffled(sweep, spec):
                drawn.setdefault(num_eval, set()).add(rules)
        if is_closed_form(spec):
            kind = implementation(spec)
            num_folds = kind.num_folds if isinstance(kind, ClosedForm) else 0
            for fold in range(max(1, num_folds)):  # each has moments of its own
                fit.setdefault((num_fit, num_folds, fold), set()).add(rules)
            if is_shuffled(sweep, spec):
                drawn_fit.setdefault(num_fit, set()).add(rules)
                num_maps += sweep.shuffles
    pairs = sum(_width(sweep.source_layers(block)) * _width(sweep.target_layers(block)) for block in shard.blocks)
    sides = _alike(sweep, _source_keys(shard)), _alike(sweep, _target_keys(shard))
    of_fit = [_spaces(*sides, rules) for rules in fit.values()]
    axes = sum(_squares(x) for spaces in of_fit for x, _ in spaces.values())
    of_draws, of_fit_draws = (
        sweep.shuffles * sum(_products(_spaces(*sides, rules)) for rules in some.values())
        for some in (drawn, drawn_fit)
    )
    num_groups = sweep.groups or 0
    of_groups = num_groups * sum(_squares(layers) for side in sides for _, layers in side.values())
    gathered = sum(_gathered(_spaces(*sides, rules)) for rules in evaluation.values())
    evaluated = axes + (1 + num_groups) * gathered + of_groups * len(evaluation) + of_draws
    most = max(sum(map(_gathered, of_fit)) + of_fit_draws, evaluated)
    centred = 8 * pairs * any(None in rules for rules in evaluation.values())  # products of some pairs, for indices
    num_variants = max(num_groups, sweep.shuffles)
    alone = (
        8
        * num_variants
        * max(layer.width for layer in _sources(sweep, shard))
        * max(sweep.networks[network].layers[layer].width for network, layer in _target_keys(shard))
    )
    varied = max(alone, min(share(MOMENT_BYTES), centred * num_variants))
    return 8 * (num_maps * pairs + most) + min(share(MOMENT_BYTES), centred) + varied


Widths = dict[LayerKey, int]
Alike = dict[tuple[str, Layout], tuple[Layer, Widths]]  # layers with the same rows: one of them, and the widths of all
Spaces = dict[RowSpace, tuple[Widths, Widths]]  # of its sources, of its targets


def _alike(sweep: Sweep, keys: Collection[LayerKey]) -> Alike:
    """Return layers grouped by what decides in which rows they are compared."""
    found: Alike = {}
    for network, position in keys:
        layer = sweep.networks[network].layers[position]
        found.setdefault((layer.kind, layout_of(layer)), (layer, {}))[1][network, position] = layer.width
    return found


def _spaces(sources: Alike, targets: Alike, asked: Collection[Rules | None]) -> Spaces:
    """Return the row spaces of a `MomentGatherer`: in each of them its sources are multiplied with all its targets."""
    read: dict[tuple[str, Layout, bool], Widths] = {}
    found: Spaces = {}
    for rules, (source, ours), (target, theirs) in product(asked, sources.values(), targets.values()):
        space = index_space(source, target) if rules is None else stitch_space(source, target, rules)
        x = read.setdefault(("source", space.source, space.pools), {})
        y = read.setdefault(("target", space.target, space.pools), {})
        x.update(ours)
        y.update(theirs)
        found[space] = x, y
    return found


def _gathered(spaces: Spaces) -> int:
    """Return how many numbers a `MomentGatherer` holds in the end: sums of products, each layer's scatter and axes."""
    total = 0
    frames: dict[tuple[Layout, bool, frozenset[LayerKey]], tuple[int, int]] = {}  # numbers of one copy, copies
    for space, (x, y) in spaces.items():
        total += sum(x.values()) * sum(y.values())
        is_laid = space.rules is not None
        total += 3 * _squares(x) * is_laid
        is_one = x == y and space.source == space.target and not is_laid  # whose sums are among the products
        for layout, widths, copies in (
            (space.source, x, 1 if is_laid else 3 - is_one),
            (space.target, y, 3 - is_one),
        ):
            frame = layout, space.pools, frozenset(widths)
            frames[frame] = _squares(widths), max(copies, frames.get(frame, (0, 0))[1])
    return total + sum(numbers * copies for numbers, copies in frames.values())


def _products(spaces: Spaces) -> int:
    """Return how many numbers the products of all sources with all targets have."""
    return sum(sum(x.values()) * sum(y.values()) for x, y in spaces.values())


def _squares(widths: Widths) -> int:
    return sum(width**2 for width in widths.values())


def _axes_bytes(sweep: Sweep, shard: Shard) -> int:
    """Return the bytes of the row moments and axes of sources of low rank, for each number of fit images."""
    ranked = [matcher for matcher in shard.matchers if sweep.matchers[matcher].rank]
    counts = {images_of(sweep, matcher)[0] for matcher in ranked}
    return 8 * (3 * len(counts) + len(ranked)) * sum(layer.width**2 for layer in _sources(sweep, shard))


def _sources(sweep: Sweep, shard: Shard) -> list[Layer]:
    return [sweep.networks[network].layers[layer] for network, layer in sorted(_source_keys(shard))]


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
