"""Ridge regression, Hoerl & Kennard 1970."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FOLDS = 5
Floats = NDArray[np.float64]


def ridge(a_RD: Tensor, b_RE: Tensor, *, strength: float | str, num_images: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the penalised map, as least squares with rows of zeros for targets; see `strength_of` for "cv"."""
    a, b = a_RD.cpu().numpy(), b_RE.cpu().numpy()
    found = strength_of(a, b, num_images) if strength == "cv" else float(strength)
    weight, bias = fitted(a, b, found)
    return torch.from_numpy(weight).to(a_RD), torch.from_numpy(bias).to(a_RD)


def strength_of(a: Floats, b: Floats, num_images: int | None = None) -> float:
    """Return the strength with the lowest error on folds left out; of equal errors (to 1e-12) the strongest.

    Image k lies in fold k modulo 5. The rows of an image are consecutive; `num_images` is the number of images, None if
    each image has one row.
    """
    images = np.arange(len(a)) // (len(a) // (num_images or len(a)))
    fold = images % min(FOLDS, images.max() + 1)
    errors = {}
    for strength in 10.0 ** np.arange(-8, 3):
        errors[strength] = 0.0
        for k in np.unique(fold):
            weight, bias = fitted(a[fold != k], b[fold != k], strength)
            errors[strength] += ((a[fold == k] @ weight + bias - b[fold == k]) ** 2).sum()
    lowest = (1 + 1e-12) * min(errors.values())
    return float(max(strength for strength, error in errors.items() if error <= lowest))


def fitted(a: Floats, b: Floats, strength: float) -> tuple[Floats, Floats]:
    """Return W and b of least squares on centred rows, with sqrt(penalty) times the unit matrix below them."""
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    penalty = strength * (centred_a**2).sum() / a.shape[1]
    rows = np.vstack([centred_a, np.sqrt(penalty) * np.eye(a.shape[1])])
    targets = np.vstack([centred_b, np.zeros((a.shape[1], b.shape[1]))])
    weight = np.linalg.pinv(rows, rcond=1e-6 if strength == 0 else 1e-15) @ targets
    return weight, b.mean(0) - a.mean(0) @ weight
