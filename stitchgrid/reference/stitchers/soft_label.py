"""Soft label matching, Balogh & Jelasity 2025."""

from collections.abc import Sequence

import torch
from scipy.special import xlogy
from torch import Tensor
from torch.nn import functional as F

from stitchgrid.reference.stitchers.following import Follows


class FollowsAnswers(Follows):
    """The answers of g; its outputs where it has no classes."""

    def losses(self, x: Tensor, t: Tensor, labels_N: Tensor) -> Tensor:
        """Return the cross-entropy of h's answers with those of g, (N,), the mean over questions."""
        if not self.head.has_classes:
            return super().losses(x, t, labels_N)
        wanted, said = self._answers(self.of_target(x)[0]), self._answers(self.of_stitched(t)[0])
        return -(wanted * said.log()).sum((1, 2)) / wanted.shape[1]

    def _answers(self, scores_NK: Tensor) -> Tensor:
        """Return probabilities of all answers to each question, (N, Q, A): one question, or one a label."""
        if self.head.kind in ("binary", "multilabel"):
            odds = torch.logit(scores_NK, eps=torch.finfo(torch.float32).eps) if self.head.is_probability else scores_NK
            yes = torch.sigmoid(odds / self.params["temperature"])
            return torch.stack([yes, 1 - yes], dim=2)
        if self.head.is_probability:
            scores_NK = scores_NK.clamp_min(torch.finfo(torch.float32).tiny).log()
        return F.softmax(scores_NK / self.params["temperature"], dim=1)[:, None]

    def wanted(self, x: Tensor, labels_N: Tensor) -> list[Tensor]:
        """Return g's answers, or its outputs."""
        outputs = super().wanted(x, labels_N)
        return [self._answers(outputs[0])] if self.head.has_classes else outputs

    def constant_loss(self, wanted: Sequence[Tensor]) -> float:
        """Return the entropy of the mean answer."""
        if not self.head.has_classes:
            return super().constant_loss(wanted)
        mean_QA = wanted[0].double().mean(0).cpu().numpy()
        return float(-xlogy(mean_QA, mean_QA).sum(1).mean())


soft_label = FollowsAnswers
