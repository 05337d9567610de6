"""Networks by themselves, unstitched: proven on real images, then measured on all evaluation images in one pass.

Shape suffixes: N images, K scores of an image.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stitchgrid.datasets.device_images import Pictures
from stitchgrid.engine.feature_check import look_at_features, without_accuracy
from stitchgrid.engine.workspace import Workspace, batches
from stitchgrid.matchers.heads import answers, losses, right_answers, share_alike
from stitchgrid.matchers.registry import proves_halves
from stitchgrid.models.proof import Proof, Sample, tolerance_for
from stitchgrid.models.versions import library_versions
from stitchgrid.precision import few_threads, num_threads_set
from stitchgrid.preprocess import apply_preprocess, on_device

NUM_ORDINARY = 4  # images from each end of the first batch
NUM_EXTREME = 4  # darkest images, and as many brightest ones
LOOKED_THROUGH = 1_000  # first images, among which these are sought
NUM_MORE = 200  # images for checks that need a share of many images
SIGNIFICANCE = 1e-3  # p-value below which an accuracy is not due to chance
MIN_GAIN = 0.1  # in accuracy, from which on another order of classes is reported
MIN_RIGHT = 0.5  # least accuracy under another order of classes for which that order is named
MAX_CLASSES = 2_000  # of networks with more, orders of classes are not compared

Classes = NDArray[np.int64]


def measure_network(work: Workspace, position: int) -> dict[str, Any]:
    """Return the evaluation of a network, as it is stored: whether it is proven, its accuracy and loss, and remarks.

    For a refused network `problems` say why, and nothing else is measured.
    """
    record, images = work.sweep.networks[position], work.images.eval
    if record.spec.is_features:
        return look_at_features(work, position)
    places, many = _places(images, work), range(min(NUM_MORE, work.sweep.num_eval))
    num_eval, num_read = work.sweep.num_eval, _num_read_again(work)
    tally, num_threads = _Tally(work, position), torch.get_num_threads()

    def in_full() -> tuple[Tensor, Tensor]:
        """Pass all evaluation images; return the scores of those at `places`, and of those in `many`."""
        kept, seen = {*places, *many}, dict[int, Tensor]()
        with num_threads_set(num_threads):
            all_layers = {position: list(range(len(record.layers)))}
            passes = (
                batches(work, images, all_layers, scored={position}, stop=num_read, keeps=True),
                batches(work, images, {position: []}, scored={position}, start=num_read, stop=num_eval),
            )
            for batch in chain(*passes):
                scores_NK = batch.logits[position].float()
                tally.add(scores_NK, batch.labels_N)
                inside = (place for place in kept if batch.start <= place < batch.stop)
                seen.update({place: scores_NK[place - batch.start] for place in inside})
        return torch.stack([seen[place] for place in places]), torch.stack([seen[place] for place in many])

    take, num_ordinary = partial(_images, work, position), min(2 * NUM_ORDINARY, work.batch_size, work.sweep.num_eval)
    sample = Sample(
        ordinary=take(places[:num_ordinary]),
        extreme=take(places[num_ordinary:]),
        batch=lambda: take(range(min(work.batch_size, work.sweep.num_eval))),
        more=lambda: take(many),
        in_full=in_full,
    )
    with work.network(position).uncompiled(), few_threads(record.flops):
        findings = _proof(work, position).run(sample)
    if not findings.problems and not tally.is_finite:
        findings.problems.append("its scores are infinite or NaN on some evaluation images; look at its weights")
    found = without_accuracy(
        work, problems=findings.problems, remarks=findings.remarks, libraries=library_versions(record.spec)
    )
    if findings.problems or not record.is_labelled:
        return found
    return found | tally.told()


def _num_read_again(work: Workspace) -> int:
    """Return how many evaluation images matchers read again after this pass, in full batches; 0 if nothing is kept."""
    if work.kept is None:
        return 0
    most = max((needs.num_eval for needs in work.needs), default=0)
    return min(-(-most // work.batch_size) * work.batch_size, work.sweep.num_eval)


def _proof(work: Workspace, position: int) -> Proof:
    record, network = work.sweep.networks[position], work.network(position)
    return Proof(
        network,
        {layer.node: layer.name for layer in record.layers},
        precision=work.precision,
        tolerance=tolerance_for(network, work.sweep.precision),
        halves=proves_halves(work.sweep, record),
    )


def _places(images: Pictures, work: Workspace) -> list[int]:
    """Return the positions of the images on which a network is proven: ordinary ones, then the extreme ones.

    Ordinary ones are the first and the last of the first batch; the last ones show a network that drops a batch's end.
    """
    num = work.sweep.num_eval
    last = min(work.batch_size, num)
    each = min(NUM_ORDINARY, (last + 1) // 2)
    ordinary = list(dict.fromkeys([*range(each), *range(last - min(each, last - each), last)]))
    brightness = _brightness(images, min(LOOKED_THROUGH, num))
    ranked = np.argsort(brightness, kind="stable").tolist()
    return [*ordinary, *dict.fromkeys([*ranked[:NUM_EXTREME], *ranked[-NUM_EXTREME:]])]


def _brightness(images: Pictures, num: int) -> NDArray[np.float64]:
    """Return the mean pixel value of each of the first images: (num,)."""
    means = []
    for start in range(0, num, 100):
        pixels = images.batch(torch.arange(start, min(start + 100, num), device=images.labels.device))
        means += [_mean(image) for image in pixels]
    return np.array(means)


def _mean(image: Tensor) -> float:
    exact = torch.float64 if image.is_floating_point() else torch.int64
    return float(image.sum(dtype=exact)) / image.numel()


def _images(work: Workspace, position: int, places: Sequence[int]) -> Tensor:
    """Return evaluation images, preprocessed for a network: (N, C, H, W)."""
    split = work.images.eval
    pixels = split.batch(torch.tensor(list(places), device=split.labels.device))
    images = apply_preprocess(on_device(pixels, work.device), work.sweep.networks[position].preprocess)
    return images.contiguous(memory_format=torch.channels_last)


class _Tally:
    """Answers and losses, summed over batches."""

    def __init__(self, work: Workspace, position: int):
        record = work.sweep.networks[position]
        self.head, self.is_labelled, self.work = record.head, record.is_labelled, work
        self.is_untrained = record.spec.is_untrained
        self.right, self.loss = torch.zeros(2, dtype=torch.float64, device=work.device)
        self._finite = torch.ones((), dtype=torch.bool, device=work.device)
        self._given: list[Tensor] = []
        self.num_scores = 0

    def add(self, scores_NK: Tensor, labels_N: Tensor) -> None:
        self.num_scores = scores_NK.shape[1]
        self._finite &= torch.isfinite(scores_NK).all()
        if not self.is_labelled:
            return
        given = answers(scores_NK, self.head)
        self.right += share_alike(given, right_answers(labels_N, self.head, self.num_scores), self.head).sum()
        self.loss += losses(scores_NK.double(), labels_N, self.head).sum()
        if self.head.kind != "multilabel":
            self._given.append(given)

    @property
    def is_finite(self) -> bool:
        return bool(self._finite)

    def told(self) -> dict[str, Any]:
        """Return accuracy and loss, and comparisons with chance and with other orders of the classes."""
        num = self.work.sweep.num_eval
        accuracy = self.right.item() / num
        found: dict[str, Any] = {"accuracy": accuracy, "loss": self.loss.item() / num}
        if not self._given:
            return found
        given = torch.cat(self._given).cpu().numpy()
        labels = self.work.images.eval.labels[:num].cpu().numpy()
        chance, is_at_chance = against_chance(given, labels, num_classes=self._num_classes)
        found |= {"chance": chance, "is_at_chance": is_at_chance}
        if not self.is_untrained and self._num_classes <= MAX_CLASSES:
            found["order"] = better_order(given, labels, num_classes=self._num_classes)
        return found

    @property
    def _num_classes(self) -> int:
        return 2 if self.head.kind == "binary" else self.num_scores


def against_chance(given: Classes, labels: Classes, *, num_classes: int) -> tuple[float, bool]:
    """Return the accuracy by chance, and whether the accuracy of the answers may be due to chance.

    Chance is sum_k P(answer k) P(label k), or 1/K if that is more: the accuracy of answers that do not depend on the
    images. If a binomial test gives p >= 0.001, the accuracy may be due to chance. Answers and labels are (N,).

    >>> against_chance(np.zeros(100, int), np.arange(100) % 4, num_classes=4)
    (0.25, True)
    """
    shares = (np.bincount(some, minlength=num_classes) / len(labels) for some in (given, labels))
    chance = max(float(np.multiply(*shares).sum()), 1 / num_classes)
    num_right = int((given == labels).sum())
    return chance, _reach(num_right, len(labels), min(chance, 1.0)) >= SIGNIFICANCE


def _reach(hits: int, num: int, share: float) -> float:
    """Return the probability of `hits` or more hits in `num` trials, each of which hits with probability `share`."""
    from scipy.special import bdtrc  # imports much faster than scipy.stats

    return float(bdtrc(hits - 1, num, share))


def better_order(given: Classes, labels: Classes, *, num_classes: int) -> dict[str, Any] | None:
    """Return an order of classes under which most answers are right, and many more than now; None if there is none.

    The order that fits best is found on every second image (an assignment on the confusion matrix) and judged on the
    others, since one of many orders always fits to some extent.

    Returns:
        `classes`: for each of the network's classes the label that it stands for; `is_seen`: whether some answer
        supports this label, else it is one that was left over; `accuracy`: under this order, on all images.
    """
    told, wanted = given[1::2], labels[1::2]
    num, as_labelled = len(told), float((told == wanted).mean()) if len(told) else 0.0
    if 1 - as_labelled < MIN_GAIN:
        return None
    from scipy.optimize import linear_sum_assignment  # takes long to import

    counts = np.bincount(given[::2] * num_classes + labels[::2], minlength=num_classes**2)
    confusion = counts.reshape(num_classes, num_classes)
    answer, meant = linear_sum_assignment(-confusion)
    hits = int((meant[told] == wanted).sum())
    gain = hits / num - as_labelled if num else 0.0
    if gain < MIN_GAIN or _reach(hits, num, max(as_labelled, 1 / num_classes)) >= SIGNIFICANCE:
        return None
    if hits < MIN_RIGHT * num:  # answers of another cause, such as images that are prepared in another way
        return None
    return {
        "classes": meant.tolist(),
        "is_seen": (confusion[answer, meant] > 0).tolist(),
        "accuracy": float((meant[given] == labels).mean()),
    }
