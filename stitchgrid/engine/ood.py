"""Pooled T(A) and B against the Gaussian of pooled B: fitted on the fit images, scored while others pass.

Shape suffixes: S stitched networks, N images, P positions of the source, Q of the target, D features, E of the target.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stitchgrid.engine.laying import Laying
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.stitched import Stitch
from stitchgrid.engine.workspace import Batch, LayerKey, Workspace
from stitchgrid.matchers.alignment import Layout, is_identity, layouts_of, rows_of
from stitchgrid.matchers.catalogue import OOD_METRICS, Rules, asks_ood
from stitchgrid.matchers.ood import Gaussian, detection, fit_gaussian
from stitchgrid.moments import RowSums, find_finite
from stitchgrid.records import Cell, Layer

GaussianKey = tuple[LayerKey, int]  # (target layer, number of fit images)


class Pooling:
    """Mean over the positions that a target has, of rows as they are laid there: a weighted sum of a source's rows.

    An affine map commutes with it, so that pooled T(A) needs no T(A), and can be had in float64.
    """

    def __init__(self, source: Layer, target: Layer, rules: Rules, *, device: torch.device):
        self.source = source
        self.weights_P = _weights(*layouts_of(source, target), target.num_prefix, rules, device)

    def __call__(self, a: Tensor) -> Tensor:
        """Return the pooled rows of a batch of the source's activations: (N, D), float64."""
        return self.weights_P @ rows_of(a, self.source).double()


@lru_cache(maxsize=256)  # they are the same for all pairs of layers of these layouts
def _weights(source: Layout, target: Layout, num_prefix: int, rules: Rules, device: torch.device) -> Tensor:
    """Return the weights of a source's rows in the mean over the positions of the target, (P,)."""
    mean_1Q1 = torch.zeros(1, target.num_rows, 1, dtype=torch.float64, device=device)
    mean_1Q1[:, num_prefix:] = 1 / (target.num_rows - num_prefix)
    is_laid = not is_identity(source, target, rules)
    return (Laying(source, target, rules, device=device).back(mean_1Q1) if is_laid else mean_1Q1).flatten()


class Gaussians:
    """The Gaussian of every target layer, on the fit images of the maps into it, where a metric asks for it."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Iterable[Cell]):
        self.work, self.ledger = work, ledger
        self.sums = {
            self.key(cell): RowSums([work.layer(cell.target_key).width], device=work.device)
            for cell in cells
            if asks_ood(work.sweep.matchers[cell.matcher], "mahalanobis")
        }
        self._poolings = {key: pooling_of(work, key) for key in self.layers}

    def key(self, cell: Cell) -> GaussianKey:
        """Return which Gaussian a cell asks for."""
        return cell.target_key, self.ledger[cell].num_fit or 0

    @property
    def layers(self) -> list[LayerKey]:
        """The layers looked at."""
        return list(dict.fromkeys(layer for layer, _ in self.sums))

    def take(self, batch: Batch) -> None:
        """Look at the images of a batch."""
        for (layer, num_images), sums in self.sums.items():
            if count := batch.count_below(num_images):
                rows_NE = self._poolings[layer](batch.activations[layer][:count])
                sums.add(sums.centre([rows_NE]))

    def open_after(self, num_seen: int) -> list[GaussianKey]:
        """Return those that look at more images than were seen."""
        return [key for key in self.sums if key[1] > num_seen]

    def fitted(self, key: GaussianKey) -> Gaussian:
        """Return one of them, once all images have passed.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        find_finite(self.sums.values())
        return fit_gaussian(self.sums[key].side(0), num_rows=self.sums[key].num_rows)


def pooling_of(work: Workspace, key: LayerKey) -> Pooling:
    """Return the pooling of a layer's own rows."""
    return Pooling(work.layer(key), work.layer(key), Rules(), device=work.device)


class DistanceCheck:
    """Scores of B and of every T(A) into one target layer that are measured by one Gaussian, image by image."""

    def __init__(self, work: Workspace, stitches: Sequence[Stitch], gaussian: Gaussian):
        self.work, self.stitches, self.gaussian = work, list(stitches), gaussian
        self.cells = [stitch.cell for stitch in stitches]
        self.target = stitches[0].cell.target_key
        self._pool_target = pooling_of(work, self.target)
        self._poolings = {self._source(stitch): self._pooling(stitch) for stitch in stitches}
        self._b_N: list[Tensor] = []
        self._t_SN: list[Tensor] = []

    @staticmethod
    def _source(stitch: Stitch) -> tuple[LayerKey, Rules]:
        return stitch.cell.source_key, stitch.rules

    def _pooling(self, stitch: Stitch) -> Pooling:
        source, target = self.work.layer(stitch.cell.source_key), self.work.layer(self.target)
        return Pooling(source, target, stitch.rules, device=self.work.device)

    @torch.no_grad()
    def take(self, batch: Batch) -> None:
        """Score the images of a batch."""
        self._b_N.append(self.gaussian.score(self._pool_target(batch.activations[self.target])))
        pooled = {source: pool(batch.activations[source[0]]) for source, pool in self._poolings.items()}
        scores = [self.gaussian.score(s.map(pooled[self._source(s)])) for s in self.stitches]
        self._t_SN.append(torch.stack(scores))

    def metrics(self) -> list[dict[str, float]]:
        """Return how well the scores tell each T(A) from B, in the order of the stitches."""
        found = detection(torch.cat(self._b_N), torch.cat(self._t_SN, dim=1))
        table = torch.stack(list(found.values())).mT.tolist()
        return [dict(zip(OOD_METRICS["mahalanobis"], values, strict=True)) for values in table]
