"""Rank correlations, such as of a matcher's scores with the accuracies of linear probes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau, norm, spearmanr

FEWEST = 3  # pairs: two always correlate perfectly
DIGITS = 9  # after the point; values that agree in these tie, since further differences are rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """Spearman's rho and Kendall's tau-b with two-sided p-values; None where they are undefined."""

    num_pairs: int
    rho: float | None
    rho_p: float | None
    tau: float | None
    tau_p: float | None


def rho_interval(rho: float, num_pairs: int) -> tuple[float, float] | None:
    """Return the 95 % interval of Spearman's rho over independent pairs (Bonett & Wright 2000); None for too few pairs.

    It assumes that the inverse hyperbolic tangent of rho is normal, with variance (1 + rho^2 / 2) / (n - 3).

    >>> low, high = rho_interval(0.5, 50)
    >>> round(low, 3), round(high, 3)
    (0.241, 0.692)
    """
    if num_pairs <= FEWEST or abs(rho) >= 1:
        return None
    half = float(norm.ppf(0.975)) * math.sqrt((1 + rho**2 / 2) / (num_pairs - FEWEST))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation:
    """Correlate two lists of equal length by rank (scipy); undefined for fewer than three pairs or a constant list.

    Values that agree to nine digits after the point tie. The p-values are those of independent pairs. Layers of one
    network are not independent, so the p-values are lower bounds.

    >>> rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]).rho
    0.8
    """
    pairs = [
        (round(a, DIGITS), round(b, DIGITS)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)
    ]
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    if len(pairs) < FEWEST or len(set(left)) == 1 or len(set(right)) == 1:
        return RankCorrelation(num_pairs=len(pairs), rho=None, rho_p=None, tau=None, tau_p=None)
    spearman, kendall = spearmanr(left, right), kendalltau(left, right)
    return RankCorrelation(
        num_pairs=len(pairs),
        rho=round(float(spearman.statistic), 12),
        rho_p=float(spearman.pvalue),
        tau=round(float(kendall.statistic), 12),
        tau_p=float(kendall.pvalue),
    )
