"""What to know about each kind before you trust its number: its bias with few rows, and when not to use it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """The bias of a kind on N rows of D and E features, and when not to use the kind."""

    bias: str
    not_when: str


_CORRELATIONS = (
    "correlations are too high on the rows on which they are fitted: all are 1 where N - 1 <= max(D, E); take 10 rows "
    "or more for each feature"
)
_NEIGHBOURS = "for unrelated rows it is about k / (N - 1) or less, not 0: compare it with the value for shuffled rows"
_FITTED = "the residual on the fit rows is too low: 0 where N <= D; use `residual_on` with other rows"

CAUTIONS: dict[str, Caution] = {
    "cka": Caution(
        bias="with N below D it is well above 0 for unrelated rows; cka_unbiased is not",
        not_when="a few directions or outliers carry nearly all of the variance: they decide the value",
    ),
    "cka_unbiased": Caution(
        bias="the HSIC estimates have none; their ratio may have a little, and may be below 0 for unrelated rows",
        not_when="a few directions carry nearly all of the variance, or rows are few: its values then scatter widely",
    ),
    "cka_rbf": Caution(
        bias="as cka: well above 0 for unrelated rows where N is small, more so for a narrow kernel",
        not_when="you have no reason for one bandwidth: values of different bandwidths cannot be compared",
    ),
    "pwcca": Caution(
        bias=f"{_CORRELATIONS}; the distance is then too low",
        not_when="N is not well above D + E, or (x, y) and (y, x) must give the same value",
    ),
    "svcca": Caution(
        bias=_CORRELATIONS,
        not_when="you have no reason for the share of variance that is kept: the value depends on it",
    ),
    "mean_cca": Caution(
        bias=_CORRELATIONS,
        not_when="directions of little variance are noise: they count as much as all other directions",
    ),
    "procrustes": Caution(
        bias="with N below the number of features the distance is too low: a rotation fits the rows",
        not_when="layers differ in more than a rotation that should not count, such as the scale of single units",
    ),
    "linear_regression": Caution(
        bias="R^2 on the fit rows is too high: about D / (N - 1) for unrelated rows, 1 where N - 1 <= D",
        not_when="N is not well above D",
    ),
    "soft_matching": Caution(
        bias="the best of many assignments is above 0 for unrelated rows, and higher the fewer rows there are",
        not_when="features are not units (a rotation changes the value), or there are more than 1,024",
    ),
    "rsa": Caution(
        bias="about 0 for unrelated rows; pairs of rows are not independent, so the usual p values do not hold",
        not_when="features have no common scale or no common zero: a shift of single features changes the value",
    ),
    "mutual_knn": Caution(
        bias=_NEIGHBOURS,
        not_when="more than the nearest neighbours should count: it ignores all other distances",
    ),
    "jaccard_knn": Caution(
        bias=_NEIGHBOURS,
        not_when="more than the nearest neighbours should count: it ignores all other distances",
    ),
    "direct": Caution(
        bias=_FITTED,
        not_when="N is not above D: the map is one of many, and ridge is the better choice",
    ),
    "orthogonal": Caution(
        bias="the residual on the fit rows is too low where N is below the number of features",
        not_when="the scales of the two layers differ: the map neither shrinks nor stretches",
    ),
    "ridge": Caution(
        bias="the map shrinks towards the mean of y; strength = 'cv' chooses how much, on rows left out of the fit",
        not_when="you want the residual of the best affine map: use direct",
    ),
    "reduced_rank": Caution(
        bias=_FITTED,
        not_when="you have no reason for one rank: the residual falls as the rank grows",
    ),
    "permutation": Caution(
        bias="the best of many assignments: correlations of matched units are above 0 for unrelated rows",
        not_when="features are not units, or their scales differ: the map neither scales nor mixes units",
    ),
}
