"""Keeps activations and scores of one pass over the evaluation images, so that the next one need not run networks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stitchgrid.statistics.base import LayerKey

MOST_BYTES = 2 << 30
SHARE = 0.125  # of the available memory


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passed:
    """A network's activations and scores on a batch."""

    activations: dict[LayerKey, Tensor]
    logits: Tensor

    def first(self, num: int) -> "_Passed":
        """Return those on the first `num` images of the batch."""
        if num == len(self.logits):
            return self
        return _Passed(activations={key: a[:num] for key, a in self.activations.items()}, logits=self.logits[:num])


class KeptPass:
    """Activations of selected layers and scores of batches, as long as they fit into a number of bytes."""

    def __init__(self, budget: int):
        self._free = min(MOST_BYTES, budget)
        self._passed: dict[tuple[int, int], _Passed] = {}  # by network and position of the first image

    def keep(
        self, network: int, images: tuple[int, int], activations: Mapping[LayerKey, Tensor], logits: Tensor
    ) -> None:
        """Keep a network's activations and scores on the images from one position to another, if there is room."""
        size = sum(a.nbytes for a in (*activations.values(), logits))
        if size <= self._free:
            self._free -= size
            self._passed[network, images[0]] = _Passed(activations=dict(activations), logits=logits)

    def split(
        self, wanted: Mapping[int, Sequence[int]], scored: Collection[int], images: tuple[int, int]
    ) -> tuple[dict[int, Sequence[int]], dict[LayerKey, Tensor], dict[int, Tensor]]:
        """Return the wanted networks that have to run on these images, and activations and scores of the others."""
        left: dict[int, Sequence[int]] = {}
        activations: dict[LayerKey, Tensor] = {}
        logits: dict[int, Tensor] = {}
        for network, layers in wanted.items():
            passed, num = self._passed.get((network, images[0])), images[1] - images[0]
            keys = [(network, layer) for layer in layers]
            if passed is None or len(passed.logits) < num or not passed.activations.keys() >= set(keys):
                left[network] = layers
                continue
            passed = passed.first(num)
            activations |= {key: passed.activations[key] for key in keys}
            if network in scored:
                logits[network] = passed.logits
        return left, activations, logits

    def clear(self) -> None:
        """Drop everything, and keep nothing new, because memory ran out."""
        self._passed.clear()
        self._free = 0
