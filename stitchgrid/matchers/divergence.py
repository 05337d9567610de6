"""Whether a training diverged: compares its final loss with that of the best constant prediction."""

MIN_LOSS_IMAGES, LOSS_SHARE = 256, 16
LOSS_ROUNDING = 1e-6


def loss_images(num_fit: int, *, num_seen: int) -> int:
    """Return the number of fit images, from the first on, on which the final loss of a training is computed.

    It is a sixteenth of the `num_seen` images that the training reads in all its epochs, and 256 at least; or all fit
    images if they are fewer.

    >>> loss_images(200, num_seen=200), loss_images(50_000, num_seen=30 * 50_000), loss_images(3_000, num_seen=15_000)
    (200, 50000, 937)
    """
    return min(num_fit, max(MIN_LOSS_IMAGES, num_seen // LOSS_SHARE))


def has_diverged(loss: float, constant: float) -> bool:
    """Return whether a training diverged: its final loss is not finite, or no lower than that of a constant.

    `loss` is the mean loss of the stitched network with the map after the last step; `constant` is that of the best
    constant prediction. Both are on the same fit images, not augmented. A difference within rounding does not count.
    """
    return not loss < constant * (1 - LOSS_ROUNDING)
