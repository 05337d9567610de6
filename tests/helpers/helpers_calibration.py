"""Populations of which the true values are known, and the engine's own statistics of samples of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stitchgrid.engine.groups import Groups
from stitchgrid.matchers.evidence import jackknife_interval
from stitchgrid.matchers.gram import Gram, centred_gram
from stitchgrid.matchers.indices.cka_unbiased import CKAUnbiased
from stitchgrid.matchers.indices.pwcca import PWCCA
from stitchgrid.matchers.stitchers.affine import AffineMap, residual
from stitchgrid.moments import Merger, PairMoments, pair_moments

WIDTH, POSITIONS, CLASSES = 8, 4, 5
WHOLE = 200_000  # images that stand for all there are


@dataclass(frozen=True)
class Sample:
    """Two layers on the same images, (N, positions, features), and the images' classes."""

    x: Tensor
    y: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def moments(self) -> PairMoments:
        return pair_moments(self.x.flatten(0, 1), self.y.flatten(0, 1))

    def of(self, images: Tensor) -> "Sample":
        return Sample(self.x[images], self.y[images], self.labels[images])

    def group(self, number: int, of: int) -> "Sample":
        return self.of(Groups(of).of(0, len(self)) == number)


class Images:
    """Images of some classes, which two layers see each in its own way; positions of one image have much in common."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=self.generator)  # noqa: E731
        self.centres = 1.2 * normal(CLASSES, 4)
        self.seen_x, self.seen_y = normal(8, WIDTH) / 2, normal(8, WIDTH) / 2

    def draw(self, num: int) -> Sample:
        """Return images that were not drawn before."""
        labels = torch.randint(CLASSES, (num,), generator=self.generator)
        of_image = self.centres[labels] + torch.randn(num, 4, generator=self.generator)
        of_position = torch.randn(num, POSITIONS, 4, generator=self.generator)
        latent = torch.cat([of_image[:, None].expand(-1, POSITIONS, -1), of_position], dim=2)
        x, y = (
            torch.tanh(latent @ seen) + 0.3 * torch.randn(num, POSITIONS, WIDTH, generator=self.generator)
            for seen in (self.seen_x, self.seen_y)
        )
        return Sample(x, y, labels)


@dataclass(frozen=True)
class Told:
    """A value, and its values without each group of images."""

    value: float
    replicates: list[float]

    @property
    def interval(self) -> tuple[float, float]:
        found = jackknife_interval(self.value, self.replicates)
        assert found is not None
        return found


def of_moments(sample: Sample, stitch: AffineMap, groups: int) -> dict[str, Told]:
    """Return pwcca, and the residual of a map that is held fixed, as the engine finds them."""
    parts = [sample.group(number, groups).moments for number in range(groups)]
    merger = Merger()
    whole = merger(parts)
    all_moments = [whole, *(merger.without(whole, part) for part in parts)]
    pwcca = PWCCA(PWCCA.about.params()).compare(all_moments)["pwcca"].tolist()
    residuals = [residual(stitch, one).item() for one in all_moments]
    return {name: Told(told[0], told[1:]) for name, told in (("pwcca", pwcca), ("residual", residuals))}


def of_grams(sample: Sample, groups: int) -> Told:
    """Return cka_unbiased as the engine finds it."""
    index = CKAUnbiased(CKAUnbiased.about.params())
    x, y = (Gram(centred_NN=centred_gram(rows.flatten(1))) for rows in (sample.x, sample.y))
    belongs = Groups(groups).of(0, len(sample))
    kept = [torch.arange(len(sample)), *((belongs != number).nonzero().flatten() for number in range(groups))]
    pairs = [(index.prepare(x.of_images(some)), index.prepare(y.of_images(some))) for some in kept]
    told = index.compare(pairs)["cka_unbiased"].tolist()
    return Told(told[0], told[1:])


def cka_of(moments: PairMoments) -> float:
    """Return CKA by second moments: of very many images, where biased and unbiased are one."""
    return (moments.xy_DE.square().sum() / moments.xx_DD.norm() / moments.yy_EE.norm()).item()


def is_right(sample: Sample, stitch: AffineMap, read: Tensor) -> Tensor:
    """Return of which images a linear head on the stitched layer names the class: (N,)."""
    return (stitch(sample.x).mean(1) @ read).argmax(1) == sample.labels
