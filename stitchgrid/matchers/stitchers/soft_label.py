"""Soft label matching: the map is trained to give the stitched network the target's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.protocol import About, Mean, Step, Trained

if TYPE_CHECKING:
    from torch import Tensor

    from stitchgrid.records import Head


class SoftLabelParams(TrainingParams):
    """Cross-entropy with the target's own answers."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """by which the scores of both networks are divided"""


class SoftLabel(Trained[SoftLabelParams]):
    """The cross-entropy of softmax(g / t) with softmax(h / t); no factor of t squared. No labels are read.

    For a `binary` or `multilabel` head it is the cross-entropy of yes and no. For outputs without classes
    (`regression`, `embedding`) it is ||h - g||^2 over the mean of ||g||^2 on the fit images. Both networks see the same
    images, also augmented ones.
    """

    reads_target = True
    about = About(
        kind="soft_label",
        family="stitcher",
        summary="affine map trained on the target's own answers through the rest of it (SLM)",
        source="Balogh & Jelasity 2025",
        use=(
            "Soft label matching (SLM) is like `task_loss`, but without labels: the stitched network learns to answer "
            "as the target does."
        ),
        bias="it, too, may leave the target's distribution",
        not_when="`direct` does not stand beside it",
        params=SoftLabelParams,
        metrics=OF_STITCHERS,
        score="agreement",
        is_trained=True,
    )

    def losses(self, step: Step) -> Tensor:
        """Return the cross-entropy of each image."""
        from stitchgrid.matchers.heads import log_answers

        assert step.scores_SNK is not None
        assert step.target_scores_NK is not None
        if not step.head.has_classes:
            error_SN = (step.scores_SNK.float() - step.target_scores_NK).square().sum(-1)
            return error_SN / step.sizes["scores"]
        wanted_NA = log_answers(step.target_scores_NK, step.head, self.params.temperature).exp()
        said_SNA = log_answers(step.scores_SNK.float(), step.head, self.params.temperature)
        return -(wanted_NA * said_SNA).sum(-1) / _num_questions(step)

    def followed(self, step: Step) -> Mapping[str, Tensor]:
        """Return the target's answers as probabilities, or its outputs."""
        from stitchgrid.matchers.heads import log_answers

        assert step.target_scores_NK is not None
        if not step.head.has_classes:
            return {"scores": step.target_scores_NK}
        return {"answers": log_answers(step.target_scores_NK, step.head, self.params.temperature).exp()}

    def constant_loss(self, means: Mapping[str, Mean], head: Head, sizes: Mapping[str, Tensor]) -> float:
        """Return the entropy of the mean answer, or for outputs without classes their variance over their size."""
        from torch import xlogy

        if not head.has_classes:
            mean = means["scores"]
            return float((mean.square - mean.row_P.square().sum()) / sizes["scores"])
        mean_A = means["answers"].row_P
        return float(-xlogy(mean_A, mean_A).sum() / (len(mean_A) // 2 if head.kind == "multilabel" else 1))


def _num_questions(step: Step) -> int:
    """Return the number of questions that an image's loss is averaged over: K for a `multilabel` head, else 1."""
    assert step.target_scores_NK is not None
    return step.target_scores_NK.shape[-1] if step.head.kind == "multilabel" else 1
