"""Whether a stitch leaves the target's distribution: how well a score of single images separates T(A) from B.

The question is that of Balogh & Jelasity (2025): a trained stitch may give the target inputs unlike any that it has
seen. Images that are more like B get higher scores. T(A) and B come from the same evaluation images.

Shape suffixes: S stitched networks, N images, E features of the target.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.moments import Side

SHRINKAGE = 0.01  # share of the covariance that is replaced by a sphere of equal trace
DECIMALS = 3  # of a score (distance in standard deviations, or energy): T(A) that equals B up to rounding ties with it
SOUND_AUROC = 0.9  # from which on a detector passes its sanity check


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian:
    """A normal distribution of pooled rows."""

    mean_E: Tensor
    whitening_EE: Tensor  # W with WW' the inverse of the covariance

    def score(self, rows: Tensor) -> Tensor:
        """Return minus the Mahalanobis distance of float64 rows (..., E), NaN where the covariance is zero.

        Distances are rounded to `DECIMALS`, so that those which differ only by rounding are equal.
        """
        return rounded(-torch.linalg.vector_norm((rows - self.mean_E) @ self.whitening_EE, dim=-1))

    def score_of(self, stitch: AffineMap) -> Callable[[Tensor], Tensor]:
        """Return a function from a source's float64 rows (..., D) to the `score` of the rows that a map makes of them.

        The map and the whitening are one product.
        """
        weight_DE = stitch.weight_DE.double() @ self.whitening_EE
        bias_E = (stitch.bias_E.double() - self.mean_E) @ self.whitening_EE
        return lambda rows: rounded(-torch.linalg.vector_norm(rows @ weight_DE + bias_E, dim=-1))


def rounded(scores: Tensor) -> Tensor:
    """Return scores as they are compared: float32, rounded to `DECIMALS`."""
    found: Tensor = scores.round(decimals=DECIMALS)
    largest = torch.finfo(torch.float32).max  # how far beyond it a score lies does not matter
    return torch.where(found.isfinite(), found.clamp(-largest, largest), found).float()


def fit_gaussian(moments: Side, *, num_rows: int) -> Gaussian:
    """Return the Gaussian of some rows: their mean, and (1 - a) S + a tr(S)/E I with S = scatter / rows, a = 0.01.

    The shrinkage bounds the variance from below in directions in which the rows hardly vary, or that they do not span.
    """
    covariance_EE = (1 - SHRINKAGE) * moments.scatter_DD / num_rows
    covariance_EE.diagonal().add_(SHRINKAGE * moments.scatter_DD.trace() / (num_rows * len(covariance_EE)))
    lower_EE, failed = torch.linalg.cholesky_ex(covariance_EE)
    unit_EE = torch.eye(len(lower_EE), dtype=lower_EE.dtype, device=lower_EE.device)
    inverse_EE = torch.linalg.solve_triangular(torch.where(failed == 0, lower_EE, unit_EE), unit_EE, upper=False)
    return Gaussian(mean_E=moments.mean_D, whitening_EE=torch.where(failed == 0, inverse_EE.mT, torch.nan))


def is_underdetermined(num_rows: int, width: int) -> bool:
    """Return whether `num_rows` rows are too few for a Gaussian of `width` features."""
    return num_rows < 2 * width + 1


def detection(b_N: Tensor, t_SN: Tensor) -> dict[str, Tensor]:
    """Return AUROC, FPR95 and AUPR of scores that separate B, the positive class, from each T(A): (S,) each.

    Equal scores count half in the AUROC. FPR95 is the share of T(A) at or above the largest threshold that at least
    95 % of B reach. AUPR is the average precision. NaN if a score is not finite. No value leaves the device.
    """
    num = len(b_N)
    ascending_N, sorted_SN = b_N.sort().values.contiguous(), t_SN.contiguous().sort(dim=1).values.contiguous()
    is_sound_S = torch.isfinite(b_N).all() & torch.isfinite(t_SN).all(1)
    below_SN, upto_SN = (torch.searchsorted(ascending_N, sorted_SN, right=right) for right in (False, True))
    auroc_S = (2 * num - below_SN - upto_SN).double().mean(1) / (2 * num)
    threshold = ascending_N[num - -(-19 * num // 20)]
    fpr95_S = (t_SN >= threshold).double().mean(1)
    as_high_N = num - torch.searchsorted(ascending_N, ascending_N)
    as_high_SN = t_SN.shape[1] - torch.searchsorted(sorted_SN, ascending_N.expand(len(t_SN), -1).contiguous())
    aupr_S = (as_high_N / (as_high_N + as_high_SN).double()).mean(1)
    found = {"auroc": auroc_S, "fpr95": fpr95_S, "aupr": aupr_S}
    return {name: torch.where(is_sound_S, value_S, torch.nan) for name, value_S in found.items()}
