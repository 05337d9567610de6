"""Training one network by a recipe: a plain loop whose every draw comes from a generator seeded by the network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

from stitchgrid.errors import InputError, JobFileError, StitchgridError, nearest
from stitchgrid.models.adapt import adapt
from stitchgrid.models.build import make_network
from stitchgrid.models.freeze import freeze
from stitchgrid.models.memory import move
from stitchgrid.models.user_forward import quietly
from stitchgrid.preprocess import augment_crop4_flip, on_device
from stitchgrid.records import NetworkSpec, Recipe

# Shape suffixes: N images, C channels, H height, W width, K classes.

_AUGMENTATIONS = ("none", "crop4_flip")
_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


class TrainableImages(Protocol):
    """Images that a network can be trained on."""

    @property
    def num(self) -> int:
        """Number of images."""

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64 (N,)."""

    def batch(self, start: Tensor, /) -> Tensor | list[Tensor]:
        """Return the images at these positions as uint8 (N, C, H, W), or one by one where sizes differ."""


TWIN_IMAGES, TWIN_BATCH = 1_000, 100  # from which the batch norms of untrained twins get their statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNetwork:
    """A trained network, frozen, with its loss and accuracy on the training images while the last epoch trained it."""

    module: nn.Module
    loss: float
    accuracy: float


def train_network(
    spec: NetworkSpec,
    images: TrainableImages,
    preprocess: Callable[[Tensor | list[Tensor]], Tensor],
    *,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> TrainedNetwork:
    """Return the network of `spec` trained by its recipe, frozen.

    Args:
        spec: Architecture, seed and recipe.
        images: The training images.
        preprocess: Turns uint8 pixels into the network's input.
        device: Where it is trained, and stays.
        on_epoch: Called after each epoch with its number from 1, loss and accuracy.

    Raises:
        JobFileError: If the recipe names an optimizer, schedule or augmentation that does not exist.
        InputError: If a label has no output in the network's head.
        StitchgridError: If the loss becomes infinite or NaN.
    """
    assert spec.recipe is not None, spec.name
    with quietly():
        run = _TrainingRun(spec, spec.recipe, images, preprocess, torch.device(device))
    loss = accuracy = float("nan")
    devices = [run.device] if run.device.type == "cuda" else []
    with quietly(), torch.random.fork_rng(devices=devices):  # dropout draws from the device's own generator
        torch.manual_seed(spec.seed)
        for epoch in range(1, spec.recipe.epochs + 1):
            loss, accuracy = run.epoch(epoch)
            if on_epoch is not None:
                on_epoch(epoch, loss, accuracy)
    return TrainedNetwork(module=freeze(run.module), loss=loss, accuracy=accuracy)


@torch.no_grad()
def initialise_twin(
    spec: NetworkSpec,
    images: TrainableImages,
    preprocess: Callable[[Tensor | list[Tensor]], Tensor],
    *,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return the untrained twin of a network, frozen, with the weights that its architecture draws.

    Batch norms get the statistics of one pass over the first `TWIN_IMAGES` images, the mean over its batches, so that
    activations have a sensible scale. All other modules are in eval mode.
    """
    with quietly():
        module = adapt(move(make_network(spec), torch.device(device), spec.name), spec.interface).eval()
        norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._NormBase)]
        before = [one.momentum for one in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for indices in torch.split(torch.arange(min(TWIN_IMAGES, images.num)), TWIN_BATCH) if norms else ():
            module(preprocess(on_device(images.batch(indices), torch.device(device))))
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
    return freeze(module)


class _TrainingRun:
    """One training: network, optimiser, schedule and generator, advanced an epoch at a time."""

    def __init__(
        self,
        spec: NetworkSpec,
        recipe: Recipe,
        images: TrainableImages,
        preprocess: Callable[[Tensor | list[Tensor]], Tensor],
        device: torch.device,
    ):
        self.spec, self.recipe, self.images, self.preprocess, self.device = spec, recipe, images, preprocess, device
        if recipe.augment not in _AUGMENTATIONS:
            raise JobFileError(f"unknown augment {recipe.augment!r}; {nearest(recipe.augment, _AUGMENTATIONS)}.")
        self.module = adapt(move(make_network(spec), device, spec.name), spec.interface)
        self._check_labels()
        self.module.train()
        # batches of nearly equal size: no image is dropped, and no short batch weighs more than the others
        self.num_batches = -(-images.num // recipe.batch_size)
        self.optimizer = _optimizer(recipe, self.module)
        self.schedule = _schedule(recipe, self.optimizer, recipe.epochs * self.num_batches)
        self.generator = Generator().manual_seed(spec.seed)

    def epoch(self, number: int) -> tuple[float, float]:
        """Train on every image once; return the mean loss and the accuracy of the scores it was trained with."""
        total_loss, num_right = torch.zeros(2, dtype=torch.float64, device=self.device)
        order = torch.randperm(self.images.num, generator=self.generator)
        for step, indices in enumerate(order.tensor_split(self.num_batches), start=1):
            labels_N = self.images.labels[indices].to(self.device)
            logits_NK = self.module(self._inputs(indices))
            loss = F.cross_entropy(logits_NK, labels_N)
            if not torch.isfinite(loss):
                raise StitchgridError(
                    f"the loss of training {self.spec.name!r} is {loss.item()} at step {step} of epoch "
                    f"{number}; lower the recipe's lr (now {self.recipe.lr:g})."
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            total_loss += loss.detach().double() * len(indices)
            num_right += (logits_NK.argmax(1) == labels_N).sum()
        return total_loss.item() / self.images.num, num_right.item() / self.images.num

    def _inputs(self, indices: Tensor) -> Tensor:
        pixels = on_device(self.images.batch(indices), self.device)
        if self.recipe.augment == "crop4_flip":
            pixels = augment_crop4_flip(pixels, self.generator)
        return self.preprocess(pixels)

    def _check_labels(self) -> None:
        """Compare the labels with the network's outputs for one image, in eval mode so that no statistic moves."""
        self.module.eval()
        with torch.no_grad():
            image = on_device(self.images.batch(torch.arange(1)), self.device)
            num_outputs = self.module(self.preprocess(image)).shape[-1]
        lowest, highest = int(self.images.labels.min()), int(self.images.labels.max())
        if lowest < 0 or highest >= num_outputs:
            raise InputError(
                f"labels run from {lowest} to {highest}, but the head of {self.spec.name!r} has {num_outputs} outputs; "
                f"set num_classes = {highest + 1} in the model's args."
            )


def _optimizer(recipe: Recipe, module: nn.Module) -> Optimizer:
    if recipe.optimizer not in _OPTIMIZERS:
        raise JobFileError(f"unknown optimizer {recipe.optimizer!r}; {nearest(recipe.optimizer, _OPTIMIZERS)}.")
    extra = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    make = _OPTIMIZERS[recipe.optimizer]
    return make(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, **extra)


def _schedule(recipe: Recipe, optimizer: Optimizer, num_steps: int) -> LRScheduler:
    """Return the schedule of the learning rate, to be advanced after every step."""
    schedules: dict[str, Callable[..., Any]] = {
        "constant": partial(ConstantLR, factor=1.0),
        "cosine": partial(CosineAnnealingLR, T_max=num_steps),
        "onecycle": partial(OneCycleLR, max_lr=recipe.lr, total_steps=num_steps, cycle_momentum=False),
    }
    if recipe.schedule not in schedules:
        raise JobFileError(f"unknown schedule {recipe.schedule!r}; {nearest(recipe.schedule, schedules)}.")
    schedule: LRScheduler = schedules[recipe.schedule](optimizer)
    return schedule
