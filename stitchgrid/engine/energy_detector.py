"""Training a detector by energy on the activations of one target layer, against those of outlier images.

Source: Balogh & Jelasity (2025). Differences from the paper: outliers are made from the fit images unless the job names
a data set (paper: 300,000 random images); the second phase also takes the fit images as images of the distribution
(paper: CIFAR-5M); its learning rate drops after half of its epochs (the paper's code: after ten steps). An epoch of the
second phase is one pass over the fit images, in half batches. Adam starts anew for it. No phase augments images.

Shape suffixes: N images.
"""

import logging

import torch
from torch import Tensor
from torch.nn import functional

from stitchgrid.datasets.device_images import Pictures
from stitchgrid.engine.training_images import SourceReader
from stitchgrid.engine.workspace import Pixels, Workspace, forward
from stitchgrid.errors import InputError, StitchgridError, is_out_of_memory
from stitchgrid.matchers.drawing import seeded
from stitchgrid.matchers.ood import detection
from stitchgrid.models.detector import Detector, make_detector
from stitchgrid.statistics.base import LayerKey

_log = logging.getLogger(__name__)

INSIDE, OUTSIDE = -25.0, -7.0  # energies: B should stay below the first, outliers above the second
MARGIN_WEIGHT = 0.1  # of the squared hinges beside the cross-entropy
KEPT_OUT = 10  # one image in ten is kept out of training, for the sanity check
GRID = 4  # patches on a side of an image, for outliers made by shuffling them
OTHER_KIND = {"noise": "patch_shuffle", "patch_shuffle": "noise", "data": "noise"}  # of outliers, for the sanity check


def train_detector(work: Workspace, key: LayerKey, outliers: Pictures | None) -> Detector:
    """Return the detector of a target layer by the sweep's recipe, in eval mode, its sanity check done.

    It is first trained to classify B by the images' labels. Then it is fine-tuned, on batches that are half B and half
    outliers, with CE + 0.1 (mean relu(E_in + 25)^2 + mean relu(-7 - E_out)^2), E = -logsumexp of the class scores.

    Raises:
        InputError: If outlier images do not fit the network.
        StitchgridError: If the loss becomes infinite or NaN.
    """
    assert work.sweep.energy is not None
    recipe, num_images = work.sweep.energy.recipe, work.sweep.energy.num_fit
    num_trained = num_images - max(1, num_images // KEPT_OUT)
    num_classes = int(work.images.fit.labels[:num_images].max()) + 1
    height, width = work.sweep.networks[key[0]].input_shape[1:]
    devices = [work.device] if work.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(recipe.seed)
        detector = make_detector(work.layer(key), recipe, size=(height, width), num_classes=num_classes)
    detector = detector.to(work.device)
    training = _DetectorTraining(work, key, detector, num_trained, outliers)
    for epoch in range(recipe.epochs):
        training.classify(epoch)
    training.start_again()
    for epoch in range(recipe.finetune_epochs):
        training.fine_tune(epoch)
    detector.eval().requires_grad_(False)
    _check(work, key, detector, num_trained, num_images)
    return detector


class _DetectorTraining:
    """A detector's optimiser, and where its batches come from."""

    def __init__(self, work: Workspace, key: LayerKey, detector: Detector, num_images: int, outliers: Pictures | None):
        assert work.sweep.energy is not None
        self.work, self.key, self.detector, self.outliers = work, key, detector.train(), outliers
        self.recipe = work.sweep.energy.recipe
        self.reader = SourceReader(work, [key], num_images, augment="none")
        self.loss = torch.zeros(())
        self.start_again()

    def start_again(self) -> None:
        """Forget the optimiser's moments, and return to the recipe's learning rate."""
        self.adam = torch.optim.Adam(
            self.detector.parameters(), lr=self.recipe.lr, weight_decay=self.recipe.weight_decay
        )

    def classify(self, epoch: int) -> None:
        """Train on every image once."""
        for seen in self.reader.epoch(epoch, seed=self.recipe.seed, batch_size=self.recipe.batch_size):
            if len(seen.labels_N) > 1:  # batch norm has no statistics of one image
                with torch.enable_grad():
                    self._step(functional.cross_entropy(self.detector(seen.sources[self.key]), seen.labels_N))
        self._see_that_it_converges()

    def fine_tune(self, epoch: int) -> None:
        """Train on every image once, and on as many outliers."""
        if 2 * epoch >= self.recipe.finetune_epochs and epoch:
            for group in self.adam.param_groups:
                group["lr"] = self.recipe.lr / 10
        generator = seeded("outliers", self.recipe.seed, epoch)
        half, number = self.recipe.batch_size // 2, self.recipe.epochs + epoch  # epochs go on: their orders differ
        for seen in self.reader.epoch(number, seed=self.recipe.seed, batch_size=half):
            labels_N = seen.labels_N
            strange = self._outliers(len(labels_N), generator)
            with torch.enable_grad():
                logits = self.detector(torch.cat([seen.sources[self.key], strange]))
                inside_N, outside_N = torch.tensor_split(-torch.logsumexp(logits, 1), [len(labels_N)])
                hinges = functional.relu(inside_N - INSIDE).square().mean()
                hinges = hinges + functional.relu(OUTSIDE - outside_N).square().mean()
                loss = functional.cross_entropy(logits[: len(labels_N)], labels_N)
                self._step(loss + MARGIN_WEIGHT * hinges)
        self._see_that_it_converges()

    def _outliers(self, num: int, generator: torch.Generator) -> Tensor:
        """Return the layer's activations of `num` outliers."""
        if self.outliers is not None:
            chosen = torch.randint(self.outliers.num, (num,), generator=generator)
            return activations(self.work, self.key, self.outliers.batch(chosen))
        chosen = torch.randint(self.reader.num_images, (num,), generator=generator)
        pixels = made_outliers(self.work.images.fit.batch(chosen), self.recipe.outliers, generator)
        return activations(self.work, self.key, pixels)

    def _step(self, loss: Tensor) -> None:
        self.loss = loss.detach()
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()

    def _see_that_it_converges(self) -> None:
        """Check the last loss, once an epoch since the host waits for it; after NaN or infinity it does not recover."""
        if not torch.isfinite(self.loss):
            raise StitchgridError(
                f"the loss of a detector is {self.loss.item()}; lower lr in [diagnostics.energy] "
                f"(now {self.recipe.lr:g})."
            )


def activations(work: Workspace, key: LayerKey, pixels: Pixels) -> Tensor:
    """Return a layer's activations of images, float32.

    Raises:
        InputError: If the images do not have the size the network takes.
    """
    size = work.batch_size
    try:
        parts = [forward(work, pixels[k : k + size], {key[0]: [key[1]]})[0] for k in range(0, len(pixels), size)]
    except RuntimeError as problem:
        if is_out_of_memory(problem):
            raise
        wanted = work.sweep.networks[key[0]].input_shape
        raise InputError(
            f"outliers cannot be run by {work.sweep.networks[key[0]].name!r}, which takes {wanted[1]}x{wanted[2]} "
            f"({problem}); use outliers of the images' size, or give the model `preprocess = {{ resize = ... }}`."
        ) from problem
    found = torch.cat([part[key].float() for part in parts])
    if found.shape[1:] != work.layer(key).shape:
        raise InputError(
            f"outliers give {work.layer(key).name!r} the shape {tuple(found.shape[1:])} instead of "
            f"{work.layer(key).shape}; use outliers of the images' size, or give the model a `preprocess`."
        )
    return found


def made_outliers(pixels: Pixels, kind: str, generator: torch.Generator) -> Pixels:
    """Return outliers made from images: uniform noise of their size, or their 4x4 patches in another order.

    Pixels beyond four equal patches on a side stay where they are.
    """
    if not isinstance(pixels, Tensor):
        return [made_outliers(image[None], kind, generator)[0] for image in pixels]
    if kind == "noise":
        noise = torch.randint(256, pixels.shape, generator=generator, dtype=torch.uint8)
        return noise.to(pixels.device)
    num, channels, height, width = pixels.shape
    high, wide = height // GRID, width // GRID
    inner = pixels[:, :, : GRID * high, : GRID * wide].reshape(num, channels, GRID, high, GRID, wide)
    patches = inner.permute(0, 2, 4, 1, 3, 5).reshape(num, GRID * GRID, channels, high, wide)
    order = torch.rand(num, GRID * GRID, generator=generator).argsort(1).to(pixels.device)
    shuffled = patches[torch.arange(num, device=pixels.device)[:, None], order]
    back = shuffled.view(num, GRID, GRID, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
    found = pixels.clone()
    found[:, :, : GRID * high, : GRID * wide] = back.reshape(num, channels, GRID * high, GRID * wide)
    return found


@torch.no_grad()
def _check(work: Workspace, key: LayerKey, detector: Detector, start: int, stop: int) -> None:
    """Note how well a detector does on the images kept out, and on outliers of another kind than its own."""
    assert work.sweep.energy is not None
    kind = OTHER_KIND[work.sweep.energy.recipe.outliers]
    generator = seeded("sanity check", work.sweep.energy.recipe.seed)
    right, scores_in, scores_out = [], [], []
    for indices in torch.split(torch.arange(start, stop), work.batch_size):
        pixels = work.images.fit.batch(indices)
        inside = activations(work, key, pixels)
        right.append(detector(inside).argmax(1) == work.images.fit.labels[indices].to(work.device))
        scores_in.append(detector.score(inside))
        scores_out.append(detector.score(activations(work, key, made_outliers(pixels, kind, generator))))
    found = detection(torch.cat(scores_in), torch.cat(scores_out)[None])
    detector.accuracy.copy_(torch.cat(right).float().mean())
    detector.sanity_auroc.copy_(found["auroc"][0])
    _log.info(
        "detector of %s %s: accuracy %.3f on %d images kept out, AUROC %.3f against %s",
        work.sweep.networks[key[0]].name,
        work.layer(key).name,
        detector.accuracy.item(),
        stop - start,
        detector.sanity_auroc.item(),
        kind,
    )
