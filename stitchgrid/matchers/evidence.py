"""Evidence that is stored beside a value to tell how far it can be trusted, and the names of its rows.

*Replicates* are the values without each of G groups of evaluation images (the delete-a-group jackknife). They give the
interval of the value, and that of any difference of two values on the same images. A *null* is the values for K draws
in which the source's images are shuffled against the target's. Both have rows of their own, named after the metric, so
that a job can ask for them later than for the value, and for other numbers of groups or draws.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

Kind = Literal["groups", "shuffles"]
IS_EVIDENCE = "@(groups|shuffles)=[0-9]+$"  # of a row's metric; names of layers, which metrics may hold, may have an @
FEWEST_PER_GROUP = 2  # images
MOST_GROUPS = 1_000
LEVEL = 0.95  # of all intervals


def evidence_name(metric: str, kind: Kind, num: int) -> str:
    """Return the name under which the evidence for a metric is stored.

    >>> evidence_name("residual", "groups", 20)
    'residual@groups=20'
    """
    return f"{metric}@{kind}={num}"


def metric_of(name: str) -> str:
    """Return the metric that a row's name stands for, or is evidence for.

    >>> metric_of("residual@groups=20"), metric_of("residual")
    ('residual', 'residual')
    """
    return re.sub(IS_EVIDENCE, "", name)


def jackknife_interval(value: float, replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a value from its replicates without each group; None if it is undefined.

    SE^2 = (G - 1) / G * sum (theta_(g) - mean)^2, and the value +- t(0.975, G - 1) SE.

    >>> jackknife_interval(2.0, [1.5, 2.5])[1] > 8
    True
    """
    num = len(replicates)
    if num < 2 or not all(map(math.isfinite, (value, *replicates))):
        return None
    mean = math.fsum(replicates) / num
    error = math.sqrt((num - 1) / num * math.fsum((one - mean) ** 2 for one in replicates))
    width = t_quantile(num - 1) * error
    return value - width, value + width


@lru_cache(maxsize=256)
def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t with `degrees` degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, degrees))


def t_quantiles(most: int) -> list[float]:
    """Return the 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.

    >>> round(t_quantiles(20)[18], 3)
    2.093
    """
    import numpy as np
    from scipy.special import stdtrit

    return [float(value) for value in stdtrit(np.arange(1, most + 1), 0.5 + LEVEL / 2)]


def wilson_interval(share: float, num: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share of `num` independent images; None if the share is undefined.

    >>> low, high = wilson_interval(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if not num or not math.isfinite(share):
        return None
    square = 1.959963984540054**2
    middle = (share + square / (2 * num)) / (1 + square / num)
    width = math.sqrt(square * (share * (1 - share) / num + square / (4 * num**2))) / (1 + square / num)
    return max(0.0, middle - width), min(1.0, middle + width)
