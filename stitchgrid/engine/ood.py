"""Scores pooled T(A) and B, image by image, by the Gaussian of pooled B, which is fitted on the fit images.

Shape suffixes: S stitched networks, N images, D features of the source, E of the target.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.pooling import pooled_own, pooled_source
from stitchgrid.engine.stitched import FittedStitch, pooled_when_run
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.ood import Gaussian, detection, fit_gaussian
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.moments import RowSums, find_finite
from stitchgrid.records import Cell
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.planner import gaussians

GaussianKey = tuple[LayerKey, int]  # (target layer, number of fit images)


class Gaussians:
    """The Gaussian of every target layer, on the fit images of the maps into it, where a metric asks for it."""

    def __init__(self, work: Workspace, ledger: Ledger, cells: Iterable[Cell]):
        self.work, self.ledger = work, ledger
        self.sums = {
            (one.key, one.num_images): RowSums([one.width], device=work.device)
            for one in gaussians(work.geometry, work.asked(cells))
        }

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
                sums.add(sums.centre([pooled_own(self.work, batch, layer)[:count]]))

    def unfinished(self, num_seen: int) -> list[GaussianKey]:
        """Return the keys of the Gaussians that need more images than were seen."""
        return [key for key in self.sums if key[1] > num_seen]

    def fitted(self, key: GaussianKey) -> Gaussian:
        """Return one of the Gaussians, once all images have passed.

        Raises:
            ValueError: If an activation was infinite or NaN.
        """
        find_finite(self.sums.values())
        return fit_gaussian(self.sums[key].side(0), num_rows=self.sums[key].num_rows)


class DistanceCheck:
    """The scores that one Gaussian gives B and every T(A) into one target layer, image by image."""

    def __init__(self, work: Workspace, stitches: Sequence[FittedStitch], gaussian: Gaussian):
        self.work, self.stitches, self.gaussian = work, list(stitches), gaussian
        self.cells = [stitch.cell for stitch in stitches]
        self.target = stitches[0].cell.target_key
        self._of_affine = [
            gaussian.score_of(stitch.map) if isinstance(stitch.map, AffineMap) else None for stitch in stitches
        ]
        self._b_N: list[Tensor] = []
        self._t_SN: list[Tensor] = []

    @torch.no_grad()
    def take(self, batch: Batch) -> None:
        """Score the images of a batch."""
        self._b_N.append(self.gaussian.score(pooled_own(self.work, batch, self.target)))
        scores = [self._score(position, batch) for position in range(len(self.stitches))]
        self._t_SN.append(torch.stack(scores))

    def _score(self, position: int, batch: Batch) -> Tensor:
        """Return the scores of pooled T(A), (N,)."""
        stitch, of_affine = self.stitches[position], self._of_affine[position]
        if of_affine is None:
            pooled_NE = pooled_when_run(batch, stitch)
            if pooled_NE is None:  # its cell has failed, and the scores of other cells stay
                return self._b_N[-1].new_full((len(batch.labels_N),), torch.nan)
            return self.gaussian.score(pooled_NE)
        return of_affine(pooled_source(self.work, batch, stitch.cell.source_key, self.target, stitch.rules))

    def metrics(self) -> list[dict[str, float]]:
        """Return how well the scores separate each T(A) from B, in the order of the stitches."""
        found = detection(torch.cat(self._b_N), torch.cat(self._t_SN, dim=1))
        table = torch.stack(list(found.values())).mT.tolist()
        return [dict(zip(OOD_METRICS["mahalanobis"], values, strict=True)) for values in table]
