"""Running stitched networks: the sources' representations, mapped and stacked into one batch through one tail.

Shape suffixes: S stitched networks, G groups of images, N images, P rows per image, D features of a source, E of the
target, K classes.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from stitchgrid.engine.anchors import Anchors
from stitchgrid.engine.groups import Groups, left
from stitchgrid.engine.outputs import outputs_of
from stitchgrid.engine.pooling import pooled_own, pooled_source
from stitchgrid.engine.residual_profile import Profile
from stitchgrid.engine.row_errors import RowErrors, SpreadSum
from stitchgrid.engine.workspace import Batch, Workspace
from stitchgrid.matchers.adapters import Adapter
from stitchgrid.matchers.alignment import install, resize_rows, rows_of
from stitchgrid.matchers.layouts import DEFAULT_RULES, keeps_means, layouts_of
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.ood import detection, rounded
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import asks_ood
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.records import Cell, Layer

STACK_IMAGES = {"cpu": 256, "cuda": 2048}  # images of all stitched networks that go through a tail together,
STACK_BYTES = 256 << 20  # and their activations at the stitch, unless those of one batch are more


def stack_images(device: torch.device) -> int:
    """Return how many images of stitched networks go through a tail together.

    On a CPU larger stacks are slower, since their activations do not fit into the caches.
    """
    return STACK_IMAGES.get(device.type, STACK_IMAGES["cpu"])


def images_per_stack(target: Layer, device: torch.device, halved: Callable[[int], int]) -> int:
    """Return how many images go through the tail behind a layer together, unless one batch is more.

    `halved` reduces a number of images or bytes where memory is short.
    """
    return min(halved(stack_images(device)), halved(STACK_BYTES) // (4 * prod(target.shape)))


def stacks(work: Workspace, target: Layer, num_networks: int, num_images: int) -> list[slice]:
    """Return which stitched networks run on a batch together, in as few stacks as possible, of about equal size."""
    most = max(1, images_per_stack(target, work.device, work.halved) // num_images)
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
    """Return T(A) on the target's rows, (N, P, E), in `out` if it is given.

    An affine map commutes with resizing, though not with dropping tokens, so it is applied to the side with fewer rows.
    """
    source_layout, target_layout = layouts_of(source, target)
    if not isinstance(stitch, AffineMap):
        mapped = stitch(resize_rows(rows_of(a, source), source_layout, target_layout, rules))
        return mapped if out is None else out.copy_(mapped)
    if source_layout.num_rows < target_layout.num_rows and keeps_means(target_layout, rules):
        laid = resize_rows(stitch(rows_of(a, source)), source_layout, target_layout, rules)
        return laid if out is None else out.copy_(laid)
    return stitch(resize_rows(rows_of(a, source), source_layout, target_layout, rules), out=out)


@dataclass(frozen=True, kw_only=True)
class FittedStitch:
    """A fitted map of one cell."""

    cell: Cell
    map: AffineMap | Adapter
    rules: Rules


def pooled_stitched(batch: Batch, stitch: FittedStitch, t_NPE: Tensor, layer: Layer) -> Tensor:
    """Return the pooled rows T(A) of a map that is not affine, (N, E), computed once per batch."""
    return batch.once(("pooled stitched", stitch.cell.cell_id), lambda: t_NPE[:, layer.num_prefix :].double().mean(1))


def pooled_when_run(batch: Batch, stitch: FittedStitch) -> Tensor | None:
    """Return what `pooled_stitched` found when the stitched network was run; None where it could not be run."""
    return batch.found.get(("pooled stitched", stitch.cell.cell_id))


class TailEvaluation:
    """Everything measured of the stitched networks that end in one target layer, summed over batches."""

    def __init__(
        self,
        work: Workspace,
        stitches: Sequence[FittedStitch],
        *,
        fit_minimum_S: Tensor,
        anchors: Anchors,
        by_rows: Collection[str] = (),
    ):
        """`by_rows` are the cells of affine maps whose distance to B is found row by row."""
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
            [k for k, one in enumerate(stitches) if isinstance(one.map, Adapter) or one.cell.cell_id in by_rows],
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
        self.target_spread.add(pooled_own(self.work, batch, self.target).unsqueeze(1), batch.start)
        self.row_errors.begin(b_NPE, batch.start)
        self.profile.begin(batch)
        if self.detector is not None:
            self._scores_b.append(rounded(self.detector.score(batch.activations[self.target].float())))
        pooled_SNE = b_NPE.new_empty(len(self.stitches), len(b_NPE), b_NPE.shape[2], dtype=torch.float64)
        for position, stitch in enumerate(self.stitches):
            if not isinstance(stitch.map, Adapter):
                pooled_SNE[position] = self._pooled(position, batch)
        scores_SN: list[Tensor] = []
        for part in stacks(self.work, self.layer, len(self.stitches), len(batch.labels_N)):
            t_SNPE = b_NPE.new_empty(part.stop - part.start, *b_NPE.shape)
            for t_NPE, position in zip(t_SNPE, range(len(self.stitches))[part], strict=True):
                exact_NPE = self._stitch(position, batch, t_NPE)
                if position in self.row_errors.positions:
                    self.row_errors.add(position, exact_NPE, b_NPE)
                if isinstance(self.stitches[position].map, Adapter):
                    pooled_SNE[position] = pooled_stitched(batch, self.stitches[position], t_NPE, self.layer)
            self._run(part, t_SNPE)
            scores_SN += self._energies(part, t_SNPE)
            self._sum_up(part, t_SNPE, pooled_SNE[part], batch.start)
        self.spread.add(pooled_SNE.unsqueeze(2), batch.start)
        if scores_SN:
            self._scores_t.append(torch.cat(scores_SN))

    def _about_anchor(self, stitch: FittedStitch) -> tuple[AffineMap | Adapter, Tensor | None]:
        """Return the map of the source's rows about their anchor, and the bias that is added last, if any.

        For a target far from zero every operation would round as coarsely as its rows, so its bias is added at the end.
        """
        if isinstance(stitch.map, Adapter):
            return stitch.map, None
        anchor, at_target = self.anchors.of(stitch.cell.source_key), self.anchors.of(self.target)
        found = stitch.map if anchor is None else anchor.map(stitch.map)
        if at_target is None:
            return found, None
        return AffineMap(weight_DE=found.weight_DE, bias_E=torch.zeros_like(found.bias_E)), found.bias_E

    def _pooled(self, position: int, batch: Batch) -> Tensor:
        """Return pooled T(A) in float64, (N, E): T applied to pooled A."""
        stitch = self.stitches[position]
        pooled_ND = pooled_source(self.work, batch, stitch.cell.source_key, self.target, stitch.rules)
        return self._exact[position](pooled_ND)

    def _stitch(self, position: int, batch: Batch, out: Tensor) -> Tensor:
        """Write T(A) of one stitch, (N, P, E), and return it: in float64 where B is far from zero."""
        stitch, source = self.stitches[position], self.stitches[position].cell.source_key
        a, layer = batch.activations[source].float(), self.work.layer(source)
        anchor = self.anchors.of(source) if isinstance(stitch.map, AffineMap) else None
        if anchor is not None:
            found, axis = anchor, layer.feature_axis
            a = batch.once(("about its anchor", source), lambda: found.rows(batch.activations[source].float(), axis))
        about_anchor, bias_E = self._anchored[position]
        stitch_rows(about_anchor, a, layer, self.layer, stitch.rules, out=out)
        exact_NPE = out
        if bias_E is not None:
            exact_NPE = out + bias_E  # in float64: the error of a bias in float32 would be as large as B's rounding
            out.copy_(exact_NPE)
        drops = not keeps_means(layouts_of(layer, self.layer)[1], stitch.rules)
        if anchor is not None and isinstance(stitch.map, AffineMap) and drops:  # dropped tokens are zeros, not anchors
            for rows_NPE in (out, exact_NPE):
                rows_NPE[:, : self.layer.num_prefix] = stitch.map.bias_E.to(rows_NPE.dtype)
        return exact_NPE

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
        """Sum up the rows T(A) themselves; this overwrites them."""
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
        """Return the metrics of every stitched network without each group of images, in order, except detectors'."""
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
