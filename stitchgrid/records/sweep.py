"""A sweep: a resolved job, and the addresses of its cells."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from stitchgrid.records.addresses import canonical, framed
from stitchgrid.records.networks import Layer, Network, was_resized_on_a_guess
from stitchgrid.records.specs import DataSpec, EnergySpec, MatcherSpec, ProbeSpec
from stitchgrid.records.units import Block, Cell, Shard


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A resolved job: all a worker needs to compute any of its shards."""

    name: str
    seed: int
    data: DataSpec
    networks: tuple[Network, ...]
    pairs: tuple[tuple[int, int], ...]  # (source, target), by position in networks
    matchers: tuple[MatcherSpec, ...]
    precision: str  # fp32 | tf32 | bf16
    batch_size: int
    eval_data: str  # digest of the evaluation images and labels
    fit_data: str  # digest of all fit images and labels
    need_fit: int | None  # how many fit images the matchers need at most; None: the whole split
    num_fit: int  # fit images drawn
    num_eval: int
    num_fit_closed: int  # images on which closed-form maps are fitted, by default
    matcher_data: tuple[str, ...]  # per matcher: digest of the images and labels its values depend on
    probes: ProbeSpec | None = None
    probe_data: str = ""  # digest of the images and labels that probes depend on
    energy: EnergySpec | None = None  # if a matcher asks for it
    compiles: bool = False  # whether networks run by torch.compile; part of no address
    groups: int | None = None  # of evaluation images; values are also computed without each of them
    shuffles: int = 0  # draws in which the source's images are shuffled
    wish_fit: int = 0  # number of fit images to draw if the split has as many

    @property
    def num_probe_fit(self) -> int:
        """How many fit images probes are fitted on."""
        samples = None if self.probes is None else self.probes.samples
        return min(samples or self.num_fit_closed, self.num_fit)

    @cached_property
    def matcher_address(self) -> tuple[str, ...]:
        """Per matcher, the part of a cell's address that does not depend on the layer pair."""
        return tuple(
            self._matcher_address(spec, data) for spec, data in zip(self.matchers, self.matcher_data, strict=True)
        )

    def _matcher_address(self, spec: MatcherSpec, data: str) -> str:
        return canonical(
            {
                "kind": spec.kind,
                "revision": spec.revision,
                "params": spec.params,
                "seed": spec.seed,
                "samples": spec.address_samples,
                "data": data,
                "precision": self.precision,
            }
        )

    @cached_property
    def _layer_bytes(self) -> tuple[tuple[bytes, ...], ...]:
        """Per network and layer, the layer's part of a cell's address."""
        return tuple(
            tuple(framed(network.network_id, layer.node, layer.layout) for layer in network.layers)
            for network in self.networks
        )

    @cached_property
    def _matcher_bytes(self) -> tuple[bytes, ...]:
        return tuple(framed(address) for address in self.matcher_address)

    @cached_property
    def _is_stitcher(self) -> tuple[bool, ...]:
        """Per matcher, whether it is a stitcher: only these have rules by which rows are resampled."""
        return tuple("resize" in spec.values for spec in self.matchers)

    @cached_property
    def _head_bytes(self) -> tuple[bytes, ...]:
        """Per network, the head's part of the address of a stitch into it."""
        return tuple(framed(*network.head.address) for network in self.networks)

    @cached_property
    def _has_order_only(self) -> bool:
        """Whether some layer is a sequence with a known order but no known grid."""
        return any(layer.is_in_order_only for network in self.networks for layer in network.layers)

    def _layer(self, key: tuple[int, int]) -> Layer:
        return self.networks[key[0]].layers[key[1]]

    def cell(self, source: int, source_layer: int, target: int, target_layer: int, matcher: int) -> Cell:
        """Return the cell at these positions; its id depends only on content, never on names or speed settings.

        The id is the digest of both layers' network, node and layout and of the matcher's address, framed in this
        order. For a stitch into a network whose scores are not logits, the address of its head follows. Parts that many
        cells share are framed once.
        """
        return Cell(
            cell_id=self._cell_id(
                (source, source_layer), (target, target_layer), matcher, self._matcher_bytes[matcher]
            ),
            source=source,
            source_layer=source_layer,
            target=target,
            target_layer=target_layer,
            matcher=matcher,
        )

    def _cell_id(self, source: tuple[int, int], target: tuple[int, int], matcher: int, address: bytes) -> str:
        layers = self._layer_bytes
        address = layers[source[0]][source[1]] + layers[target[0]][target[1]] + address
        if self._is_stitcher[matcher]:
            address += self._head_bytes[target[0]]
            if self._has_order_only and was_resized_on_a_guess(self._layer(source), self._layer(target)):
                address += framed("in order")
        return hashlib.sha256(address).hexdigest()[:32]

    def full_rank_id(self, cell: Cell) -> str:
        """Return the id that a cell has without the rank of its source, so that maps of all ranks start alike."""
        spec = self.matchers[cell.matcher]
        if spec.rank is None:
            return cell.cell_id
        values = {name: value for name, value in spec.values.items() if name != "rank"}
        address = self._matcher_address(replace(spec, params=canonical(values)), self.matcher_data[cell.matcher])
        return self._cell_id(cell.source_key, cell.target_key, cell.matcher, framed(address))

    def block(self, source: int, target: int) -> Block:
        """Return the block of all selected layers of one network with all of another."""
        source_layers, target_layers = (tuple(range(len(self.networks[k].layers))) for k in (source, target))
        return Block(source=source, target=target, source_layers=source_layers, target_layers=target_layers)

    def source_layers(self, block: Block) -> list[Layer]:
        """Return the layers that a block stitches from."""
        return [self.networks[block.source].layers[layer] for layer in block.source_layers]

    def target_layers(self, block: Block) -> list[Layer]:
        """Return the layers that a block stitches into."""
        return [self.networks[block.target].layers[layer] for layer in block.target_layers]

    def cells(self, shard: Shard) -> Iterator[Cell]:
        """Yield the cells of a shard that are wanted, target layers outermost."""
        for block in shard.blocks:
            for target_layer in block.target_layers:
                for source_layer in block.source_layers:
                    for matcher in shard.matchers:
                        cell = self.cell(block.source, source_layer, block.target, target_layer, matcher)
                        if shard.wanted is None or cell.cell_id in shard.wanted:
                            yield cell
