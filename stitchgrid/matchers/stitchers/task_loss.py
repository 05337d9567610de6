"""Task loss matching: the map is trained on the labels, through the frozen rest of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import TrainingParams
from stitchgrid.matchers.protocol import About, Mean, Step, Trained
from stitchgrid.records import Head

if TYPE_CHECKING:
    from torch import Tensor

LOGITS = Head()


class TaskLoss(Trained[TrainingParams]):
    """The cross-entropy of the stitched network's scores with the labels, by the target's head."""

    about = About(
        kind="task_loss",
        family="stitcher",
        summary="affine map trained on the labels through the rest of the target (TLM)",
        source="Balogh & Jelasity 2025",
        use=(
            "Task loss matching (TLM) asks whether the rest of the target *can be fed* something that classifies well. "
            "This is not the question whether the layers are alike."
        ),
        bias=(
            "it finds inputs that the target has never seen, and calls a first and a last layer the same (`stitchgrid "
            "manual findings`)"
        ),
        not_when="`direct` and `[diagnostics] ood` do not stand beside it",
        params=TrainingParams,
        metrics=OF_STITCHERS,
        score="accuracy",
        is_trained=True,
        needs_labels=True,
    )

    def losses(self, step: Step) -> Tensor:
        """Return the cross-entropy of each image."""
        from stitchgrid.matchers.heads import losses

        assert step.scores_SNK is not None
        return losses(step.scores_SNK.float(), step.labels_N, step.head)

    def loss(self, step: Step) -> Tensor:
        """Return the sum over the stitched networks of their mean losses; for logits by a single operation."""
        from torch.nn import functional

        if step.head != LOGITS:
            return super().loss(step)
        assert step.scores_SNK is not None
        num_stacked = len(step.scores_SNK)
        flat = step.scores_SNK.flatten(0, 1).float()
        return functional.cross_entropy(flat, step.labels_N.repeat(num_stacked)) * num_stacked

    def followed(self, step: Step) -> Mapping[str, Tensor]:
        """Return the labels as one column per class: (N, classes)."""
        from torch.nn import functional

        assert step.scores_SNK is not None
        num_classes = max(2, step.scores_SNK.shape[-1])  # one score decides between two
        return {"labels": functional.one_hot(step.labels_N, num_classes)}

    def constant_loss(self, means: Mapping[str, Mean], head: Head, sizes: Mapping[str, Tensor]) -> float:  # noqa: ARG002
        """Return the entropy of the labels' frequencies; for `multilabel` the mean over labels of yes and no."""
        from stitchgrid.matchers.heads import entropy

        return entropy(means["labels"].row_P, is_each=head.kind == "multilabel")
