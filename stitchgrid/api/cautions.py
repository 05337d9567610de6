"""What to know of each kind before its number is believed: how it is off with few rows, and when not to use it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """What to know of a kind on N rows of D and E features."""

    bias: str
    not_when: str


_CORRELATIONS = (
    "correlations on the rows that they are found on are too high: all are 1 where N - 1 <= max(D, E); take 10 rows or "
    "more for each feature"
)
_NEIGHBOURS = "of unrelated rows it is about k / (N - 1) or less, not 0: compare with what shuffled rows give"
_FITTED = "the residual on the fit rows is too low: 0 where N <= D; look at `residual_on` other rows"

CAUTIONS: dict[str, Caution] = {
    "cka": Caution(
        bias="with N below D it is well above 0 for unrelated rows; cka_unbiased is not",
        not_when="a few directions carry nearly all of the variance (it sees little else), or outliers do",
    ),
    "cka_unbiased": Caution(
        bias="none of the HSIC estimates; their ratio may be a little off, and below 0 for unrelated rows",
        not_when="a few directions carry nearly all of the variance; with few rows it spreads widely",
    ),
    "cka_rbf": Caution(
        bias="as cka: well above 0 for unrelated rows where N is small, more so for a narrow kernel",
        not_when="no bandwidth can be argued for: values of different ones cannot be compared",
    ),
    "pwcca": Caution(
        bias=f"{_CORRELATIONS}; the distance is too low then",
        not_when="N is not well above D + E, or both orders are to give one value",
    ),
    "svcca": Caution(
        bias=_CORRELATIONS,
        not_when="the share of variance that is kept is arbitrary: the value moves with it",
    ),
    "mean_cca": Caution(
        bias=_CORRELATIONS,
        not_when="directions of little variance are noise: they count as much as all others",
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
        bias="the best of many assignments is above 0 for unrelated rows, more so the fewer rows there are",
        not_when="features are not units (a rotation changes the value), or there are more than 1,024",
    ),
    "rsa": Caution(
        bias="about 0 for unrelated rows; pairs of rows are not independent, so that usual p values do not hold",
        not_when="features have no common scale or zero: it changes with a shift of single features",
    ),
    "mutual_knn": Caution(
        bias=_NEIGHBOURS,
        not_when="only near neighbours should not decide: it is blind to all other distances",
    ),
    "jaccard_knn": Caution(
        bias=_NEIGHBOURS,
        not_when="only near neighbours should not decide: it is blind to all other distances",
    ),
    "direct": Caution(
        bias=_FITTED,
        not_when="N is not above D: the map is one of many, and ridge is the better choice",
    ),
    "orthogonal": Caution(
        bias="the residual on the fit rows is too low where N is below the number of features",
        not_when="the scales of the two layers differ: it neither shrinks nor stretches",
    ),
    "ridge": Caution(
        bias="the map is drawn towards the mean of y; strength = 'cv' chooses by how much on rows left out",
        not_when="the residual of the best affine map itself is wanted: that is direct's",
    ),
    "reduced_rank": Caution(
        bias=_FITTED,
        not_when="no rank can be argued for: the residual falls as it grows",
    ),
    "permutation": Caution(
        bias="the best of many assignments: correlations of matched units are above 0 for unrelated rows",
        not_when="features are not units, or their scales differ: it neither shrinks nor mixes",
    ),
}
