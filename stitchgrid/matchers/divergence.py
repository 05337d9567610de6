"""Whether a training came to nothing: its loss at the end against that of the best constant prediction."""

MIN_LOSS_IMAGES, LOSS_SHARE = 256, 16
LOSS_ROUNDING = 1e-6


def loss_images(num_fit: int, *, num_seen: int) -> int:
    """Return on how many fit images, the first of them, the loss at the end of a training is found.

    All of them where that takes little beside the training, which looks at `num_seen` images in all its epochs:
    otherwise a sixteenth of these, and 256 at least.

    >>> loss_images(200, num_seen=200), loss_images(50_000, num_seen=30 * 50_000), loss_images(3_000, num_seen=15_000)
    (200, 50000, 937)
    """
    return min(num_fit, max(MIN_LOSS_IMAGES, num_seen // LOSS_SHARE))


def has_diverged(loss: float, constant: float) -> bool:
    """Return whether a training came to nothing: its loss at the end is not finite, or no better than a constant's.

    `loss` is the mean loss of the stitched network with the map as the last step left it, `constant` that of the best
    constant prediction, both on the same fit images, not augmented. One that is lower by rounding alone is no better.
    """
    return not loss < constant * (1 - LOSS_ROUNDING)
