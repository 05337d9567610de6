"""Running stitched networks: the sources' representations, mapped and stacked into one batch through one tail.

Shape suffixes: S stitched networks, G groups of images, N images, P rows per image, D features of a source, E of the
target, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from stitchgrid.engine.anchors import Anchors
from stitchgrid.engine.groups import Groups, left
from stitchgrid.engine.outputs import outputs_of
from stitchgrid.engine.pooling import pooled_source, pooled_target
from stitchgrid.engine.profile import Profile
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.adapters import Adapter
from stitchgrid.matchers.alignment import install, resize_rows, rows_of
from stitchgrid.matchers.layouts import DEFAULT_RULES, keeps_means, layouts_of
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.ood import detection, rounded
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import asks_ood
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.moments import exact_mean
from stitchgrid.records import Cell, Layer

STACK_IMAGES = {"cpu": 256, "cuda": 2048}  # images of all stitched networks that go through a tail together,
STACK_BYTES = 256 << 20  # and their activations at the stitch, unless those of one batch are more


def stack_images(device: torch.device) -> int:
    """Return how many images of stitched networks go through a tail together.

    On a CPU more than these are slower: their activations leave the caches.
    """
    return STACK_IMAGES.get(device.type, STACK_IMAGES["cpu"])


def images_per_stack(target: Layer, device: torch.device, share: Callable[[int], int]) -> int:
    """Return how many images go through the tail behind a layer together, unless one batch is more.

    `share` is what is left of an amount of images or bytes where memory is short.
    """
    return min(share(stack_images(device)), share(STACK_BYTES) // (4 * prod(target.shape)))


def stacks(work: Workspace, target: Layer, num_networks: int, num_images: int) -> list[slice]:
    """Return which of so many stitched networks see a batch of so many images together: as few stacks, as equal."""
    most = max(1, images_per_stack(target, work.device, work.share) // num_images)
    num_stacks = -(-num_networks // most)
    return [slice(*ends) for ends in pairwise(k * num_networks // num_stacks for k in range(num_stacks + 1))]


def stitch_rows(
    stitch: AffineMap | Adapter,
    a: Tensor,
    source: Layer,
    target: Layer,
    rules: Rules = DEFAULT_RULES,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return T(A) on the target's rows, (N, P, E), in `out` where it is given.

    An affine map commutes with resizing, so it is applied on whichever side has fewer rows; not with dropping tokens.
    """
    ours, theirs = layouts_of(source, target)
    if not isinstance(stitch, AffineMap):
        mapped = stitch(resize_rows(rows_of(a, source), ours, theirs, rules))
        return mapped if out is None else out.copy_(mapped)
    if ours.num_rows < theirs.num_rows and keeps_means(theirs, rules):
        laid = resize_rows(stitch(rows_of(a, source)), ours, theirs, rules)
        return laid if out is None else out.copy_(laid)
    return stitch(resize_rows(rows_of(a, source), ours, theirs, rules), out=out)


@dataclass(frozen=True, kw_only=True)
class Stitch:
    """A fitted map of one cell."""

    cell: Cell
    map: AffineMap | Adapter
    rules: Rules


class SpreadSum:
    """Total variance of rows (..., N, P, E), summed in float64 about the first batch's mean, by group of images."""

    def __init__(self, groups: Groups):
        self.groups, self.is_empty = groups, True
        self.num_G = self.pivot = self.total = self.square = torch.zeros(())  # `num_G`: of rows

    def add(self, rows: Tensor, start: int) -> None:
        """Add the rows of N images, the first of which is at position `start`, to each of the leading dimensions."""
        num_images, num_rows = rows.shape[-3:-1]
        exact = rows.double()
        if self.is_empty:
            self.pivot = exact_mean(exact.flatten(-3, -2), -2, keepdim=True).unsqueeze(-2)
            self.num_G = self.total = self.square = rows.new_zeros((), dtype=torch.float64)
            self.is_empty = False
        shifted = exact - self.pivot
        self.num_G = self.num_G + num_rows * self.groups.sums(torch.ones(num_images, device=rows.device), start)
        self.total = self.total + self.groups.sums(shifted.sum(-2).movedim(-2, -1), start)
        self.square = self.square + self.groups.sums(shifted.square().sum((-2, -1)), start)

    def trace(self) -> Tensor:
        """Return the trace of the rows' covariance, one number for each of the leading dimensions."""
        return self._trace(self.num_G.sum(), self.total.sum(0), self.square.sum(0))

    def traces(self) -> Tensor:
        """Return the trace without each group of images, (G, ...)."""
        num = left(self.num_G).view(-1, *[1] * (self.square.dim() - 1))
        return self._trace(num, left(self.total), left(self.square))

    def _trace(self, num: Tensor, total: Tensor, square: Tensor) -> Tensor:
        return square / num - (total / num.unsqueeze(-1)).square().sum(-1)


def pooled_stitched(batch: Batch, stitch: Stitch, t_NPE: Tensor, layer: Layer) -> Tensor:
    """Return the pooled rows T(A) of a map that is not affine, (N, E), for all that asks for them of the batch."""
    return batch.once(("pooled stitched", stitch.cell.cell_id), lambda: t_NPE[:, layer.num_prefix :].double().mean(1))


class RowErrors:
    """Distance of T(A) to B, row by row, of maps that are not affine: moments of A do not tell it."""

    def __init__(self, positions: Sequence[int], *, groups: Groups, device: torch.device):
        self.positions, self.groups = list(positions), groups  # among the stitches
        zeros_G = torch.zeros(groups.num, dtype=torch.float64, device=device)
        self._errors = {position: zeros_G.clone() for position in positions}
        self._norm_G = zeros_G.clone()
        self._spread = SpreadSum(groups)

    def begin(self, b_NPE: Tensor, start: int) -> None:
        """Take the target's own rows of a batch."""
        self._start = start
        if self.positions:
            self._norm_G += self.groups.sums(b_NPE.double().square().sum((1, 2)), start)
            self._spread.add(b_NPE, start)

    def add(self, position: int, t_NPE: Tensor, b_NPE: Tensor) -> None:
        """Take the rows of one stitch."""
        errors_N = (t_NPE.double() - b_NPE).square().sum((1, 2))
        self._errors[position] += self.groups.sums(errors_N, self._start)

    def metrics(self) -> dict[int, dict[str, float]]:
        """Return residual and r2 of each; NaN where B is 0, or does not vary."""
        if not self.positions:
            return {}
        variance = self._spread.trace() * self._spread.num_G.sum()
        errors_S = torch.stack([errors_G.sum() for errors_G in self._errors.values()])
        return self._told(self._of(errors_S, self._norm_G.sum(), variance))

    def replicates(self) -> dict[int, dict[str, list[float]]]:
        """Return residual and r2 of each without each group of images."""
        if not self.positions:
            return {}
        variance_G = self._spread.traces() * left(self._spread.num_G)
        errors_SG = torch.stack([left(errors_G) for errors_G in self._errors.values()])
        return self._told(self._of(errors_SG, left(self._norm_G), variance_G))

    @staticmethod
    def _of(errors: Tensor, norm: Tensor, variance: Tensor) -> Tensor:
        """Return residual and r2, side by side behind the stitches: (S, 2, ...)."""
        residual = errors / torch.where(norm > 0, norm, torch.nan)
        share = 1 - errors / torch.where(variance > 0, variance, torch.nan)
        return torch.stack([residual, share], dim=1)

    def _told(self, both: Tensor) -> dict[int, dict[str, Any]]:
        rows = zip(self._errors, both.tolist(), strict=True)  # one transfer for all
        return {position: dict(zip(("residual", "r2"), values, strict=True)) for position, values in rows}


class TailEvaluation:
    """Everything measured of the stitched networks that end in one target layer, summed over batches."""

    def __init__(self, work: Workspace, stitches: Sequence[Stitch], *, fit_minimum_S: Tensor, anchors: Anchors):
        self.work, self.anchors = work, anchors
        self.stitches = list(stitches)
        self.cells = [stitch.cell for stitch in stitches]
        self.target = stitches[0].cell.target_key
        self.layer = work.layer(self.target)
        self.groups = groups = Groups(work.sweep.groups or 1)
        network = work.sweep.networks[self.target[0]]
        self.profile = Profile(work, self.cells, self.target, groups=groups)
        self.outputs = outputs_of(network, len(stitches), groups=groups, device=work.device)
        zeros_GS = torch.zeros(groups.num, len(stitches), dtype=torch.float64, device=work.device)
        self._exact = [stitch.map.frozen() for stitch in stitches]
        self.row_errors = RowErrors(
            [k for k, stitch in enumerate(stitches) if isinstance(stitch.map, Adapter)],
            groups=groups,
            device=work.device,
        )
        self._anchored: list[tuple[AffineMap | Adapter, Tensor | None]] = []  # maps of rows as the anchors leave them
        self.negative_GS, self.absolute_GS = zeros_GS, zeros_GS.clone()  # sums of |min(T(A), 0)| and |T(A)|
        self.target_minimum_S = fit_minimum_S  # over each map's fit rows and the evaluation rows
        self.spread, self.target_spread = SpreadSum(groups), SpreadSum(groups)
        specs = (work.sweep.matchers[cell.matcher] for cell in self.cells)
        #: Positions of the stitches that ask for scores of a detector by energy, which is None if none does.
        self.watched = [position for position, spec in enumerate(specs) if asks_ood(spec, "energy")]
        self.detector = work.detector(self.target) if self.watched else None
        self._scores_b: list[Tensor] = []  # (N,) a batch
        self._scores_t: list[Tensor] = []  # (watched, N) a batch

    @torch.no_grad()
    def take(self, batch: Batch) -> None:
        """Run every stitched network on the images of a batch."""
        self._anchored = self._anchored or [self._about_anchor(stitch) for stitch in self.stitches]
        b_NPE = rows_of(batch.activations[self.target].float(), self.layer)
        self.outputs.begin(batch.logits[self.target[0]].float(), batch.labels_N)
        self.target_minimum_S = torch.minimum(self.target_minimum_S, b_NPE.min())
        self.target_spread.add(pooled_target(self.work, batch, self.target).unsqueeze(1), batch.start)
        self.row_errors.begin(b_NPE, batch.start)
        self.profile.begin(batch)
        if self.detector is not None:
            self._scores_b.append(rounded(self.detector.score(batch.activations[self.target].float())))
        affine = [position for position in range(len(self.stitches)) if position not in self.row_errors.positions]
        pooled_SNE = b_NPE.new_empty(len(self.stitches), len(b_NPE), b_NPE.shape[2], dtype=torch.float64)
        for position in affine:
            pooled_SNE[position] = self._pooled(position, batch)
        scores_SN: list[Tensor] = []
        for part in stacks(self.work, self.layer, len(self.stitches), len(batch.labels_N)):
            t_SNPE = b_NPE.new_empty(part.stop - part.start, *b_NPE.shape)
            for t_NPE, position in zip(t_SNPE, range(len(self.stitches))[part], strict=True):
                self._stitch(position, batch, t_NPE)
                if position in self.row_errors.positions:
                    self.row_errors.add(position, t_NPE, b_NPE)
                    pooled_SNE[position] = pooled_stitched(batch, self.stitches[position], t_NPE, self.layer)
            self._run(part, t_SNPE)
            scores_SN += self._energies(part, t_SNPE)
            self._sum_up(part, t_SNPE, pooled_SNE[part], batch.start)
        self.spread.add(pooled_SNE.unsqueeze(2), batch.start)
        if scores_SN:
            self._scores_t.append(torch.cat(scores_SN))

    def _about_anchor(self, stitch: Stitch) -> tuple[AffineMap | Adapter, Tensor | None]:
        """Return the map of the source's rows about their anchor, and the bias that is added last, if any.

        Of a target far from zero every operation would round as its rows do: there the bias waits until the end.
        """
        if isinstance(stitch.map, Adapter):
            return stitch.map, None
        anchor, at_target = self.anchors.of(stitch.cell.source_key), self.anchors.of(self.target)
        found = stitch.map if anchor is None else anchor.map(stitch.map)
        if at_target is None:
            return found, None
        return AffineMap(weight_DE=found.weight_DE, bias_E=torch.zeros_like(found.bias_E)), found.bias_E

    def _pooled(self, position: int, batch: Batch) -> Tensor:
        """Return pooled T(A) in float64, (N, E): what T makes of pooled A."""
        stitch = self.stitches[position]
        pooled_ND = pooled_source(self.work, batch, stitch.cell.source_key, self.target, stitch.rules)
        return self._exact[position](pooled_ND)

    def _stitch(self, position: int, batch: Batch, out: Tensor) -> None:
        """Write T(A) of one stitch, (N, P, E)."""
        stitch, source = self.stitches[position], self.stitches[position].cell.source_key
        a, layer = batch.activations[source].float(), self.work.layer(source)
        anchor = self.anchors.of(source) if isinstance(stitch.map, AffineMap) else None
        if anchor is not None:
            found, axis = anchor, layer.feature_axis
            a = batch.once(("about its anchor", source), lambda: found.rows(batch.activations[source].float(), axis))
        about_anchor, bias_E = self._anchored[position]
        stitch_rows(about_anchor, a, layer, self.layer, stitch.rules, out=out)
        if bias_E is not None:
            out.copy_(out + bias_E)  # in float64: a bias in float32 would be off by as much as B is rounded
        drops = not keeps_means(layouts_of(layer, self.layer)[1], stitch.rules)
        if anchor is not None and isinstance(stitch.map, AffineMap) and drops:  # dropped tokens are zeros, not anchors
            out[:, : self.layer.num_prefix] = stitch.map.bias_E.to(out.dtype)

    def _run(self, part: slice, t_SNPE: Tensor) -> None:
        with self.work.precision():
            scores = self.profile.run(install(t_SNPE.flatten(0, 1), self.layer), part, t_SNPE.shape[:2])
        self.outputs.take(part, scores.float().unflatten(0, t_SNPE.shape[:2]))  # type: ignore[no-untyped-call]

    def _energies(self, part: slice, t_SNPE: Tensor) -> list[Tensor]:
        """Return the detector's scores of T(A) where they are asked for: (S, N), or nothing."""
        asking = [position - part.start for position in self.watched if part.start <= position < part.stop]
        if self.detector is None or not asking:
            return []
        some_SNPE = t_SNPE if len(asking) == len(t_SNPE) else t_SNPE[asking]
        scores_N = self.detector.score(install(some_SNPE.flatten(0, 1), self.layer))
        return [rounded(scores_N).view(some_SNPE.shape[:2])]

    def _sum_up(self, part: slice, t_SNPE: Tensor, pooled_SNE: Tensor, start: int) -> None:
        """Sum up the rows T(A) themselves, which are lost."""
        num_prefix = self.layer.num_prefix
        total_SN = pooled_SNE.sum(2) * (t_SNPE.shape[2] - num_prefix)
        total_SN += t_SNPE[:, :, :num_prefix].sum((2, 3), dtype=torch.float64)
        exact = torch.float64 if self.anchors.is_large(self.target) else None
        negative_SN = -t_SNPE.clamp_(max=0).sum(2, dtype=exact).sum(2, dtype=torch.float64)
        self.negative_GS[:, part] += self.groups.sums(negative_SN, start)
        self.absolute_GS[:, part] += self.groups.sums(total_SN + 2 * negative_SN, start)

    def metrics(self) -> list[dict[str, float]]:
        """Return the functional metrics of every stitched network, in order; NaN where one is undefined."""
        columns = {
            **self.outputs.metrics(),
            "variance_ratio": self.spread.trace() / self.target_spread.trace(),
            "negative_mass": self._negative_mass(self.negative_GS.sum(0), self.absolute_GS.sum(0)),
        }
        table = torch.stack(list(columns.values())).mT.tolist()
        found = [dict(zip(columns, values, strict=True)) for values in table]
        for position, energies in zip(self.watched, self._energy_metrics(), strict=True):
            found[position] |= energies
        for position, errors in (*self.row_errors.metrics().items(), *self.profile.metrics().items()):
            found[position] |= errors
        return found

    def replicates(self) -> list[dict[str, list[float]]]:
        """Return the metrics of every stitched network without each group of images, in order, but for detectors'."""
        columns = {
            **self.outputs.replicates(),
            "variance_ratio": self.spread.traces() / self.target_spread.traces()[:, None],
            "negative_mass": self._negative_mass(left(self.negative_GS), left(self.absolute_GS)),
        }
        told_SMG = torch.stack(list(columns.values())).permute(2, 0, 1).tolist()
        found = [dict(zip(columns, values, strict=True)) for values in told_SMG]
        for position, errors in (*self.row_errors.replicates().items(), *self.profile.replicates().items()):
            found[position] |= errors
        return found

    def _negative_mass(self, negative: Tensor, absolute: Tensor) -> Tensor:
        return torch.where(self.target_minimum_S >= 0, negative / absolute, torch.nan)

    def _energy_metrics(self) -> list[dict[str, float]]:
        if not self.watched:
            return []
        told = detection(torch.cat(self._scores_b), torch.cat(self._scores_t, dim=1))
        table = torch.stack(list(told.values())).mT.tolist()
        return [dict(zip(OOD_METRICS["energy"], values, strict=True)) for values in table]
