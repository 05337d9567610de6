"""What a module returned: one tensor, or a tuple, dictionary or object that holds the tensor that goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from stitchgrid.models.dry_run import memory_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """The tensor that a module returned, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]  # axes from the slowest to the fastest in memory
    made_by: Node | None  # of autograd's graph: None where it does not depend on the images
    number: int = 0  # which of the tensors that this node made
    images: int = 0  # which axis is the axis of images

    @property
    def shape_of_image(self) -> tuple[int, ...]:
        """Shape of one image's part."""
        return self.shape[: self.images] + self.shape[self.images + 1 :]

    def laid_out(self, a: Tensor) -> Tensor:
        """Return a copy of `a` (images first) in new memory, with the module's axes and their order in memory."""
        a = a.movedim(0, self.images)
        dtype = a.dtype if self.dtype == torch.float32 else self.dtype  # a job's precision may be another than float32
        return torch.empty_permuted(a.shape, self.order, dtype=dtype, device=a.device).copy_(a)

    def zeros(self, num_images: int, device: torch.device, *, own_memory: bool) -> Tensor:
        """Return zeros in its place for some images; without `own_memory` they share one image's memory."""
        rest = self.shape_of_image
        shape = (*rest[: self.images], num_images if own_memory else 1, *rest[self.images :])
        zeros = torch.empty_permuted(shape, self.order, dtype=self.dtype, device=device).zero_()
        return zeros if own_memory else zeros.expand(*rest[: self.images], num_images, *rest[self.images :])

    def of(self, images: int | None) -> "Returned":
        """Return the same with another axis for the images."""
        return self if images is None else replace(self, images=images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """The container of the tensor that goes on: a tuple, list, dictionary, or an object such as transformers return."""

    spec: pytree.TreeSpec
    slot: int  # which of its leaves is the tensor
    others: tuple[Any, ...]  # its leaves: `Returned` for tensors, that one left out; else the plain value

    @property
    def is_plain(self) -> bool:
        """Whether nothing else in it is a tensor."""
        return not any(isinstance(one, Returned) for one in self.others)

    def is_like(self, other: "Wrapping | None") -> bool:
        """Return whether the container of another run is the same, with tensors in the same places."""
        return (
            other is not None
            and (self.spec, self.slot) == (other.spec, other.slot)
            and all(map(_are_alike, self.others, other.others))
        )

    def wrap(self, tensor: Tensor, num_images: int) -> Any:
        """Return a tensor in the same container, with zeros in place of other tensors."""
        leaves = [
            one.zeros(num_images, tensor.device, own_memory=True) if isinstance(one, Returned) else one
            for one in self.others
        ]
        leaves[self.slot] = tensor
        return pytree.tree_unflatten(leaves, self.spec)


def _are_alike(one: Any, other: Any) -> bool:
    if isinstance(one, Returned) or isinstance(other, Returned):
        return isinstance(one, Returned) and isinstance(other, Returned)
    return type(one) is type(other) and bool(one == other)


def tensor_in(value: Any, slot: int | None) -> Tensor | None:
    """Return the tensor that goes on in what a module returned, None where there is none at its place."""
    found = value if slot is None else _leaf(value, slot)
    return found if isinstance(found, Tensor) else None


def _leaf(value: Any, slot: int) -> Any:
    leaves = pytree.tree_leaves(value)
    return leaves[slot] if slot < len(leaves) else None


def described(value: Any, slot: int | None) -> tuple[Returned | None, Wrapping | None]:
    """Describe what a module returned, without values: the tensor at `slot`, by default the first, and its container.

    Both are None where there is no floating-point tensor with more than one axis.
    """
    if isinstance(value, Tensor):
        return of_tensor(value), None
    leaves, spec = pytree.tree_flatten(value)
    at = next((k for k, leaf in enumerate(leaves) if slot in {None, k} and _can_go_on(leaf)), None)
    if at is None or spec.is_leaf():
        return None, None
    parts = tuple(of_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    others = tuple(None if k == at else part for k, part in enumerate(parts))
    return parts[at], Wrapping(spec=spec, slot=at, others=others)


def _can_go_on(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1


def of_tensor(value: Tensor) -> Returned:
    """Describe a tensor, without its values."""
    return Returned(
        shape=tuple(value.shape),
        dtype=value.dtype,
        order=memory_order(value),
        made_by=value.grad_fn,
        number=value.output_nr,
    )


def images_axis(shapes: Sequence[tuple[int, ...] | None], num_images: Sequence[int]) -> int | None:
    """Return the one axis of a tensor that has as many entries as there were images in every run.

    None where there is not exactly one, where other axes differ between runs, or where a run had no tensor.

    >>> images_axis([(5, 2, 7), (5, 3, 7)], [2, 3])
    1
    """
    given = [shape for shape in shapes if shape is not None]
    if len(given) < len(shapes) or len({len(shape) for shape in given}) > 1:
        return None
    sizes = list(zip(*given, strict=True))
    found = [axis for axis, size in enumerate(sizes) if size == tuple(num_images)]
    others = (len(set(size)) == 1 for axis, size in enumerate(sizes) if axis not in found)
    return found[0] if len(found) == 1 and all(others) else None
