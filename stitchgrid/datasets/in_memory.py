"""Images that a Python session holds -> the two splits of a sweep: arrays, tensors, and torch's data sets.

Shape suffixes: N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from stitchgrid.datasets.images import Images, Split
from stitchgrid.datasets.numeric_labels import as_labels
from stitchgrid.datasets.sources import permutation
from stitchgrid.datasets.user_dataset import as_rgb
from stitchgrid.errors import InputError

WANTED = (
    "a tensor or array (N, C, H, W), a torch Dataset with a length, whose items are (image, label) or images, or the "
    "path of a folder with a folder for each class"
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images from the user; none of them is read yet."""

    what: str  # for errors: "images" or "fit"
    items: Any  # a tensor (N, C, H, W), or a data set
    labels: NDArray[np.int64] | None  # None: items have their own, or there are none
    classes: tuple[str, ...] = ()  # names that came with them

    @property
    def num(self) -> int:
        """Number of images."""
        return len(self.items)


def given(what: str, images: Any, labels: Any = None) -> Given:
    """Return images and labels as they were given to an argument that is called `what`.

    Raises:
        InputError: If the type is not supported, or the number of labels differs from that of images.
    """
    if isinstance(images, DataLoader):
        images = images.dataset
    if isinstance(images, TensorDataset) and len(images.tensors) <= 2:
        images, *own = images.tensors
        labels = own[0] if own and labels is None else labels
    if isinstance(images, tuple) and len(images) == 2 and labels is None and _has_many(images[0]):
        images, labels = images
    if isinstance(images, Tensor | np.ndarray):
        images = _checked(what, images)
    elif not (hasattr(images, "__len__") and hasattr(images, "__getitem__")) or isinstance(images, str | bytes | dict):
        raise InputError(f"{what} is a {type(images).__name__}; wanted {WANTED}.")
    if not len(images):
        raise InputError(f"{what} holds no image; wanted {WANTED}.")
    found = None
    if labels is not None:
        found = as_labels(labels.cpu() if isinstance(labels, Tensor) else labels, f"labels of {what}")
        if len(found) != len(images):
            raise InputError(f"{what} has {len(images)} images and {len(found)} labels; give a label for each image.")
    names = getattr(images, "classes", None)
    classes = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    return Given(what=what, items=images, labels=found, classes=classes)


def _has_many(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 4


def _checked(what: str, images: Any) -> Tensor:
    """Return a tensor of images on the CPU: uint8 with 1 or 3 channels, or floating-point with any number."""
    found = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if found.dim() != 4:
        raise InputError(f"{what} has the shape {tuple(found.shape)}; wanted (N, C, H, W): images, channels, sides.")
    if found.dtype == torch.uint8 and found.shape[1] not in (1, 3):
        raise InputError(
            f"{what} are bytes of the shape {tuple(found.shape)}; wanted 1 or 3 channels behind the images "
            "(N, C, H, W). Channels that come last are moved by .movedim(-1, 1)."
        )
    if found.dtype != torch.uint8 and not found.is_floating_point():
        raise InputError(
            f"{what} are {str(found.dtype).removeprefix('torch.')}; wanted uint8 from 0 to 255, which is scaled to "
            "[0, 1], or floating-point numbers just as the networks take them."
        )
    return found.detach().cpu()


def draw_given(eval_images: Given, fit_images: Given | int, *, seed: int, num: int | None, labelled: bool) -> Images:
    """Draw both splits from images that were given.

    Args:
        eval_images: The evaluation images.
        fit_images: The images on which maps are fitted; a number takes so many of `eval_images`, which are then not
            evaluated.
        seed: Seed of the order.
        num: Number of evaluation images; None: all that are left.
        labelled: Whether labels are used if there are any.

    Raises:
        InputError: If there are too few images, they differ in shape or type, or are not finite.
    """
    shared = isinstance(fit_images, int)
    num_fit = fit_images if isinstance(fit_images, int) else 0
    left = eval_images.num - num_fit
    wanted = left if num is None else num
    if not 0 < wanted <= left:
        raise InputError(
            f"{eval_images.what} has {eval_images.num} images; {num_fit} of them to fit maps on and {wanted} to "
            "measure on are more than that. Lower `fit` or `samples`, or give `fit` images of its own."
        )
    order = permutation("eval", seed, eval_images.num)
    found = [_read(eval_images, order[: wanted + num_fit])]
    if not shared:
        assert isinstance(fit_images, Given)
        found.append(_read(fit_images, permutation("fit", seed, fit_images.num)))
    measured = found[0].part(0, wanted)
    fitted = found[0].part(wanted, None) if shared else found[1].part(0, None)
    if not shared and found[0].channels != found[1].channels:
        raise InputError(
            "images and fit are not alike: one has bytes, the other floating-point numbers, or they "
            "differ in channels; prepare both in one way."
        )
    is_labelled = labelled and all(one.labels is not None for one in found)
    highest = max((int(one.labels.max()) for one in found if one.labels is not None), default=-1)
    names = eval_images.classes if len(eval_images.classes) > highest else tuple(map(str, range(highest + 1)))
    return Images(
        fit=fitted,
        eval=measured,
        class_names=names if is_labelled else (),
        num_bad=0,
        num_fit_listed=fitted.num,
        is_grey=found[0].is_grey,
        may_know_more=len(eval_images.classes) <= highest,
    )


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Images that were read, in drawn order."""

    pixels: NDArray[np.uint8]  # flat
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    channels: int | None  # of floating-point numbers; None: bytes, as RGB
    is_grey: bool

    def part(self, start: int, stop: int | None) -> Split:
        some = slice(start, stop)
        labels = np.zeros(len(self.offsets), np.int64) if self.labels is None else self.labels
        arrays = self.pixels, self.offsets[some], self.sizes[some], labels[some]
        return Split(*arrays, channels=self.channels or 3, is_float=self.channels is not None)


def _read(images: Given, order: NDArray[np.int64]) -> _Read:
    labels = None if images.labels is None else images.labels[order]
    if isinstance(images.items, Tensor):
        return _of_tensor(images.what, images.items, order, labels)
    items = [_item(images, index) for index in order.tolist()]
    if labels is None and all(label is not None for _, label in items):
        labels = as_labels(np.array([int(label) for _, label in items]), f"labels of {images.what}")
    pictures = [picture for picture, _ in items]
    if all(isinstance(picture, Tensor) and picture.is_floating_point() for picture in pictures):
        if len(shapes := {tuple(picture.shape) for picture in pictures}) > 1 or pictures[0].dim() != 3:
            raise InputError(
                f"{images.what} are tensors of the shapes {sorted(shapes)[:3]}; wanted one shape (C, H, W): resize and "
                "crop them in the data set's transform."
            )
        return _of_tensor(images.what, torch.stack(pictures), np.arange(len(pictures)), labels)
    rgb = [_rgb(images.what, picture, index) for picture, index in zip(pictures, order.tolist(), strict=True)]
    sizes = np.array([one.shape[1:] for one in rgb], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum([one.size for one in rgb])
    offsets = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    return _Read(
        pixels=np.concatenate([one.reshape(-1) for one in rgb]),
        offsets=offsets,
        sizes=sizes,
        labels=labels,
        channels=None,
        is_grey=all(_is_grey(picture) for picture in pictures),
    )


def _is_grey(picture: Any) -> bool:
    mode, shape = getattr(picture, "mode", ""), np.shape(picture)
    return mode in ("1", "L") or (mode == "" and (len(shape) == 2 or shape[0] == 1))


def _of_tensor(what: str, x_NCHW: Tensor, order: NDArray[np.int64], labels: NDArray[np.int64] | None) -> _Read:
    """Return the images of a tensor, without a copy if the tensor has the needed type and layout."""
    channels, height, width = x_NCHW.shape[1:]
    is_bytes = x_NCHW.dtype == torch.uint8
    if is_bytes and channels == 1:
        x_NCHW = x_NCHW.expand(-1, 3, -1, -1)
    x_NCHW = (x_NCHW if is_bytes else x_NCHW.float()).contiguous()
    if not is_bytes and not bool(torch.isfinite(x_NCHW).all()):
        raise InputError(f"{what} hold inf or NaN; leave those images out.")
    flat = x_NCHW.numpy().reshape(-1).view(np.uint8)
    size = len(flat) // max(1, len(x_NCHW))
    sizes = np.broadcast_to(np.array([height, width], dtype=np.int64), (len(order), 2))
    return _Read(
        pixels=flat,
        offsets=order * size,
        sizes=sizes,
        labels=labels,
        channels=None if is_bytes else channels,
        is_grey=is_bytes and channels == 1,
    )


def _item(images: Given, index: int) -> tuple[Any, Any]:
    try:
        item = images.items[index]
    except Exception as problem:  # the user's code may fail in any way
        raise InputError(f"{images.what}[{index}] cannot be read: {type(problem).__name__}: {problem}.") from problem
    is_pair = isinstance(item, Sequence) and not isinstance(item, str | bytes) and len(item) >= 2
    picture, label = item[:2] if is_pair else (item, None)
    if isinstance(label, Tensor | np.ndarray | np.integer) and np.size(label) == 1:
        label = label.item()
    return picture, label if isinstance(label, int) else None


def _rgb(what: str, picture: Any, index: int) -> NDArray[np.uint8]:
    try:
        return as_rgb(picture, None)[0].pixels
    except (ValueError, TypeError) as problem:
        raise InputError(
            f"{what}[{index}] is no image ({problem}); wanted a tensor (C, H, W) of floating-point numbers just as the "
            "networks take them, a PIL image, or uint8."
        ) from problem
