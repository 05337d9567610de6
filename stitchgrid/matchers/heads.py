"""Reads the scores of networks: answers, losses and agreement for each kind of head.

Shape suffixes: N images, K scores of an image; leading dimensions (...), such as stitched networks, are kept.
"""

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.errors import InputError
from stitchgrid.records import HEADS, Head

ROW_SUM_TOLERANCE = 1e-3  # of rows of probabilities, which low precision rounds


def detect_head(scores_NK: Tensor, *, ends_in: str | None, named: str | None) -> Head:
    """Return the head that the job names, or the one that the scores of some images look like.

    Rows without a negative number that sum to 1 are probabilities. So are scores of a `binary` or `multilabel` head
    that lie in [0, 1], if the network ends in a sigmoid or softmax.

    Args:
        scores_NK: Scores of some images.
        ends_in: The last operation of the network, "sigmoid" or "softmax", where that is known.
        named: The job's word for the head, one of HEADS, or None.

    Raises:
        InputError: If there is one score per image and no word for the head, or the scores contradict the word.
    """
    low, high = float(scores_NK.min()), float(scores_NK.max())
    is_share = low >= 0 and high <= 1
    sums_N = scores_NK.double().sum(1)
    sums_to_one = is_share and bool(((sums_N - 1).abs() <= ROW_SUM_TOLERANCE).all())
    num_scores = scores_NK.shape[1]
    if num_scores == 1 and named is None:
        raise InputError(
            'it returns one score an image, which can mean many things; name its head: head = "binary" (its sign '
            'decides between two classes), "regression" or "embedding" (no classes) in its [[models]] table.'
        )
    if named is None:
        return Head(kind="probabilities", is_probability=True) if sums_to_one else Head()
    _check_named(named, scores_NK, sums_to_one=sums_to_one)
    if named in ("binary", "multilabel"):
        return Head(kind=named, is_probability=is_share and ends_in in ("sigmoid", "softmax"))
    return Head(kind=named, is_probability=named == "probabilities")


def _check_named(named: str, scores_NK: Tensor, *, sums_to_one: bool) -> None:
    assert named in HEADS, named
    num_scores = scores_NK.shape[1]
    if named == "probabilities" and not (sums_to_one and num_scores > 1):
        low, high = float(scores_NK.min()), float(scores_NK.max())
        raise InputError(
            'head = "probabilities" means rows of two or more numbers in [0, 1] that sum to 1, but its scores '
            f"({num_scores} an image) lie in [{low:.3g}, {high:.3g}] and sum to {float(scores_NK[0].sum()):.3g} for "
            'the first image; leave `head` out, or say "logits".'
        )
    if named == "binary" and num_scores != 1:
        raise InputError(
            f'head = "binary" means one score an image, but it returns {num_scores}; leave `head` out (one score a '
            'class), or say "multilabel" (one yes or no a class).'
        )
    if named == "logits" and num_scores == 1:
        raise InputError(
            'head = "logits" means one score a class, but it returns one an image; say "binary", "regression" or '
            '"embedding".'
        )


def num_classes_of(head: Head, num_scores: int) -> int:
    """Return how many classes a head with this number of scores has; 0 for a head without classes.

    >>> num_classes_of(Head(kind="binary"), 1), num_classes_of(Head(), 10), num_classes_of(Head(kind="embedding"), 64)
    (2, 10, 0)
    """
    if not head.has_classes:
        return 0
    return 2 if head.kind == "binary" else num_scores


def answers(scores: Tensor, head: Head) -> Tensor:
    """Return a network's answers: classes, (..., N), or for a `multilabel` head yes or no per label, (..., N, K)."""
    if head.kind == "binary":
        return (_log_odds(scores, head)[..., 0] > 0).long()
    if head.kind == "multilabel":
        return _log_odds(scores, head) > 0
    return scores.argmax(-1)


def share_alike(given: Tensor, wanted: Tensor, head: Head) -> Tensor:
    """Return for each image 1 if two `answers` agree, else 0; for `multilabel` the mean over labels: (..., N)."""
    alike = (given == wanted).double()
    return alike.mean(-1) if head.kind == "multilabel" else alike


def right_answers(labels_N: Tensor, head: Head, num_scores: int) -> Tensor:
    """Return the labels in the form of `answers`."""
    return functional.one_hot(labels_N, num_scores).bool() if head.kind == "multilabel" else labels_N


def losses(scores: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    """Return the cross-entropy in nats of each image, (..., N): logistic for `binary`, its mean over labels for
    `multilabel`.

    Probabilities enter by their logarithm, after they are clamped to the smallest normal number of float32.
    """  # noqa: D205
    if head.kind in ("binary", "multilabel"):
        odds = _log_odds(scores, head)
        wanted = right_answers(labels_N, head, scores.shape[-1]).to(odds.dtype)
        wanted = wanted if head.kind == "multilabel" else wanted[:, None]
        return functional.binary_cross_entropy_with_logits(odds, wanted.expand_as(odds), reduction="none").mean(-1)
    if head.is_probability:
        scores = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
        return -scores.gather(-1, labels_N.expand(scores.shape[:-1])[..., None])[..., 0]
    flat = functional.cross_entropy(
        scores.flatten(0, -2), labels_N.expand(scores.shape[:-1]).flatten(), reduction="none"
    )
    return flat.view(scores.shape[:-1])


def log_answers(scores: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """Return the logarithms of the probabilities of all answers, (..., A), from scores divided by a temperature.

    Answers are the classes for `logits` and `probabilities`, yes and no for `binary` (A = 2), and yes and no for each
    label of `multilabel` (A = 2K).
    """
    if head.kind in ("binary", "multilabel"):
        odds = _log_odds(scores, head) / temperature
        return torch.cat([functional.logsigmoid(odds), functional.logsigmoid(-odds)], dim=-1)
    if head.is_probability:
        scores = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
    return functional.log_softmax(scores / temperature, dim=-1)


def entropy(shares_K: Tensor, *, is_each: bool = False) -> float:
    """Return the entropy in nats of shares that sum to one; with `is_each` the mean entropy of each share's yes and no.

    >>> round(entropy(torch.tensor([0.5, 0.5])), 4)
    0.6931
    """
    shares_K = shares_K.double()
    if is_each:
        return float(-(torch.xlogy(shares_K, shares_K) + torch.xlogy(1 - shares_K, 1 - shares_K)).mean())
    return float(-torch.xlogy(shares_K, shares_K).sum())


def _log_odds(scores: Tensor, head: Head) -> Tensor:
    """Return logits of yes against no."""
    return torch.logit(scores, eps=torch.finfo(torch.float32).eps) if head.is_probability else scores
