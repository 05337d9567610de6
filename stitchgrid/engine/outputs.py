"""Compares outputs of stitched networks with those of their target, summed over batches, as the target's head asks.

Shape suffixes: S stitched networks, G groups of images, N images, K scores of an image.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.engine.groups import Groups, left
from stitchgrid.matchers.heads import answers, losses, right_answers, share_alike
from stitchgrid.matchers.metrics import LABEL_METRICS
from stitchgrid.moments import exact_mean
from stitchgrid.records import Head, Network


class Outputs(ABC):
    """Sums over batches, by group of images, of the target's own outputs and then of stitched networks' outputs."""

    def __init__(self, groups: Groups, device: torch.device):
        self.groups, self.num_seen = groups, 0
        self.num_images_G1 = torch.zeros(groups.num, 1, dtype=torch.float64, device=device)

    def begin(self, scores_NK: Tensor, labels_N: Tensor) -> None:
        """Take the target's own scores of the next batch."""
        self.start, self.num_seen = self.num_seen, self.num_seen + len(labels_N)
        self.num_images_G1 += self.sums(torch.ones_like(labels_N))[:, None]
        self.look_at_target(scores_NK, labels_N)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over each group's images of values (..., N) of the batch: (G, ...)."""
        return self.groups.sums(values, self.start)

    def metrics(self) -> dict[str, Tensor]:
        """Return each metric of all stitched networks, (S,); NaN where one is undefined."""
        return self.of_sums(*(sums.sum(0) for sums in (self.num_images_G1, *self.all_sums())))

    def replicates(self) -> dict[str, Tensor]:
        """Return each metric without each group of images, (G, S)."""
        return self.of_sums(*(left(sums) for sums in (self.num_images_G1, *self.all_sums())))

    @abstractmethod
    def look_at_target(self, scores_NK: Tensor, labels_N: Tensor) -> None:
        """Add up the target's outputs on the batch, and keep what stitched networks are compared with."""

    @abstractmethod
    def take(self, part: slice, scores_SNK: Tensor) -> None:
        """Take the scores of some of the stitched networks on the batch."""

    @abstractmethod
    def all_sums(self) -> tuple[Tensor, ...]:
        """Return the sums that metrics are computed from, (G, ...) each, without the number of images."""

    @abstractmethod
    def of_sums(self, *sums: Tensor) -> dict[str, Tensor]:
        """Return the metrics from the number of images, (1,) or (G, 1), and from `all_sums` over the same images."""


def outputs_of(target: Network, num_networks: int, *, groups: Groups, device: torch.device) -> Outputs:
    """Return the sums that fit a target's head."""
    if target.head.has_classes:
        return ClassOutputs(target.head, num_networks, is_labelled=target.is_labelled, groups=groups, device=device)
    return VectorOutputs(num_networks, groups=groups, device=device)


class ClassOutputs(Outputs):
    """Accuracy, loss and agreement of heads with classes."""

    def __init__(self, head: Head, num_networks: int, *, is_labelled: bool, groups: Groups, device: torch.device):
        super().__init__(groups, device)
        self.head, self.is_labelled = head, is_labelled
        zeros_GS = self.num_images_G1.new_zeros(groups.num, num_networks)
        self.correct_GS, self.agree_GS, self.loss_GS = zeros_GS.clone(), zeros_GS.clone(), zeros_GS.clone()
        self.target_correct_G1 = zeros_GS.new_zeros(groups.num, 1)
        self.is_finite_S = torch.ones(num_networks, dtype=torch.bool, device=device)  # of all scores

    def look_at_target(self, scores_NK: Tensor, labels_N: Tensor) -> None:  # noqa: D102
        self.labels_N, self.said_N = labels_N, answers(scores_NK, self.head)
        if self.is_labelled:
            self.right_N = right_answers(labels_N, self.head, scores_NK.shape[1])
            self.target_correct_G1 += self.sums(share_alike(self.said_N, self.right_N, self.head))[:, None]

    def take(self, part: slice, scores_SNK: Tensor) -> None:  # noqa: D102
        answers_SN = answers(scores_SNK, self.head)
        self.is_finite_S[part] &= torch.isfinite(scores_SNK).all(2).all(1)
        self.agree_GS[:, part] += self.sums(share_alike(answers_SN, self.said_N, self.head))
        if self.is_labelled:
            self.correct_GS[:, part] += self.sums(share_alike(answers_SN, self.right_N, self.head))
            self.loss_GS[:, part] += self.sums(losses(scores_SNK, self.labels_N, self.head).double())

    def all_sums(self) -> tuple[Tensor, ...]:  # noqa: D102
        return self.correct_GS, self.target_correct_G1, self.loss_GS, self.agree_GS

    def of_sums(self, *sums: Tensor) -> dict[str, Tensor]:  # noqa: D102
        num, correct, target_correct, loss, agree = sums
        accuracy, target_accuracy = correct / num, target_correct / num
        nan = torch.full_like(accuracy, torch.nan)
        found = {
            "accuracy": accuracy,
            "loss": loss / num,
            "relative_accuracy": torch.where(target_accuracy > 0, accuracy / target_accuracy, nan),
            "penalty": target_accuracy - accuracy,
            "agreement": agree / num,
        }  # scores that are inf or NaN have no highest class, and are left undefined below
        found = {name: torch.where(self.is_finite_S, value, nan) for name, value in found.items()}
        return found if self.is_labelled else found | dict.fromkeys(LABEL_METRICS, nan)


class VectorOutputs(Outputs):
    """How near outputs without classes are to the target's own: mean cosine, and share of variance explained."""

    def __init__(self, num_networks: int, *, groups: Groups, device: torch.device):
        super().__init__(groups, device)
        self.cosine_GS = self.num_images_G1.new_zeros(groups.num, num_networks)
        self.error_GS = torch.zeros_like(self.cosine_GS)
        self.pivot_K: Tensor | None = None  # mean of the first batch
        self.total_GK = self.square_G1 = torch.zeros_like(self.num_images_G1)

    def look_at_target(self, scores_NK: Tensor, labels_N: Tensor) -> None:  # noqa: ARG002, D102
        self.said_NK = scores_NK.double()
        if self.pivot_K is None:
            self.pivot_K = exact_mean(self.said_NK)
        shifted_NK = self.said_NK - self.pivot_K
        self.total_GK = self.total_GK + self.sums(shifted_NK.mT)
        self.square_G1 = self.square_G1 + self.sums(shifted_NK.square().sum(1))[:, None]

    def take(self, part: slice, scores_SNK: Tensor) -> None:  # noqa: D102
        exact_SNK = scores_SNK.double()
        said_SNK = self.said_NK.expand_as(exact_SNK)
        cosine_SN = functional.cosine_similarity(exact_SNK, said_SNK, dim=2, eps=1e-300)
        self.cosine_GS[:, part] += self.sums(cosine_SN)
        self.error_GS[:, part] += self.sums((exact_SNK - said_SNK).square().sum(2))

    def all_sums(self) -> tuple[Tensor, ...]:  # noqa: D102
        return self.cosine_GS, self.error_GS, self.total_GK, self.square_G1

    def of_sums(self, *sums: Tensor) -> dict[str, Tensor]:  # noqa: D102
        num, cosine, error, total, square = sums
        spread = square - total.square().sum(-1, keepdim=True) / num
        return {
            "output_cosine": cosine / num,
            "output_r2": 1 - error / torch.where(spread > 0, spread, torch.nan),
        }
