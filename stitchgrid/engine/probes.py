"""Linear probes: what a linear classifier reads from a network's layers, at full and at low rank.

Source: the sensitivity and specificity tests of Ding, Denain & Steinhardt (2021). Unlike them, who read a transformer's
class token, every representation is the mean over its positions, prefix tokens left out.

Shape suffixes: N images, D features of a layer.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stitchgrid.datasets.device_images import Pictures
from stitchgrid.engine.low_rank import AxesGatherer
from stitchgrid.engine.workspace import Batch, Workspace, batches
from stitchgrid.errors import type_and_message
from stitchgrid.matchers.alignment import pooled
from stitchgrid.matchers.low_rank import Reduction
from stitchgrid.records import ProbeSpec
from stitchgrid.statistics.base import LayerKey
from stitchgrid.statistics.planner import axes_of_layer

# Largest entry of the gradient at which lbfgs ends. At scikit-learn's 1e-4 rounding moved losses by 1e-3 and accuracies
# by 2 of 1,000 images (CIFAR-10, a network of eight layers, nine ranks), at 1e-6 by 2e-5 and none, in the same time.
TOLERANCE = 1e-6

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The result of one probe of one layer; None: undefined."""

    layer_index: int
    rank: int | None  # as asked for, None: the layer as it is
    accuracy: float | None = None
    loss: float | None = None  # cross-entropy in nats; None: a class of the evaluation images is in no fit image
    fit_accuracy: float | None = None
    num_iter: int | None = None
    converged: bool | None = None
    flags: tuple[str, ...] = ()
    error: str | None = None


def probe_layers(work: Workspace, network: int) -> list[Probe]:
    """Return the probes that the sweep asks for of every selected layer of a network, layer by layer.

    The labels are those of the images, whatever the network's own classes. Probes that fail have an `error`.
    """
    spec, layers = work.sweep.probes, work.sweep.networks[network].layers
    assert spec is not None, "the sweep asks for no probes"
    keys = [(network, position) for position in range(len(layers))]
    lowest = min((rank for rank in spec.ranks if rank is not None), default=None)
    reduced = [key for key in keys if lowest is not None and lowest < work.layer(key).width]
    num_fit, num_ranks = work.sweep.num_fit_closed, len(spec.ranks)
    wanted = [axes_of_layer(work.geometry, key, num_images=num_fit, num_ranks=num_ranks) for key in reduced]
    axes = AxesGatherer(work, wanted)
    fit = PooledRows(work, keys, work.sweep.num_probe_fit)
    seen = PooledRows(work, keys, work.sweep.num_eval)
    for batch in _pass(work, work.images.fit, keys, max(fit.num_images, axes.num_images)):
        axes.take(batch)
        fit.take(batch)
    for batch in _pass(work, work.images.eval, keys, seen.num_images):
        seen.take(batch)
    labels = fit.labels(work.images.fit), seen.labels(work.images.eval)
    return [
        probe for key in keys for probe in _probes_of(work, spec, key, axes, (fit.rows(key), seen.rows(key)), labels)
    ]


def _pass(work: Workspace, split: Pictures, keys: Sequence[LayerKey], stop: int) -> Any:
    return batches(work, split, {keys[0][0]: [layer for _, layer in keys]}, stop=stop)


class PooledRows:
    """One row per image of each layer: the mean over positions, prefix tokens left out."""

    def __init__(self, work: Workspace, keys: Sequence[LayerKey], num_images: int):
        self.work, self.num_images = work, num_images
        self._parts: dict[LayerKey, list[Tensor]] = {key: [] for key in keys}

    def take(self, batch: Batch) -> None:
        """Add the images of a batch."""
        count = batch.count_below(self.num_images)
        for key, parts in self._parts.items():
            if count:
                parts.append(pooled(batch.activations[key][:count], self.work.layer(key)))

    def rows(self, key: LayerKey) -> Tensor:
        """Return the rows of a layer in float64, (N, D), on the host."""
        return torch.cat(self._parts[key]).cpu()

    def labels(self, split: Pictures) -> Labels:
        """Return the classes of the images."""
        return np.asarray(split.labels[: self.num_images].cpu())


def _probes_of(
    work: Workspace,
    spec: ProbeSpec,
    key: LayerKey,
    axes: AxesGatherer,
    rows: tuple[Tensor, Tensor],
    labels: tuple[Labels, Labels],
) -> list[Probe]:
    """Return the probes of one layer; ranks that do not reduce the layer share one."""
    width = work.layer(key).width
    found: dict[int | None, Probe] = {}
    probes = []
    for rank in spec.ranks:
        kept = None if rank is None or rank >= width else rank
        if kept not in found:
            try:
                reduction = None if kept is None else axes.reduction(key, work.sweep.num_fit_closed, kept)
                found[kept] = _probe(spec, rows, labels, reduction)
            except ValueError as problem:  # one layer must not cost the others
                _log.info("layer %s cannot be probed", work.layer(key).name, exc_info=True)
                found[kept] = Probe(layer_index=0, rank=None, error=type_and_message(problem))
        full_rank = ("full_rank",) if rank is not None and kept is None else ()
        probes.append(replace(found[kept], layer_index=key[1], rank=rank, flags=(*found[kept].flags, *full_rank)))
    return probes


def _probe(
    spec: ProbeSpec, rows: tuple[Tensor, Tensor], labels: tuple[Labels, Labels], reduction: Reduction | None
) -> Probe:
    from sklearn.exceptions import ConvergenceWarning  # which takes long to import
    from sklearn.linear_model import LogisticRegression

    fit, seen = features(*rows, reduction)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=spec.C, max_iter=spec.max_iter, tol=TOLERANCE).fit(fit, labels[0])
    remarks = {"rank_deficient": reduction.is_short, "rank_tied": reduction.is_tied} if reduction else {}
    return Probe(
        layer_index=0,
        rank=None,
        accuracy=float(model.score(seen, labels[1])),
        loss=_cross_entropy(model.predict_log_proba(seen), model.classes_, labels[1]),
        fit_accuracy=float(model.score(fit, labels[0])),
        num_iter=int(model.n_iter_.max()),
        converged=not any(issubclass(one.category, ConvergenceWarning) for one in caught),
        flags=tuple(name for name, holds in remarks.items() if holds),
    )


def features(fit_ND: Tensor, seen_ND: Tensor, reduction: Reduction | None = None) -> tuple[Floats, Floats]:
    """Return the inputs of a probe from fit and evaluation rows: centred on the fit rows and divided by one number.

    The number is the root of the mean variance of the *unreduced* features on the fit rows, so that C means the same
    for all layers and all ranks. All features share it: one number per feature would enlarge features that hardly vary,
    and so undo the reduction. Rows of low rank are given by their coordinates in the kept axes, (N, r), since a
    rotation does not change the penalty.
    """
    variance = float(fit_ND.var(0, correction=0).mean())
    scale = math.sqrt(variance) if variance > 0 else 1.0
    if reduction is not None:
        at_hand = replace(reduction, mean_D=reduction.mean_D.cpu(), basis_Dr=reduction.basis_Dr.cpu())
        fit_ND, seen_ND = at_hand.coordinates(fit_ND), at_hand.coordinates(seen_ND)
    if not fit_ND.shape[1]:  # a layer that does not vary has no axes
        fit_ND, seen_ND = fit_ND.new_zeros(len(fit_ND), 1), seen_ND.new_zeros(len(seen_ND), 1)
    mean_D = fit_ND.mean(0)
    return np.asarray((fit_ND - mean_D) / scale), np.asarray((seen_ND - mean_D) / scale)


def _cross_entropy(scores_NK: Floats, classes_K: Labels, labels_N: Labels) -> float | None:
    """Return the mean negative log-probability of the labels; None if a label is not among the classes."""
    if not np.isin(labels_N, classes_K).all():
        return None
    loss = -float(scores_NK[np.arange(len(labels_N)), np.searchsorted(classes_K, labels_N)].mean())
    return loss if math.isfinite(loss) else None


def as_artefact(network: int, work: Workspace) -> dict[str, Any]:
    """Return all probes of a network with the number of images, as they are stored."""
    sweep = work.sweep
    return {
        "num_fit": sweep.num_probe_fit,
        "num_eval": sweep.num_eval,
        "probes": [asdict(probe) for probe in probe_layers(work, network)],
    }
