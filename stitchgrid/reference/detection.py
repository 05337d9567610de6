"""How well a score of single images separates T(A) from B."""

from math import nan

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from stitchgrid.matchers.metrics import OOD_METRICS


def mahalanobis(fit_NE: Tensor, b_NE: Tensor, t_NE: Tensor) -> dict[str, float]:
    """Return how well minus the distance to the Gaussian of `fit_NE` separates B, the positive class, from T(A).

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
    return separation("mahalanobis", *scores)


def separation(detector: str, b_N: Tensor, t_N: Tensor) -> dict[str, float]:
    """Return AUROC, FPR95 and AUPR of scores, rounded to 3 decimals, B being the positive class."""
    b, t = (scores_N.double().cpu().numpy().round(3) for scores_N in (b_N, t_N))
    names, both = OOD_METRICS[detector], np.concatenate([b, t])
    if not np.isfinite(both).all():
        return dict.fromkeys(names, nan)
    is_b = np.repeat([1, 0], [len(b), len(t)])
    threshold = np.sort(b)[::-1][int(np.ceil(len(b) * 95 / 100)) - 1]
    found = (roc_auc_score(is_b, both), np.mean(t >= threshold), average_precision_score(is_b, both))
    return {name: float(value) for name, value in zip(names, found, strict=True)}
