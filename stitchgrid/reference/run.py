"""Every value by its textbook definition: whole networks with hooks, one layer pair at a time, float64 matrices.

This is the specification in code. With the engine it shares only the drawing of initial maps and of the order of
images, the preprocessing and, where no module returns a layer's activation, the halves of the cut network. Tests
compare the two, and `stitchgrid bench` measures how much time the engine saves by sharing work.

Shape suffixes: N images, P rows per image, R rows of all images, D features of the source, E of the target, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from math import nan
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stitchgrid.datasets.device_images import PicturePair, Pictures
from stitchgrid.matchers.drawing import image_order, initial_map, initial_tensors, seeded
from stitchgrid.matchers.metrics import RESIDUAL_AT, residual_at
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import MATCHERS, asks_ood, images_used, implementation, metrics_of
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.precision import running_in
from stitchgrid.preprocess import apply_preprocess, augment_crop4_flip
from stitchgrid.records import Cell, Layer, MatcherSpec, Sweep
from stitchgrid.reference.adapters import TextbookMap
from stitchgrid.reference.arithmetic import RANK, mean, ratio, total_variance
from stitchgrid.reference.detection import mahalanobis, separation
from stitchgrid.reference.outputs import mean_loss, outputs_alike, said
from stitchgrid.reference.rows import compared, installed, lay, pooled, rows
from stitchgrid.reference.stitchers.direct import direct
from stitchgrid.reference.stitchers.following import Follows

Key = tuple[int, int]  # network and layer, by position
Pixels = Tensor | list[Tensor]
Map = Callable[[Tensor], Tensor]  # of rows (N, P, D) to (N, P, E)


def reads(oracle: ModuleType) -> str:
    """Return in which rows an index's oracle is given two layers: `flattened` or `compared`.

    Raises:
        AttributeError: If it does not say so; the error has what to write.
    """
    if getattr(oracle, "READS", None) not in ("flattened", "compared"):
        raise AttributeError(
            f'{oracle.__name__} does not say in which rows it is given two layers; write READS = "flattened" (a row '
            'is an image) or READS = "compared" (as a `MomentIndex` is given them).'
        )
    return str(oracle.READS)


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
        self._own: dict[str, dict[str, float]] = {}  # metrics that only one kind has, by cell
        self._passes: dict[tuple[Key, int, int], tuple[Tensor, Tensor]] = {}  # of the current layer pair

    def values(self, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
        """Return cell id -> metric -> value of cells of one layer pair; undefined ones are NaN.

        Cells of the pair share its two layers' activations, as they would in a careful script.
        """
        self._passes.clear()
        return {cell.cell_id: self._values(cell) for cell in cells}

    def _values(self, cell: Cell) -> dict[str, float]:
        spec, (_, num_eval) = self.sweep.matchers[cell.matcher], self._images_used(cell)
        if implementation(spec).why_not(self._layer(cell.source_key), self._layer(cell.target_key)):
            return dict.fromkeys(metrics_of(self.sweep, cell), nan)
        if MATCHERS[spec.kind].family == "stitcher":
            found = self.measured(cell, self.fitted(cell)) | self._own.get(cell.cell_id, {})
        else:
            a, b = (self._pass(key, self.images.eval, num_eval)[0] for key in (cell.source_key, cell.target_key))
            a = self._reduced(cell, a)
            oracle = import_module(f"stitchgrid.reference.indices.{spec.kind}")
            if reads(oracle) == "flattened":
                x, y = a.flatten(1), b.flatten(1)
            else:
                x, y = compared(a, b, self._layer(cell.source_key), self._layer(cell.target_key))
            found = getattr(oracle, spec.kind)(x, y, **self._params(cell))
        return {metric: found[metric] for metric in metrics_of(self.sweep, cell)}

    def _params(self, cell: Cell) -> dict[str, Any]:
        """Return the parameters of a cell's kind, without those that say how rows are resampled."""
        spec = self.sweep.matchers[cell.matcher]
        params = MATCHERS[spec.kind].params.of(spec)
        return {name: value for name, value in params if name not in Rules.model_fields}

    def _images_used(self, cell: Cell) -> tuple[int, int]:
        """Return how many fit and evaluation images the cell's matcher reads."""
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
        """Return a layer's activation and the network's logits; `instead` replaces the activation, if it is given."""
        node, network, module = self._layer(key).node, self.network(key[0]), self._module(key)
        seen: list[Tensor] = []

        def hook(_module: object, _inputs: object, output: Tensor) -> Tensor | None:
            seen.append(output.clone())  # later operations may overwrite it
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
        """Return the module, called once, whose output is a layer's activation; None if there is none."""
        layer, network = self._layer(key), self.network(key[0])
        cut, outputs = network.cut(layer.node), [c.output for c in network.operations.calls if c.path == layer.name]
        return network.module.get_submodule(layer.name) if outputs == [cut.position] and cut.is_plain else None

    def _reduced(self, cell: Cell, a: Tensor) -> Tensor:
        """Return the source's activations, reduced to a low rank if the cell asks for it.

        Rows are projected on the top principal axes of the source's own rows on the cell's fit images, about their
        mean. Axes in which those rows do not vary are left out.
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
        """Return the source's activations, reduced if the cell asks for it, on the target's positions: (N, P, D)."""
        a = self._reduced(cell, a)
        rules = Rules.of(self.sweep.matchers[cell.matcher])
        return lay(a, self._layer(cell.source_key), self._layer(cell.target_key), rules)

    def fitted(self, cell: Cell) -> Map:
        """Return the map of a stitcher's cell, by least squares or trained."""
        spec, (num_fit, _) = self.sweep.matchers[cell.matcher], self._images_used(cell)
        if MATCHERS[spec.kind].is_trained:
            return self._train(cell, num_fit=num_fit)
        a, b = (self._pass(key, self.images.fit, num_fit)[0] for key in (cell.source_key, cell.target_key))
        a_RD, b_RE = self._lay(cell, a).flatten(0, 1), rows(b, self._layer(cell.target_key)).flatten(0, 1)
        oracle = import_module(f"stitchgrid.reference.stitchers.{spec.kind}")
        params = self._params(cell)
        if hasattr(oracle, "strength_of"):  # a kind with cross-validation
            if params["strength"] == "cv":
                params["strength"] = oracle.strength_of(a_RD.cpu().numpy(), b_RE.cpu().numpy(), num_fit)
            self._own[cell.cell_id] = {"strength": params["strength"]}
        weight_DE, bias_E = getattr(oracle, spec.kind)(a_RD, b_RE, **params)
        return lambda rows_NPD: rows_NPD @ weight_DE + bias_E

    def measured(self, cell: Cell, stitch: Map) -> dict[str, float]:
        """Return the metrics that a stitcher's cell asks for, and maybe more; h is run only if one needs it."""
        spec, target = self.sweep.matchers[cell.matcher], self._layer(cell.target_key)
        num_fit, num_eval = self._images_used(cell)
        a, b = (self._pass(key, self.images.eval, num_eval)[0] for key in (cell.source_key, cell.target_key))
        t_NPE, b_NPE = stitch(self._lay(cell, a)), rows(b, target)
        error = (t_NPE - b_NPE).square().sum().item()
        found = {
            "residual": ratio(error, b_NPE.square().sum().item()),
            "r2": 1 - ratio(error, (b_NPE - b_NPE.mean((0, 1))).square().sum().item()),
            "variance_ratio": ratio(total_variance(pooled(t_NPE, target)), total_variance(pooled(b_NPE, target))),
        }
        if RESIDUAL_AT in spec.metrics:
            found |= self._profile(cell, t_NPE)
        if "negative_mass" in spec.metrics:
            lowest = min(b.min().item(), self._pass(cell.target_key, self.images.fit, num_fit)[0].min().item())
            negative = ratio(t_NPE.clamp(max=0).abs().sum().item(), t_NPE.abs().sum().item())
            found["negative_mass"] = negative if lowest >= 0 else nan
        if asks_ood(spec, "mahalanobis"):
            fit_b = self._pass(cell.target_key, self.images.fit, num_fit)[0]
            found |= mahalanobis(pooled(rows(fit_b, target), target), pooled(b_NPE, target), pooled(t_NPE, target))
        if asks_ood(spec, "energy"):
            found |= self._energies(cell, b, t_NPE)
        if found.keys() | self._own.get(cell.cell_id, {}).keys() >= set(metrics_of(self.sweep, cell)):
            return found
        return found | self._answers(cell, t_NPE)

    @torch.no_grad()
    def _profile(self, cell: Cell, t_NPE: Tensor) -> dict[str, float]:
        """Return ||h_l - g_l||^2 / ||g_l||^2 at each later layer of the target."""
        layers, network = self.sweep.networks[cell.target].layers, self.network(cell.target)
        t = installed(t_NPE.float(), layers[cell.target_layer])
        at, found = layers[cell.target_layer].node, {}
        for position in range(cell.target_layer + 1, len(layers)):
            g = self._pass((cell.target, position), self.images.eval, len(t))[0]
            with running_in(self.sweep.precision, self.device):
                [t] = network.behind(at, [layers[position].node])(t)
            at, error = layers[position].node, (t.double() - g).square().sum().item()
            found[residual_at(layers[position].name)] = ratio(error, g.square().sum().item())
        return found

    @torch.no_grad()
    def _energies(self, cell: Cell, b: Tensor, t_NPE: Tensor) -> dict[str, float]:
        """Return how well minus the energy by the target layer's detector separates B from T(A)."""
        assert self.detector is not None
        detector, t = self.detector(cell.target_key), installed(t_NPE, self._layer(cell.target_key))
        size = self.sweep.batch_size
        scores = [torch.cat([detector(x[k : k + size].float()) for k in range(0, len(x), size)]) for x in (b, t)]
        return separation("energy", *(logits_NK.exp().sum(1).log() for logits_NK in scores))

    def _train(self, cell: Cell, *, num_fit: int) -> Map:
        """Return one map, trained alone by its kind's loss, through the whole stitched network."""
        params, target = self._values_of(cell), self._layer(cell.target_key)
        shape = self._layer(cell.source_key).width, target.width
        if params["adapter"] == "affine":
            stitch = TextbookMap("affine", dict(zip(("weight_1", "bias_1"), self._start(cell, num_fit), strict=True)))
        else:
            generator = seeded("initial map", self.sweep.full_rank_id(cell))
            drawn = initial_tensors(params["adapter"], *shape, generator=generator)
            stitch = TextbookMap(params["adapter"], drawn, grid=target.grid)
        stitch.to(self.device)
        make: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": partial(torch.optim.SGD, momentum=0.9),
        }
        optimizer = make[params["optimizer"]](stitch.tensors, lr=params["lr"], weight_decay=params["weight_decay"])
        kind = self._spec(cell).kind
        oracle = import_module(f"stitchgrid.reference.stitchers.{kind}")
        follows: Follows = getattr(oracle, kind)(self.network(cell.target), cell, self.sweep, params)
        for some in torch.split(torch.arange(num_fit), self.sweep.batch_size):
            follows.measure(self._inputs(cell.target, self.images.fit.batch(some)))
        for epoch in range(params["epochs"]):
            order, generator = image_order(num_fit, seed=self._spec(cell).seed or 0, epoch=epoch)
            for indices in torch.split(order, params["batch_size"]):
                pixels, labels_N = self.images.fit.batch(indices), self.images.fit.labels[indices].to(self.device)
                if params["augment"] == "crop4_flip":
                    pixels = augment_crop4_flip(pixels, generator)
                with torch.no_grad():
                    a_NPD = self._lay(cell, self._run(cell.source_key, pixels)[0].float())
                t = installed(stitch.trained(a_NPD), target)
                loss = follows.losses(self._inputs(cell.target, pixels), t, labels_N).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        self.end_losses[cell.cell_id] = self._end_loss(cell, stitch, num_fit, follows)
        return stitch.measured

    def _start(self, cell: Cell, num_fit: int) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of the initial map."""
        source, target = self._layer(cell.source_key), self._layer(cell.target_key)
        init = self._values_of(cell)["init"]
        if init == "identity":
            return torch.eye(source.width), torch.zeros(target.width)
        if init == "direct":
            a, b = (self._pass(key, self.images.fit, num_fit)[0] for key in (cell.source_key, cell.target_key))
            return direct(self._lay(cell, a).flatten(0, 1), rows(b, target).flatten(0, 1), rcond=RANK)
        drawn = initial_map(source.width, target.width, generator=seeded("initial map", self.sweep.full_rank_id(cell)))
        return drawn.weight_DE, drawn.bias_E

    def _spec(self, cell: Cell) -> MatcherSpec:
        return self.sweep.matchers[cell.matcher]

    def _values_of(self, cell: Cell) -> dict[str, Any]:
        """Return all parameters of a cell's kind."""
        return dict(MATCHERS[self._spec(cell).kind].params.of(self._spec(cell)))

    def _inputs(self, network: int, pixels: Pixels) -> Tensor:
        """Return images, preprocessed for a network, on the device."""
        return apply_preprocess(pixels, self.sweep.networks[network].preprocess).to(self.device)

    @torch.no_grad()
    def _end_loss(self, cell: Cell, stitch: TextbookMap, num_fit: int, follows: Follows) -> tuple[float, float]:
        """Return the loss of a trained map on its first fit images, not augmented, and that of a constant prediction.

        A cell has diverged if the first is not finite, or not below the second by more than a millionth of it.
        """
        num = min(num_fit, max(256, self._values_of(cell)["epochs"] * num_fit // 16))
        labels_N, total, wanted = self.images.fit.labels[:num], 0.0, []
        for some in torch.split(torch.arange(num), self.sweep.batch_size):
            pixels = self.images.fit.batch(some)
            a_NPD = self._lay(cell, self._run(cell.source_key, pixels)[0].float())
            t = installed(stitch.measured(a_NPD), self._layer(cell.target_key))
            x = self._inputs(cell.target, pixels)
            total += follows.losses(x, t, labels_N[some].to(self.device)).sum().item()
            wanted.append(follows.wanted(x, labels_N[some].to(self.device)))
        return total / num, follows.constant_loss([torch.cat(parts) for parts in zip(*wanted, strict=True)])

    @torch.no_grad()
    def _answers(self, cell: Cell, t_NPE: Tensor) -> dict[str, float]:
        """Return the metrics from the answers of h = g_{>j}(T(f_{<=i}(x))) and of g on the evaluation images."""
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
