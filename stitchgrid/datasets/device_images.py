"""Images that are kept in an accelerator's memory, so that batches need no copy from the host."""

from typing import Protocol

import torch
from torch import Tensor

from stitchgrid.datasets.images import Images, Split

CHUNK = 4_096  # images copied at a time
SHARE = 0.25  # of a device's free memory, for the images of both splits


class Pictures(Protocol):
    """The interface of a split for the engine."""

    @property
    def num(self) -> int:
        """Number of images."""
        ...

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64."""
        ...

    def batch(self, start: Tensor) -> Tensor | list[Tensor]:
        """Return the images at these positions, as `Split.batch` does."""
        ...


class PicturePair(Protocol):
    """The two splits of a sweep."""

    @property
    def fit(self) -> Pictures:
        """Images on which maps are fitted."""
        ...

    @property
    def eval(self) -> Pictures:
        """Images on which everything is evaluated."""
        ...


class ResidentSplit:
    """A split whose pixels and labels are in a device's memory."""

    def __init__(self, split: Split, device: torch.device):
        parts = (split.batch(start, start + CHUNK) for start in range(0, split.num, CHUNK))
        on_device = [part.to(device) for part in parts if isinstance(part, Tensor)]
        self.num = split.num
        self.pixels_NCHW = (
            torch.cat(on_device) if on_device else torch.empty(0, split.channels, 0, 0, dtype=torch.uint8)
        )
        self.labels = split.labels.to(device)

    def batch(self, start: Tensor) -> Tensor:
        """Return the images at these positions, on the device."""
        return self.pixels_NCHW[start.to(self.pixels_NCHW.device)]


class ResidentImages:
    """Both splits of a sweep in a device's memory."""

    def __init__(self, images: Images, device: torch.device):
        self.fit, self.eval = ResidentSplit(images.fit, device), ResidentSplit(images.eval, device)


def near(images: Images, device: torch.device, *, sharing: int = 1) -> PicturePair:
    """Return the images in the device's memory if it is a GPU with enough room and each split has one image size.

    Otherwise return `images` unchanged. `sharing` is the number of workers that share the device's memory.
    """
    splits = [split for split in (images.fit, images.eval) if split.num]
    if device.type != "cuda" or any(split.size is None for split in splits):
        return images
    num_bytes = sum(split.num_bytes for split in splits)
    free, total = torch.cuda.mem_get_info(device)
    return ResidentImages(images, device) if num_bytes <= SHARE * min(free, total // sharing) else images
