"""Answers and losses of a network's scores, and how near the outputs of two networks are."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stitchgrid.records import Head
from stitchgrid.reference.arithmetic import ratio


def said(scores_NK: Tensor, head: Head) -> Tensor:
    """Return the class of each image, or yes and no for each label."""
    threshold = 0.5 if head.is_probability else 0.0
    if head.kind == "binary":
        return (scores_NK[:, 0] > threshold).long()
    return (scores_NK > threshold).long() if head.kind == "multilabel" else scores_NK.argmax(1)


def loss_of_each(scores_NK: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    """Return the cross-entropy of each image in nats, (N,)."""
    return torch.stack([mean_loss(scores_NK[k : k + 1], labels_N[k : k + 1], head) for k in range(len(labels_N))])


def mean_loss(scores_NK: Tensor, labels_N: Tensor, head: Head) -> Tensor:
    """Return the mean cross-entropy in nats of scores (N, K) of a network with this head."""
    if head.kind in ("binary", "multilabel"):
        yes_NK = F.one_hot(labels_N, scores_NK.shape[1]) if head.kind == "multilabel" else labels_N[:, None]
        if head.is_probability:
            smallest = torch.finfo(torch.float32).eps
            return F.binary_cross_entropy(scores_NK.clamp(smallest, 1 - smallest), yes_NK.to(scores_NK.dtype))
        return F.binary_cross_entropy_with_logits(scores_NK, yes_NK.to(scores_NK.dtype))
    if head.is_probability:
        return F.nll_loss(scores_NK.clamp_min(torch.finfo(torch.float32).tiny).log(), labels_N)
    return F.cross_entropy(scores_NK, labels_N)


def outputs_alike(h_NK: Tensor, g_NK: Tensor) -> dict[str, float]:
    """Return how near outputs without classes are: their mean cosine, and the share of variance explained."""
    cosine_N = (h_NK * g_NK).sum(1) / (h_NK.norm(dim=1) * g_NK.norm(dim=1))
    share = ratio((h_NK - g_NK).square().sum().item(), (g_NK - g_NK.mean(0)).square().sum().item())
    return {"output_cosine": cosine_N.mean().item(), "output_r2": 1 - share}
