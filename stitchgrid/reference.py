"""Every value the textbook way: whole networks with hooks, one layer pair at a time, explicit float64 matrices.

This is the specification in code. It shares nothing with the engine but the drawing of initial maps and of the images'
order, the preprocessing and, where no module returns a layer's activation, the halves of the cut network; tests hold
the two together, and `stitchgrid bench` measures what sharing work is worth.

Shape suffixes: N images, P rows per image, R rows of all images, D features of the source, E of the target, K classes.
"""

from collections.abc import Callable, Sequence
from math import nan, prod

import numpy as np
import torch
from scipy.special import xlogy
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.linalg import svd
from torch.nn import functional as F

from stitchgrid.datasets.resident import PicturePair, Pictures
from stitchgrid.matchers.catalogue import MATCHERS, OOD_METRICS, Rules, asks_ood, images_used, metrics_of
from stitchgrid.matchers.stitchers.task_loss import image_order, initial_map, seeded
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.precision import running_in
from stitchgrid.preprocess import apply_preprocess, augment_crop4_flip
from stitchgrid.records import Cell, Head, Layer, Sweep

Key = tuple[int, int]  # network and layer, by position
Pixels = Tensor | list[Tensor]
Map = tuple[Tensor, Tensor]  # weight (D, E) and bias (E,)
RANK = 1e-12  # singular values squared below this share of the largest are rounding


class Reference:
    """The values of cells, computed one layer pair at a time."""

    def __init__(
        self,
        sweep: Sweep,
        images: PicturePair,
        network: Callable[[int], CutNetwork],
        *,
        device: torch.device,
        detector: Callable[[Key], nn.Module] | None = None,  # of a target layer, where the sweep has them
    ):
        self.detector = detector
        self.sweep, self.images, self.network, self.device = sweep, images, network, device
        #: Of trained cells: their loss at the end of training, and that of a constant prediction.
        self.end_losses: dict[str, tuple[float, float]] = {}
        self._passes: dict[tuple[Key, int, int], tuple[Tensor, Tensor]] = {}  # of the layer pair at hand

    def values(self, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
        """Return cell id -> metric -> value of cells of one layer pair; undefined ones are NaN.

        Cells of the pair share its two layers' activations, as they would in a careful script.
        """
        self._passes.clear()
        return {cell.cell_id: self._values(cell) for cell in cells}

    def _values(self, cell: Cell) -> dict[str, float]:
        spec, (_, num_eval) = self.sweep.matchers[cell.matcher], self._images_used(cell)
        if MATCHERS[spec.kind].family == "stitcher":
            found = self.measured(cell, self.fitted(cell))
        else:
            a, b = (self._pass(key, self.images.eval, num_eval)[0] for key in (cell.source_key, cell.target_key))
            a = self._reduced(cell, a)
            found = INDICES[spec.kind](a, b, self._layer(cell.source_key), self._layer(cell.target_key))
        return {metric: found[metric] for metric in metrics_of(self.sweep, cell)}

    def _images_used(self, cell: Cell) -> tuple[int, int]:
        """Return how many fit and evaluation images the cell's matcher looks at."""
        return images_used(
            self.sweep.matchers[cell.matcher],
            num_fit=self.sweep.num_fit,
            num_fit_closed=self.sweep.num_fit_closed,
            num_eval=self.sweep.num_eval,
        )

    def _layer(self, key: Key) -> Layer:
        return self.sweep.networks[key[0]].layers[key[1]]

    @torch.no_grad()
    def _pass(self, key: Key, split: Pictures, num: int) -> tuple[Tensor, Tensor]:
        """Return a layer's activations of the first images of a split, in float64, and its network's logits."""
        seen = (key, id(split), num)
        if seen not in self._passes:
            parts = [
                self._run(key, split.batch(some)) for some in torch.split(torch.arange(num), self.sweep.batch_size)
            ]
            activations, logits = zip(*((a.double(), logits_NK) for a, logits_NK in parts), strict=True)
            self._passes[seen] = torch.cat(activations), torch.cat(logits)
        return self._passes[seen]

    def _run(self, key: Key, pixels: Pixels, instead: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return a layer's activation and the logits of a whole network, or those with another activation instead."""
        node, network, module = self._layer(key).node, self.network(key[0]), self._module(key)
        seen: list[Tensor] = []

        def hook(_module: object, _inputs: object, output: Tensor) -> Tensor | None:
            seen.append(output.clone())  # what follows may overwrite it
            return instead

        x = apply_preprocess(pixels, self.sweep.networks[key[0]].preprocess).to(self.device)
        with running_in(self.sweep.precision, self.device):
            if module is None:
                (activation,) = network.taps([node])(x)
                return activation, network.suffix(node)(activation if instead is None else instead).float()
            handle = module.register_forward_hook(hook)
            try:
                logits = network.module(x)
            finally:
                handle.remove()
        return seen[0], logits.float()

    def _module(self, key: Key) -> nn.Module | None:
        """Return the module that returns a layer's activation as it is seen, called once; None where there is none."""
        layer, network = self._layer(key), self.network(key[0])
        cut, outputs = network.cut(layer.node), [c.output for c in network.operations.calls if c.path == layer.name]
        return network.module.get_submodule(layer.name) if outputs == [cut.position] and cut.is_plain else None

    def _reduced(self, cell: Cell, a: Tensor) -> Tensor:
        """Return the source's activations, of low rank where the cell says so.

        Rows are projected on the top principal axes of the source's own rows on the cell's fit images, about their
        mean; axes in which those rows do not vary are none.
        """
        rank, layer = self.sweep.matchers[cell.matcher].rank, self._layer(cell.source_key)
        if rank is None or rank >= layer.width:
            return a
        fit_RD = rows(self._pass(cell.source_key, self.images.fit, self._images_used(cell)[0])[0], layer).flatten(0, 1)
        mean_D = fit_RD.mean(0)
        values_D, axes_DD = torch.linalg.eigh((fit_RD - mean_D).mT @ (fit_RD - mean_D))
        axes_DK = axes_DD[:, (values_D > RANK * values_D[-1]) & (values_D > 0)][:, -rank:]
        projector_DD, mean_D = (axes_DK @ axes_DK.mT).to(a.dtype), mean_D.to(a.dtype)
        return installed((rows(a, layer) - mean_D) @ projector_DD + mean_D, layer)

    def _lay(self, cell: Cell, a: Tensor) -> Tensor:
        """Return the source's activations, of low rank where the cell says so, on the target's positions."""
        a = self._reduced(cell, a)
        rules = Rules.of(self.sweep.matchers[cell.matcher].values)
        return lay(a, self._layer(cell.source_key), self._layer(cell.target_key), rules)

    def fitted(self, cell: Cell) -> Map:
        """Return the map of a stitcher's cell, by least squares or trained."""
        spec, (num_fit, _) = self.sweep.matchers[cell.matcher], self._images_used(cell)
        if MATCHERS[spec.kind].trained:
            return self._train(cell, num_fit=num_fit)
        a, b = (self._pass(key, self.images.fit, num_fit)[0] for key in (cell.source_key, cell.target_key))
        a_RD, b_RE = self._lay(cell, a).flatten(0, 1), rows(b, self._layer(cell.target_key)).flatten(0, 1)
        return least_squares(a_RD, b_RE, rcond=spec.values["rcond"])

    def measured(self, cell: Cell, stitch: Map) -> dict[str, float]:
        """Return at least the metrics that a stitcher's cell asks for, of any map; h is run where one needs it."""
        spec, target = self.sweep.matchers[cell.matcher], self._layer(cell.target_key)
        num_fit, num_eval = self._images_used(cell)
        a, b = (self._pass(key, self.images.eval, num_eval)[0] for key in (cell.source_key, cell.target_key))
        t_NPE, b_NPE = self._lay(cell, a) @ stitch[0] + stitch[1], rows(b, target)
        error = (t_NPE - b_NPE).square().sum().item()
        found = {
            "residual": ratio(error, b_NPE.square().sum().item()),
            "r2": 1 - ratio(error, (b_NPE - b_NPE.mean((0, 1))).square().sum().item()),
            "variance_ratio": ratio(total_variance(pooled(t_NPE, target)), total_variance(pooled(b_NPE, target))),
        }
        if "negative_mass" in spec.metrics:
            lowest = min(b.min().item(), self._pass(cell.target_key, self.images.fit, num_fit)[0].min().item())
            negative = ratio(t_NPE.clamp(max=0).abs().sum().item(), t_NPE.abs().sum().item())
            found["negative_mass"] = negative if lowest >= 0 else nan
        if asks_ood(spec, "mahalanobis"):
            fit_b = self._pass(cell.target_key, self.images.fit, num_fit)[0]
            found |= mahalanobis(pooled(rows(fit_b, target), target), pooled(b_NPE, target), pooled(t_NPE, target))
        if asks_ood(spec, "energy"):
            found |= self._energies(cell, b, t_NPE)
        if found.keys() >= set(metrics_of(self.sweep, cell)):
            return found
        return found | self._answers(cell, t_NPE)

    @torch.no_grad()
    def _energies(self, cell: Cell, b: Tensor, t_NPE: Tensor) -> dict[str, float]:
        """Return how well minus the energy by the target layer's detector tells B from T(A)."""
        assert self.detector is not None
        detector, t = self.detector(cell.target_key), installed(t_NPE, self._layer(cell.target_key))
        size = self.sweep.batch_size
        scores = [torch.cat([detector(x[k : k + size].float()) for k in range(0, len(x), size)]) for x in (b, t)]
        return told_apart("energy", *(logits_NK.exp().sum(1).log() for logits_NK in scores))

    def _train(self, cell: Cell, *, num_fit: int) -> Map:
        """Return the map trained on the labels, by itself, through the whole stitched network."""
        spec = self.sweep.matchers[cell.matcher]
        params = spec.values
        source, target = self._layer(cell.source_key), self._layer(cell.target_key)
        generator = seeded("initial map", self.sweep.full_rank_id(cell))
        initial = initial_map(source.width, target.width, generator=generator)
        weight_DE = initial.weight_DE.to(self.device).requires_grad_()
        bias_E = initial.bias_E.to(self.device).requires_grad_()
        adam = torch.optim.Adam([weight_DE, bias_E], lr=params["lr"], weight_decay=params["weight_decay"])
        for epoch in range(params["epochs"]):
            order, generator = image_order(num_fit, seed=spec.seed or 0, epoch=epoch)
            for indices in torch.split(order, params["batch_size"]):
                pixels, labels_N = self.images.fit.batch(indices), self.images.fit.labels[indices].to(self.device)
                if params["augment"] == "crop4_flip":
                    pixels = augment_crop4_flip(pixels, generator)
                with torch.no_grad():
                    a_NPD = self._lay(cell, self._run(cell.source_key, pixels)[0].float())
                t = installed(a_NPD @ weight_DE + bias_E, target)
                head = self.sweep.networks[cell.target].head
                loss = mean_loss(self._run(cell.target_key, pixels, instead=t)[1], labels_N, head)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
        stitch = weight_DE.detach(), bias_E.detach()
        self.end_losses[cell.cell_id] = self._end_loss(cell, stitch, num_fit)
        return stitch[0].double(), stitch[1].double()

    @torch.no_grad()
    def _end_loss(self, cell: Cell, stitch: Map, num_fit: int) -> tuple[float, float]:
        """Return the loss of a trained map on its first fit images, not augmented, and that of a constant prediction.

        A cell has diverged where the first is not finite, or not below the second by more than a millionth of it.
        """
        num = min(num_fit, max(256, self.sweep.matchers[cell.matcher].values["epochs"] * num_fit // 16))
        labels_N, record, total = self.images.fit.labels[:num], self.sweep.networks[cell.target], 0.0
        for some in torch.split(torch.arange(num), self.sweep.batch_size):
            pixels = self.images.fit.batch(some)
            a_NPD = self._lay(cell, self._run(cell.source_key, pixels)[0].float())
            t = installed(a_NPD @ stitch[0] + stitch[1], self._layer(cell.target_key))
            logits_NK = self._run(cell.target_key, pixels, instead=t)[1]
            total += mean_loss(logits_NK, labels_N[some].to(self.device), record.head).item() * len(some)
        classes = range(record.num_classes)
        shares = np.array([np.mean(labels_N.cpu().numpy() == label) for label in classes])
        if record.head.kind == "multilabel":
            return total / num, float((xlogy(-shares, shares) - xlogy(1 - shares, 1 - shares)).mean())
        return total / num, float(-xlogy(shares, shares).sum())

    @torch.no_grad()
    def _answers(self, cell: Cell, t_NPE: Tensor) -> dict[str, float]:
        """Return what the answers of h = g_{>j}(T(f_{<=i}(x))) and of g on the evaluation images say."""
        target, num = self._layer(cell.target_key), len(t_NPE)
        t = installed(t_NPE.float(), target)
        _, g_NK = self._pass(cell.target_key, self.images.eval, num)
        h_NK = torch.cat(
            [
                self._run(cell.target_key, self.images.eval.batch(some), instead=t[some])[1]
                for some in torch.split(torch.arange(num), self.sweep.batch_size)
            ]
        )
        labels_N = self.images.eval.labels[:num].to(self.device)
        record = self.sweep.networks[cell.target]
        if not record.head.has_classes:
            return outputs_alike(h_NK.double(), g_NK.double())
        if not torch.isfinite(h_NK).all():  # no class has the highest score
            return dict.fromkeys(("accuracy", "loss", "relative_accuracy", "penalty", "agreement"), nan)
        h, g = (said(scores_NK, record.head) for scores_NK in (h_NK, g_NK))
        is_each = record.head.kind == "multilabel" and record.is_labelled
        right = F.one_hot(labels_N, h_NK.shape[1]) if is_each else labels_N
        accuracy = mean(h == right) if record.is_labelled else nan
        target_accuracy = mean(g == right) if record.is_labelled else nan
        return {
            "accuracy": accuracy,
            "loss": mean_loss(h_NK.double(), labels_N, record.head).item() if record.is_labelled else nan,
            "relative_accuracy": ratio(accuracy, target_accuracy),
            "penalty": (1 - accuracy) - (1 - target_accuracy),
            "agreement": mean(h == g),
        }


def said(scores_NK: Tensor, head: Head) -> Tensor:
    """Return the class of each image, or yes and no for each label."""
    threshold = 0.5 if head.is_probability else 0.0
    if head.kind == "binary":
        return (scores_NK[:, 0] > threshold).long()
    return (scores_NK > threshold).long() if head.kind == "multilabel" else scores_NK.argmax(1)


def mean_loss(scores_NK: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    """Return the mean cross-entropy in nats of a network with such a head."""
    if head.kind in ("binary", "multilabel"):
        yes_NK = F.one_hot(labels_N, scores_NK.shape[1]) if head.kind == "multilabel" else labels_N[:, None]
        if head.is_probability:
            smallest = torch.finfo(torch.float32).eps
            return F.binary_cross_entropy(scores_NK.clamp(smallest, 1 - smallest), yes_NK.to(scores_NK.dtype))
        return F.binary_cross_entropy_with_logits(scores_NK, yes_NK.to(scores_NK.dtype))
    if head.is_probability:
        return F.nll_loss(scores_NK.clamp_min(torch.finfo(torch.float32).tiny).log(), labels_N)
    return F.cross_entropy(scores_NK, labels_N)


def outputs_alike(h_NK: Tensor, g_NK: Tensor) -> dict[str, float]:
    """Return how near outputs without classes are: their mean cosine, and the share of variance explained."""
    cosine_N = (h_NK * g_NK).sum(1) / (h_NK.norm(dim=1) * g_NK.norm(dim=1))
    share = ratio((h_NK - g_NK).square().sum().item(), (g_NK - g_NK.mean(0)).square().sum().item())
    return {"output_cosine": cosine_N.mean().item(), "output_r2": 1 - share}


def ratio(part: float, whole: float) -> float:
    """Return part / whole, NaN where that is undefined."""
    return part / whole if whole > 0 else nan


def mean(hits_N: Tensor) -> float:
    """Return the share of hits."""
    return hits_N.double().mean().item()


def total_variance(x_ND: Tensor) -> float:
    """Return the trace of the covariance."""
    return (x_ND - x_ND.mean(0)).square().sum().item()


def mahalanobis(fit_NE: Tensor, b_NE: Tensor, t_NE: Tensor) -> dict[str, float]:
    """Return how well minus the distance to the Gaussian of `fit_NE` tells B, the positive class, from T(A).

    The Gaussian's covariance is (1 - a) S + a tr(S)/E I, a = 0.01; distances are rounded to 3 decimals.
    """
    centred_NE = fit_NE - fit_NE.mean(0)
    covariance_EE = centred_NE.mT @ centred_NE / len(fit_NE)
    sphere_EE = covariance_EE.trace() / len(covariance_EE) * torch.eye(len(covariance_EE)).to(covariance_EE)
    shrunk_EE = 0.99 * covariance_EE + 0.01 * sphere_EE
    if not covariance_EE.trace() > 0:
        return dict.fromkeys(OOD_METRICS["mahalanobis"], nan)
    scores = []
    for x_NE in (b_NE, t_NE):
        offsets_NE = x_NE - fit_NE.mean(0)
        squares_N = (offsets_NE * torch.linalg.solve(shrunk_EE, offsets_NE.mT).mT).sum(1)
        scores.append(-squares_N.sqrt())
    return told_apart("mahalanobis", *scores)


def told_apart(detector: str, b_N: Tensor, t_N: Tensor) -> dict[str, float]:
    """Return AUROC, FPR95 and AUPR of scores, rounded to 3 decimals, B being the positive class."""
    b, t = (scores_N.double().cpu().numpy().round(3) for scores_N in (b_N, t_N))
    names, both = OOD_METRICS[detector], np.concatenate([b, t])
    if not np.isfinite(both).all():
        return dict.fromkeys(names, nan)
    is_b = np.repeat([1, 0], [len(b), len(t)])
    threshold = np.sort(b)[::-1][int(np.ceil(len(b) * 95 / 100)) - 1]
    found = (roc_auc_score(is_b, both), np.mean(t >= threshold), average_precision_score(is_b, both))
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def rows(a: Tensor, layer: Layer) -> Tensor:
    """Return a batch of activations as (N, P, D): one row per position, prefix tokens first, one row for a vector."""
    return a.movedim(layer.feature_axis, -1).reshape(len(a), -1, layer.width)


def installed(rows_NPE: Tensor, layer: Layer) -> Tensor:
    """Return rows in the shape of a layer's activations."""
    extents = [extent for axis, extent in enumerate(layer.shape, start=1) if axis != layer.feature_axis]
    return rows_NPE.reshape(len(rows_NPE), *extents, layer.width).movedim(-1, layer.feature_axis).contiguous()


def pooled(rows_NPD: Tensor, layer: Layer) -> Tensor:
    """Return the mean over positions, class and register tokens left out: one row an image."""
    return rows_NPD[:, layer.num_prefix :].mean(1)


def lay(a: Tensor, source: Layer, target: Layer, rules: Rules) -> Tensor:
    """Return a source's activations on the target's positions, (N, P, D); README has the table of the rules."""
    if "vector" not in {source.kind, target.kind} and None in {source.grid, target.grid}:
        is_same = (source.num_prefix, grid(source)) == (target.num_prefix, grid(target))
        if is_same and (rules.cls == "copy" or not target.num_prefix):
            return rows(a, source)
        return in_order(rows(a, source), source, target, rules)
    prefix_NKD, positions_NPD = rows(a, source).tensor_split([source.num_prefix], dim=1)
    mean_N1D = positions_NPD.mean(1, keepdim=True)
    if target.kind == "vector":
        return prefix_NKD[:, :1] if rules.pool == "cls" and source.num_prefix else mean_N1D
    height, width = grid(target)
    if source.kind == "vector":
        positions_NPD = mean_N1D.expand(-1, height * width, -1)
    elif grid(source) != (height, width):
        map_NDHW = positions_NPD.mT.reshape(len(a), -1, *grid(source))
        mode = {"nearest": "nearest-exact"}.get(rules.resize, rules.resize)
        corners = {"align_corners": False} if mode == "bilinear" else {}
        positions_NPD = F.interpolate(map_NDHW, size=(height, width), mode=mode, **corners).flatten(2).mT
    if rules.cls == "drop":
        prefix_NKD = torch.zeros_like(mean_N1D).expand(-1, target.num_prefix, -1)
    else:
        kept_NKD = prefix_NKD[:, : target.num_prefix if rules.cls == "copy" else 0]
        filled_NKD = mean_N1D.expand(-1, target.num_prefix - kept_NKD.shape[1], -1)
        prefix_NKD = torch.cat([kept_NKD, filled_NKD], dim=1)
    return torch.cat([prefix_NKD, positions_NPD], dim=1)


def in_order(rows_NPD: Tensor, source: Layer, target: Layer, rules: Rules) -> Tensor:
    """Return tokens for tokens, since the grid of one of two sequences is not known; prefix tokens as far as they are.

    Raises:
        ValueError: If their counts differ: nothing is resized on a guess.
    """
    ours, theirs = source.num_prefix, target.num_prefix
    num_rows, num_wanted = rows_NPD.shape[1], theirs + prod(grid(target))
    if "map" in {source.kind, target.kind}:
        raise ValueError("a grid is not known")
    if num_rows - ours == num_wanted - theirs and (ours == theirs or (ours and theirs)):
        positions_NPD = rows_NPD[:, ours:]
        kept_NKD = rows_NPD[:, : min(ours, theirs) if rules.cls == "copy" else 0]
        if rules.cls == "drop":
            filled_NKD = rows_NPD.new_zeros(len(rows_NPD), theirs, rows_NPD.shape[2])
        else:
            filled_NKD = positions_NPD.mean(1, keepdim=True).expand(-1, theirs - kept_NKD.shape[1], -1)
        return torch.cat([kept_NKD, filled_NKD, positions_NPD], dim=1)
    if num_rows == num_wanted and not (ours and theirs) and (rules.cls == "copy" or not theirs):
        return rows_NPD
    raise ValueError(f"{num_rows} tokens are not {num_wanted}, and a grid is not known")


def grid(layer: Layer) -> tuple[int, int]:
    """Return the height and width of a layer's positions; a sequence without a grid is one row of them."""
    if layer.grid is not None:
        return layer.grid
    tokens = layer.shape[layer.axes.index("T") - 1]
    return 1, tokens - layer.num_prefix


def least_squares(a_RD: Tensor, b_RE: Tensor, *, rcond: float) -> Map:
    """Return W = pinv(cov A) cov(A, B), eigenvalues below `rcond` of the largest dropped, and b = mean B - mean A W."""
    a_mean_D, b_mean_E = a_RD.mean(0), b_RE.mean(0)
    centred_RD = a_RD - a_mean_D
    covariance_DD, cross_DE = centred_RD.mT @ centred_RD, centred_RD.mT @ (b_RE - b_mean_E)
    weight_DE = torch.linalg.pinv(covariance_DD, rtol=rcond, hermitian=True) @ cross_DE
    return weight_DE, b_mean_E - a_mean_D @ weight_DE


def compared(a: Tensor, b: Tensor, source: Layer, target: Layer) -> tuple[Tensor, Tensor]:
    """Return centred matrices with equal rows: positions of equal maps, tokens of equal sequences, else pooled."""
    rows_a, rows_b = rows(a, source), rows(b, target)
    maps = source.kind == target.kind == "map" and source.grid == target.grid
    sequences = source.kind == target.kind == "tokens" and rows_a.shape[1] == rows_b.shape[1]
    if maps or sequences:
        x, y = rows_a.flatten(0, 1), rows_b.flatten(0, 1)
    else:
        x, y = pooled(rows_a, source), pooled(rows_b, target)
    return x - x.mean(0), y - y.mean(0)


def cka(a: Tensor, b: Tensor, _source: Layer, _target: Layer) -> dict[str, float]:
    """Return <K, L> / (||K|| ||L||) of the centred Gram matrices of flattened activations."""
    grams = [(flat - flat.mean(0)) @ (flat - flat.mean(0)).mT for flat in (a.flatten(1), b.flatten(1))]
    norms = [gram.square().sum().sqrt().item() for gram in grams]
    return {"cka": ratio((grams[0] * grams[1]).sum().item(), norms[0] * norms[1])}


def pwcca(a: Tensor, b: Tensor, source: Layer, target: Layer) -> dict[str, float]:
    """Return 1 - sum_k alpha_k rho_k, alpha_k ~ sum_j |<h_k, x_j>| for the variates h_k of the source; and reversed."""
    x_RD, y_RE = compared(a, b, source, target)
    basis_x_RK, basis_y_RL = orthonormal(x_RD), orthonormal(y_RE)
    if not basis_x_RK.shape[1] or not basis_y_RL.shape[1]:
        return {"pwcca": nan, "pwcca_reverse": nan}
    left_KM, correlations_M, right_ML = svd(basis_x_RK.mT @ basis_y_RL, full_matrices=False)

    def distance(variates_RM: Tensor, features_RD: Tensor) -> float:
        weights_M = (variates_RM.mT @ features_RD).abs().sum(1)
        return 1.0 - float((weights_M * correlations_M.clamp(0, 1)).sum() / weights_M.sum())

    return {
        "pwcca": distance(basis_x_RK @ left_KM, x_RD),
        "pwcca_reverse": distance(basis_y_RL @ right_ML.mT, y_RE),
    }


def orthonormal(x_RD: Tensor) -> Tensor:
    """Return an orthonormal basis (R, K) of the columns, K their numerical rank."""
    basis_RD: Tensor
    basis_RD, scales_D, _ = svd(x_RD, full_matrices=False)
    keeps_D: Tensor = (scales_D.square() > RANK * scales_D[:1].square()) & (scales_D > 0)
    return basis_RD[:, keeps_D]


def procrustes(a: Tensor, b: Tensor, source: Layer, target: Layer) -> dict[str, float]:
    """Return 2 - 2 ||X'Y||_* of both sides centred and scaled to unit Frobenius norm."""
    x_RD, y_RE = compared(a, b, source, target)
    norms = x_RD.square().sum().sqrt() * y_RE.square().sum().sqrt()
    return {"procrustes": 2 - 2 * ratio(torch.linalg.svdvals(x_RD.mT @ y_RE).sum().item(), norms.item())}


INDICES: dict[str, Callable[[Tensor, Tensor, Layer, Layer], dict[str, float]]] = {
    "cka": cka,
    "pwcca": pwcca,
    "procrustes": procrustes,
}
