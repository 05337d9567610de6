"""`Images`, the data of a sweep: two splits in drawn order, whose pixels stay on disk until a batch needs them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Indices: TypeAlias = "Sequence[int] | NDArray[np.integer[Any]] | Tensor"

HASH_CHUNK = 1_024  # images that are hashed together, so that hashing a large split needs little memory
HASH_BYTES = 64_000_000  # if a chunk has more bytes, its images are hashed one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The listing of a split: its number of images, and its classes."""

    num: int
    class_names: tuple[str, ...]  # of all splits in use
    absent: tuple[str, ...] = ()  # classes without an image in this split, as far as that is known
    left_out: tuple[tuple[str, int], ...] = ()  # (kind of file, how many files of the split are not read)
    is_numbered: bool = False  # the names of the classes are only their numbers


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagePool:
    """Decoded images: pixels in the order of decoding, all other arrays in drawn order."""

    pixels: NDArray[np.uint8]  # flat, often memory-mapped; one image is channels*H*W bytes
    offsets: NDArray[np.int64]  # (num,): where the pixels of each image begin
    sizes: NDArray[np.int64]  # (num, 2): height and width of each
    labels: NDArray[np.int64]  # (num,)
    listing: Listing  # of the whole split
    num_bad: int  # unreadable images that were skipped
    channels: int = 3  # 3: red, green, blue
    remarks: tuple[str, ...] = ()  # on how the drawn images were read
    measured: tuple[tuple[float, float], ...] = ()  # ranges that may be the smallest and largest value of one image
    digest: str = ""  # `Split.digest` of all images; "" if it is not known
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # in the split's sorted listing

    def split(self, start: int, stop: int | None = None) -> "Split":
        """Return the images from `start` to `stop`, by position in drawn order."""
        part = slice(start, stop)
        is_known = self.digest and len(self.labels[part]) == len(self.labels)
        known = {len(self.labels): self.digest} if is_known else {}
        arrays = self.pixels, self.offsets[part], self.sizes[part], self.labels[part]
        return Split(*arrays, known, self.places[part], channels=self.channels)


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, in drawn order; `samples = n` means the first n of them."""

    _pixels: NDArray[np.uint8]
    _offsets: NDArray[np.int64]
    _sizes: NDArray[np.int64]
    _labels: NDArray[np.int64]
    _digests: dict[int, str] = field(default_factory=dict)
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # in the split's sorted listing
    channels: int = 3  # of bytes, 3 are red, green, blue
    is_float: bool = False  # float32 images, which go to networks unchanged; else bytes

    @property
    def num(self) -> int:
        """Number of images."""
        return len(self._labels)

    @cached_property
    def labels(self) -> "Tensor":
        """Class of each image, int64."""
        import torch

        return torch.from_numpy(self._labels.copy())

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images; None if they differ, or if there are none."""
        if self.num == 0 or (self._sizes != self._sizes[0]).any():
            return None
        return int(self._sizes[0, 0]), int(self._sizes[0, 1])

    @property
    def num_bytes(self) -> int:
        """Size of the pixels of all images."""
        return int(self._bytes(np.arange(self.num)).sum())

    @overload
    def batch(self, start: int, stop: int) -> "Tensor | list[Tensor]": ...
    @overload
    def batch(self, start: Indices) -> "Tensor | list[Tensor]": ...
    def batch(self, start: "int | Indices", stop: int | None = None) -> "Tensor | list[Tensor]":
        """Return images as uint8 (N, C, H, W), or as a list of (C, H, W) if the split's images differ in size.

        Those of `is_float` are float32 (N, C, H, W). The arguments are positions in drawn order: `batch(start, stop)`
        takes a slice, `batch(indices)` takes any positions.
        """
        import torch

        chosen = np.arange(self.num)[start:stop] if isinstance(start, int) else np.asarray(start, dtype=np.int64)
        flat = torch.from_numpy(self._gather(chosen))
        if self.size is not None:
            numbers = flat.view(torch.float32) if self.is_float else flat
            return numbers.view(len(chosen), self.channels, *self.size)
        if self.num == 0:
            return flat.view(0, self.channels, 0, 0)
        sizes = self._sizes[chosen]
        parts = torch.split_with_sizes(flat, (self.channels * sizes.prod(axis=1)).tolist())
        return [part.view(self.channels, int(h), int(w)) for part, (h, w) in zip(parts, sizes, strict=True)]

    def relabelled(self, new_labels: NDArray[np.int64]) -> "Split":
        """Return the split with each label k replaced by `new_labels[k]`."""
        if np.array_equal(new_labels, np.arange(len(new_labels))):
            return self
        return replace(self, _labels=new_labels[self._labels], _digests={})

    def digest(self, num: int) -> str:
        """Return 32 hex digits of the SHA-256 over number, sizes, labels and pixels of the first `num` images.

        Raises:
            ValueError: If the split has fewer images.
        """
        if not 0 <= num <= self.num:
            raise ValueError(f"wanted at most {self.num} images, the size of the split, got {num}")
        if num not in self._digests:
            sha = hashlib.sha256(num.to_bytes(8, "little"))
            if self.is_float or self.channels != 3:
                sha.update(f"{'float32' if self.is_float else 'uint8'} {self.channels}".encode())
            sha.update(np.ascontiguousarray(self._sizes[:num], dtype="<i8").data)
            sha.update(np.ascontiguousarray(self._labels[:num], dtype="<i8").data)
            for start in range(0, num, HASH_CHUNK):
                chosen = np.arange(start, min(start + HASH_CHUNK, num))
                is_small = self._bytes(chosen).sum() <= HASH_BYTES
                for some in [chosen] if is_small else chosen[:, None]:
                    sha.update(self._gather(some).data)
            self._digests[num] = sha.hexdigest()[:32]
        return self._digests[num]

    def _bytes(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of bytes of each of these images."""
        numbers: NDArray[np.int64] = self._sizes[chosen].prod(axis=1)
        return (4 if self.is_float else 1) * self.channels * numbers

    def _gather(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        if len(chosen) == 0:
            return np.empty(0, np.uint8)
        starts = self._offsets[chosen]
        stops = starts + self._bytes(chosen)
        # The result is a copy, so that code that writes into a batch does not change the shared cache.
        return np.concatenate([self._pixels[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Origin:
    """The split from which images were drawn."""

    split: str
    num: int  # images of the split, drawn or not
    num_before: int  # images of the split that are drawn before these: the evaluation images, if fit and eval share it
    names: Callable[[], Sequence[str]]  # names of images in sorted order; empty if they have none


@dataclass(frozen=True, eq=False, kw_only=True)
class Images:
    """The images of a sweep, the same for every worker that opens the same `DataSpec`."""

    fit: Split  # for fitting maps and training networks; closed-form kinds use its first `fit_samples`
    eval: Split  # for evaluation
    class_names: tuple[str, ...]  # in the order of the data set or of the job; a label is a position in it
    num_bad: int  # unreadable images that were skipped
    num_fit_listed: int  # images of the whole fit split, of which fewer may be drawn
    notices: tuple[str, ...] = ()  # for the user: classes without images, files that were left out, ...
    origins: tuple["Origin", ...] = ()  # of the fit images, then of the evaluation images
    may_know_more: bool = False  # labels are only numbers, so networks may have more classes than the images show
    is_grey: bool = False  # the images had one channel, which was repeated

    @property
    def is_labelled(self) -> bool:
        """Whether the images have classes."""
        return bool(self.class_names)

    def are_labels_of(self, num_classes: int) -> bool:
        """Return whether the labels can be the classes of a network with `num_classes` classes."""
        if not self.is_labelled:
            return False
        return num_classes == self.num_classes or (self.may_know_more and num_classes > self.num_classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)
