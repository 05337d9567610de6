"""Proof of a network on real images, before anything is measured with it.

Its scores and its activations at the selected cuts must depend on each image alone and be the same in two runs, and its
halves must give the scores of the whole. Stitched networks run in stacks and batches of any size: a network that
depends on its batch would give other values in each.

Shape suffixes: N images.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stitchgrid.errors import breaks_worker, is_out_of_memory, message_of
from stitchgrid.models.batch_dependence import Blame, batch_norms_told, find_blame
from stitchgrid.models.cuts import CutNetwork

TOLERANCES = {  # relative, of an image's activations: by the type in which a network computes
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}
OF_PRECISION = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 3e-2}
MAX_FLIPPED = 0.02  # share of images for which rounding may change a decision, of a network with argmin or routing
MIN_LOOKED_AT = 50  # fewest images that show this share
ROUNDING = 1e-6  # relative change of the input that imitates rounding elsewhere in a network
SMALL_BATCH = 10  # images, of batches that are compared with full ones
NUM_NUDGES = 20  # such changes tried on an image that may lie on the edge of a decision
BATCH = 50  # images run together to find the share of MAX_FLIPPED
MAX_SCORE_ERROR = 0.1  # largest relative change of scores that can count as rounding
MARGIN = 10  # a difference up to this many times what the change by ROUNDING makes counts as rounding


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images on which a network is proven, as it takes them."""

    ordinary: Tensor  # from the beginning and the end of the first batch
    extreme: Tensor  # the darkest and the brightest
    batch: Callable[[], Tensor]  # the first full batch: it begins and ends with the ordinary ones
    more: Callable[[], Tensor]  # many images, from the first on, to find what happens to only a few
    in_full: Callable[[], tuple[Tensor, Tensor]]  # scores in full batches: of ordinary and extreme images, and of
    # those of `more`; all images that are measured pass through the network once for it


@dataclass(kw_only=True)
class Findings:
    """What a proof found."""

    problems: list[str] = field(default_factory=list)  # why the network is refused
    remarks: list[str] = field(default_factory=list)  # notices about it


class Proof:
    """The checks, one after the other: the first that fails ends the proof."""

    def __init__(
        self,
        network: CutNetwork,
        nodes: Mapping[str, str],
        *,
        precision: Callable[[], AbstractContextManager[None]],
        tolerance: float,
        halves: bool = True,
    ):
        self.has_halves = halves  # whether the sweep runs anything through the halves
        self.network, self.names, self.precision = network, dict(nodes), precision
        self.names.setdefault(network.logits, "the scores")
        self.nodes = [*nodes, *([network.logits] if network.logits not in nodes else [])]
        self.tolerance = tolerance
        self.findings = Findings()
        self._by_itself: list[Tensor] = []  # activations at each node of images that were alone

    @torch.no_grad()
    def run(self, sample: Sample) -> Findings:
        """Return the problems of the network on these images, and the remarks about it."""
        checks = (
            self._finite,
            self._twice,
            self._whole,
            self._any_number,
            self._alone,
            self._in_full_batches,
            *([self._halves] if self.has_halves else []),
        )
        for check in checks:
            try:
                check(sample)
            except Exception as problem:  # the network's own code may fail in any way
                if is_out_of_memory(problem) or breaks_worker(problem):
                    raise
                self._refuse(f"it fails on real images ({first_line(problem)})")
            if self.findings.problems:
                break
        return self.findings

    def _refuse(self, text: str) -> None:
        self.findings.problems.append(text)

    def _taps(self, images: Tensor) -> list[Tensor]:
        with self.precision():
            return list(self.network.taps(self.nodes)(images))

    # The checks -------------------------------------------------------------------------------------------------------

    def _finite(self, sample: Sample) -> None:
        """Check that activations and scores are finite."""
        for images in (sample.ordinary, sample.extreme):
            for node, a in zip(self.nodes, self._taps(images), strict=True):
                if not torch.isfinite(a).all():
                    num = int((~torch.isfinite(a).flatten(1).all(1)).sum())
                    self._refuse(
                        f"its activations at {self.names[node]} are infinite or NaN on {num} of {len(a)} images, the "
                        "first place where they are; look at its weights, and at the job's precision"
                    )
                    return

    def _whole(self, sample: Sample) -> None:
        """Check that the graph or hooks give the same scores as the network's own forward."""
        images = torch.cat([sample.ordinary, sample.extreme])
        with self.precision():
            whole = self.network.whole(images)
        self._hold(
            [whole],
            [self._taps(images)[-1]],
            [self.network.logits],
            images,
            lambda _: (
                "cut up, it does not give the scores that it gives whole on these images; its forward must not "
                "choose between ways by a value of its input"
            ),
        )

    def _twice(self, sample: Sample) -> None:
        """Check that the same images give the same activations in two runs."""
        images = torch.cat([sample.ordinary, sample.extreme])
        first, again = self._taps(images), self._taps(images)
        self._hold(
            first,
            again,
            self.nodes,
            images,
            lambda node: (
                f"it does not give the same twice, from {self.names[node]} on; its forward must not be random "
                "in eval mode, nor keep anything from one batch for the next"
            ),
            forgives=False,
        )

    def _any_number(self, sample: Sample) -> None:
        """Check that the network runs on one image alone, and on a short batch, as the last one may be."""
        for num in (1, 3):
            images = sample.ordinary[:num]
            try:
                taken = self._taps(images)
            except Exception as problem:
                if is_out_of_memory(problem) or breaks_worker(problem):
                    raise
                why = batch_norms_told(self.network.module)
                self._refuse(f"it fails on a batch of {_images(num)} ({first_line(problem)}){why}")
                return
            for node, a in zip(self.nodes, taken, strict=True):
                if a.dim() < 2 or len(a) != len(images):
                    self._refuse(
                        f"from a batch of {_images(num)} it makes a tensor of {tuple(a.shape)} at {self.names[node]}; "
                        "the images must stay the first axis (squeeze() takes away an axis of one)"
                    )
                    return

    def _alone(self, sample: Sample) -> None:
        """Check that an image's activations are the same in a batch, in the reversed batch, and alone."""
        images = torch.cat([sample.ordinary, sample.extreme])
        together = self._taps(images)
        reverse = [a.flip(0) for a in self._taps(images.flip(0))]
        parts = [self._taps(images[k : k + 1]) for k in range(len(images))]
        self._by_itself = [torch.cat([part[k] for part in parts]) for k in range(len(self.nodes))]
        for others in (self._by_itself, reverse):
            if not self._hold(together, others, self.nodes, images, self._depends, more=sample.more):
                return

    def _in_full_batches(self, sample: Sample) -> None:
        """Check that images have the same scores in full batches as alone, and many of them as in small batches."""
        (scores, more_scores), end = sample.in_full(), self.nodes[-1:]
        images = torch.cat([sample.ordinary, sample.extreme])
        if bool((relative_error(scores, self._by_itself[-1]) > self.tolerance).any()):
            self._in_first_batch(sample)
        if not self.findings.problems:  # it may be a later batch that makes a difference
            self._hold([scores], self._by_itself[-1:], end, images, self._depends, more=sample.more)
        if not self.findings.problems:
            many, whole = sample.more(), self.network.taps(end)
            with self.precision():
                small = torch.cat([whole(part)[0].float() for part in torch.split(many, SMALL_BATCH)])
            self._hold([more_scores], [small], end, many, self._depends, more=sample.more)

    def _in_first_batch(self, sample: Sample) -> None:
        """Check that the first full batch gives its ordinary images the activations that each has alone."""
        batch, num = sample.batch(), len(sample.ordinary)
        places = [*range(num - num // 2), *range(len(batch) - num // 2, len(batch))]
        together = [a[places].clone() for a in self._taps(batch)]
        alone = [a[:num] for a in self._by_itself]
        self._hold(together, alone, self.nodes, sample.ordinary, self._depends, more=sample.more, blamed=batch)

    def _depends(self, node: str) -> str:
        return f"an image's activations depend on the other images of its batch, from {self.names[node]} on"

    def _halves(self, sample: Sample) -> None:
        """Check that the halves at each selected cut give the scores of the whole network."""
        batches = [sample.ordinary, sample.extreme]
        if self.network.way == "hooks":  # the part before a cut does not run as it did
            batches += list(torch.split(sample.extreme, 1))
        for images in batches:
            taken = self._taps(images)
            for node, a in zip(self.nodes, taken, strict=True):
                with self.precision():
                    scores = self.network.suffix(node)(a.float()).float()
                if not self._hold([scores], [taken[-1]], [node], images, self._breaks):
                    return

    def _breaks(self, node: str) -> str:
        return (
            f"its two halves at {self.names[node]} do not give the scores of the whole network on these images; what "
            "comes after a cut must depend on the activation there alone, not on the image or on what ran before"
        )

    # Comparisons ------------------------------------------------------------------------------------------------------

    def _hold(
        self,
        wanted: Sequence[Tensor],
        came: Sequence[Tensor],
        nodes: Sequence[str],
        images: Tensor,
        text: Callable[[str], str],
        *,
        more: Callable[[], Tensor] | None = None,
        blamed: Tensor | None = None,
        forgives: bool = True,
    ) -> bool:
        """Compare activations at some cuts, image by image; `text` reports the first cut at which they differ.

        With `more` images to look at, a few may differ if rounding changes a decision for them. The module at fault is
        searched on the images `blamed`, by default these. `forgives` accepts differences that rounding may make; it is
        off while it is not known whether two runs of the network agree.
        """
        for node, one, other in zip(nodes, wanted, came, strict=True):
            if one.shape != other.shape:
                self._refuse(f"{text(node)} (shapes {tuple(one.shape)} and {tuple(other.shape)})")
                return False
            error_N = relative_error(one, other)
            differ = int((error_N > self.tolerance).sum())
            if differ and not (forgives and self._is_rounding(node, images, error_N)):
                if more is not None and differ <= len(error_N) / 4 and self._are_few(more()):
                    continue
                largest = float(error_N.max())
                told = f"{text(node)} ({differ} of {_images(len(error_N))}, by up to {largest:.2g} of their size)"
                self._refuse(told + self._blame(images if blamed is None else blamed))
                return False
        return True

    def _is_rounding(self, node: str, images: Tensor, error_N: Tensor) -> bool:
        """Return whether differences are no more than what rounding of the network's input makes at the same cut."""
        generator = torch.Generator().manual_seed(3)
        sign = (torch.randint(2, images.shape, generator=generator) * 2 - 1).to(images)
        at = self.nodes.index(node)
        floor_N = relative_error(self._taps(images)[at], self._taps(images * (1 + ROUNDING * sign))[at])
        most = MAX_SCORE_ERROR if node == self.network.logits else float("inf")  # a cut may hold rounding errors alone
        if bool((error_N <= torch.clamp(MARGIN * floor_N.median(), max=most)).all()):
            self._remark(f"rounding alone changes its activations at {self.names[node]} by up to {error_N.max():.1g}")
            return True
        return False

    def _are_few(self, images: Tensor) -> bool:
        """Return whether few images differ between alone and a batch, each because rounding changes a decision."""
        if len(images) < MIN_LOOKED_AT:
            return False
        errors = torch.zeros(len(images), dtype=torch.float64)
        for first in range(0, len(images), BATCH):
            some = images[first : first + BATCH]
            together, alone = self._taps(some), [self._taps(some[k : k + 1]) for k in range(len(some))]
            for position, a in enumerate(together):
                error_N = relative_error(a, torch.cat([part[position] for part in alone])).cpu()
                errors[first : first + len(some)] = torch.maximum(errors[first : first + len(some)], error_N)
        tipped = (errors > self.tolerance).nonzero().flatten().tolist()
        num = len(tipped)
        if num > MAX_FLIPPED * len(images) or not all(self._is_on_an_edge(images[k : k + 1]) for k in tipped):
            return False
        self._remark(
            f"{num} of {len(images)} images differ alone from what they are in a batch: it decides by argmin, routing "
            "or the like, where rounding tips some over"
        )
        return True

    def _is_on_an_edge(self, image: Tensor) -> bool:
        """Return whether rounding of the image changes its activations as well: a decision lies on its edge."""
        generator = torch.Generator().manual_seed(4)
        plain = self._taps(image)
        for _ in range(NUM_NUDGES):
            sign = (torch.randint(2, image.shape, generator=generator) * 2 - 1).to(image)
            nudged = self._taps(image * (1 + ROUNDING * sign))
            if any(float(relative_error(*pair)) > self.tolerance for pair in zip(plain, nudged, strict=True)):
                return True
        return False

    def _remark(self, text: str) -> None:
        if text not in self.findings.remarks:
            self.findings.remarks.append(text)

    def _blame(self, images: Tensor) -> str:
        found = find_blame(self.network, images, precision=self.precision, tolerance=self.tolerance)
        return "" if found is None else f": {_said(found)}"


def _said(blame: Blame) -> str:
    return f"{blame.module} ({blame.type}) {blame.cause}"


def relative_error(wanted: Tensor, came: Tensor) -> Tensor:
    """Return, for each image, how far two tensors are apart, as a share of the first's size: (N,), float64.

    The size is the norm of the image's own values, or the mean norm of all images where that is larger: an image with
    nothing but rounding errors would otherwise differ from itself.
    """
    one, other = (a.double().flatten(1) for a in (wanted, came.to(wanted.device)))
    scale = one.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)  # squares of 1e-200 or 1e200 leave float64
    one, other = one / scale, other / scale
    size_N = torch.linalg.vector_norm(one, dim=1)
    size_N = torch.maximum(size_N, size_N.mean())
    error_N: Tensor = torch.linalg.vector_norm(one - other, dim=1) / size_N.clamp_min(torch.finfo(torch.float64).tiny)
    return error_N


def tolerance_for(network: CutNetwork, precision: str) -> float:
    """Return the relative difference that rounding may make in a network run in a job's precision."""
    kinds = {value.dtype for value in network.module.parameters() if value.is_floating_point()}
    return max([OF_PRECISION[precision], *(TOLERANCES.get(kind, 1e-4) for kind in kinds)])


def first_line(problem: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    said = next(iter(message_of(problem).strip().splitlines()), "")
    return f"{type(problem).__name__}: {said}" if said else type(problem).__name__


def _images(num: int) -> str:
    return "one image" if num == 1 else f"{num} images"
