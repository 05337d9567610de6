"""What the outputs of stitched networks say beside those of their target, summed over batches, by the target's head.

Shape suffixes: S stitched networks, N images, K scores of an image.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.matchers.heads import answers, losses, right_answers, share_alike
from stitchgrid.moments import exact_mean
from stitchgrid.records import Head, Network

OF_LABELS = ("accuracy", "loss", "relative_accuracy", "penalty")  # undefined for classes that are not the images'


class Outputs(Protocol):
    """Sums over batches: what the target itself says of a batch, then what stitched networks say of it."""

    def begin(self, scores_NK: Tensor, labels_N: Tensor) -> None:
        """Take what the target says of the next batch."""
        ...

    def take(self, part: slice, scores_SNK: Tensor) -> None:
        """Take what some of the stitched networks say of it."""
        ...

    def metrics(self) -> dict[str, Tensor]:
        """Return each metric of all stitched networks, (S,); NaN where one is undefined."""
        ...


def outputs_of(target: Network, num_networks: int, *, device: torch.device) -> Outputs:
    """Return the sums that fit a target's head."""
    if target.head.has_classes:
        return ClassOutputs(target.head, num_networks, is_labelled=target.is_labelled, device=device)
    return VectorOutputs(num_networks, device=device)


class ClassOutputs:
    """Accuracy, loss and agreement of heads that know classes."""

    def __init__(self, head: Head, num_networks: int, *, is_labelled: bool, device: torch.device):
        self.head, self.is_labelled = head, is_labelled
        zeros_S = torch.zeros(num_networks, dtype=torch.float64, device=device)
        self.num_images = 0
        self.correct_S, self.agree_S, self.loss_S = zeros_S.clone(), zeros_S.clone(), zeros_S.clone()
        self.target_correct = torch.zeros((), dtype=torch.float64, device=device)
        self.is_finite_S = torch.ones(num_networks, dtype=torch.bool, device=device)  # of all scores

    def begin(self, scores_NK: Tensor, labels_N: Tensor) -> None:  # noqa: D102
        self.num_images += len(labels_N)
        self.labels_N, self.said_N = labels_N, answers(scores_NK, self.head)
        if self.is_labelled:
            self.right_N = right_answers(labels_N, self.head, scores_NK.shape[1])
            self.target_correct += share_alike(self.said_N, self.right_N, self.head).sum()

    def take(self, part: slice, scores_SNK: Tensor) -> None:  # noqa: D102
        answers_SN = answers(scores_SNK, self.head)
        self.is_finite_S[part] &= torch.isfinite(scores_SNK).all(2).all(1)
        self.agree_S[part] += share_alike(answers_SN, self.said_N, self.head).sum(1)
        if self.is_labelled:
            self.correct_S[part] += share_alike(answers_SN, self.right_N, self.head).sum(1)
            self.loss_S[part] += losses(scores_SNK, self.labels_N, self.head).double().sum(1)

    def metrics(self) -> dict[str, Tensor]:  # noqa: D102
        num = self.num_images
        accuracy_S, target_accuracy = self.correct_S / num, self.target_correct / num
        nan_S = torch.full_like(accuracy_S, torch.nan)
        found = {
            "accuracy": accuracy_S,
            "loss": self.loss_S / num,
            "relative_accuracy": torch.where(target_accuracy > 0, accuracy_S / target_accuracy, nan_S),
            "penalty": target_accuracy - accuracy_S,
            "agreement": self.agree_S / num,
        }  # but of scores that are inf or NaN no class is the highest
        found = {name: torch.where(self.is_finite_S, value_S, nan_S) for name, value_S in found.items()}
        return found if self.is_labelled else found | dict.fromkeys(OF_LABELS, nan_S)


class VectorOutputs:
    """How near outputs without classes are to the target's own: mean cosine, and share of variance explained."""

    def __init__(self, num_networks: int, *, device: torch.device):
        self.num_images = 0
        self.cosine_S = torch.zeros(num_networks, dtype=torch.float64, device=device)
        self.error_S = torch.zeros_like(self.cosine_S)
        self.pivot_K: Tensor | None = None  # mean of the first batch
        self.total_K = self.square = torch.zeros((), dtype=torch.float64, device=device)

    def begin(self, scores_NK: Tensor, labels_N: Tensor) -> None:  # noqa: D102
        self.num_images += len(labels_N)
        self.said_NK = scores_NK.double()
        if self.pivot_K is None:
            self.pivot_K = exact_mean(self.said_NK)
        shifted_NK = self.said_NK - self.pivot_K
        self.total_K = self.total_K + shifted_NK.sum(0)
        self.square = self.square + shifted_NK.square().sum()

    def take(self, part: slice, scores_SNK: Tensor) -> None:  # noqa: D102
        exact_SNK = scores_SNK.double()
        said_SNK = self.said_NK.expand_as(exact_SNK)
        self.cosine_S[part] += functional.cosine_similarity(exact_SNK, said_SNK, dim=2, eps=1e-300).sum(1)
        self.error_S[part] += (exact_SNK - said_SNK).square().sum((1, 2))

    def metrics(self) -> dict[str, Tensor]:  # noqa: D102
        spread = self.square - self.total_K.square().sum() / max(1, self.num_images)
        share_S = self.error_S / torch.where(spread > 0, spread, torch.nan)
        return {"output_cosine": self.cosine_S / self.num_images, "output_r2": 1 - share_S}
