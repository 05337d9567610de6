"""Task loss matching: the map is trained on the labels, through the frozen rest of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stitchgrid.matchers.metrics import OF_STITCHERS
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import About, Trained
from stitchgrid.records import Head

if TYPE_CHECKING:
    from torch import Tensor

LOGITS = Head()


class TaskLossParams(Rules):
    """Cross-entropy on the labels; defaults are those of Balogh & Jelasity (2025), but for the augmentation."""

    epochs: Annotated[int, Field(ge=1)] = 30
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 256
    augment: Literal["none", "crop4_flip"] = "none"


class TaskLoss(Trained[TaskLossParams]):
    """The cross-entropy of the stitched network's scores with the labels."""

    about = About(
        kind="task_loss",
        family="stitcher",
        summary="affine map trained on the labels through the rest of the target (TLM)",
        source="Balogh & Jelasity 2025",
        params=TaskLossParams,
        metrics=OF_STITCHERS,
        score="accuracy",
        is_trained=True,
        needs_labels=True,
    )


def stacked_task_loss(scores_SNK: Tensor, labels_N: Tensor, head: Head = LOGITS) -> Tensor:
    """Return the sum over S stitched networks of their mean cross-entropy on the same N images, by their target's head.

    Each network's map enters one term only, so its gradient is what training it alone would give.
    """
    from torch.nn import functional

    from stitchgrid.matchers.heads import losses

    num_stacked = len(scores_SNK)
    if head == LOGITS:  # by one operation, forward and backward
        flat = scores_SNK.flatten(0, 1).float()
        return functional.cross_entropy(flat, labels_N.repeat(num_stacked)) * num_stacked
    return losses(scores_SNK.float(), labels_N, head).mean() * num_stacked
