"""The tables of a job file that say what is compared, and how: pairs, matchers, evidence. A field is a key."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stitchgrid.jobfile.values import Count, FitSamples, JobTable, Pairs, Ranks, Samples, Seed, Seeds, Words, distinct
from stitchgrid.matchers.evidence import MOST_GROUPS
from stitchgrid.records import EnergyRecipe, ProbeSpec

MOST_SHUFFLES = 10_000
_ENERGY = EnergyRecipe()


class GridTable(JobTable):
    """[grid]: which networks are compared."""

    pairs: Pairs = "all"
    """`within`: each with itself, `across`: with others, or `[["source", "target"], ...]`"""


class ProbesTable(JobTable):
    """[probes]: logistic regression from the pooled rows of every selected layer."""

    rank: Ranks = (None,)
    """directions that are kept of a layer; left out: all"""
    C: Annotated[float, Field(gt=0)] = 1.0
    """scikit-learn's inverse penalty"""
    max_iter: Count = 1000
    """of lbfgs"""
    samples: Count | None = None
    """fit images; left out: those of closed-form maps"""

    def to_record(self) -> ProbeSpec:
        """Return the table as a record."""
        return ProbeSpec(ranks=self.rank, C=self.C, max_iter=self.max_iter, samples=self.samples)


class ControlsTable(JobTable):
    """[controls]: values to compare with before a value is called high."""

    untrained: bool = False
    """give every trained network an untrained twin, a source of all its targets"""
    shuffled: Annotated[int, Field(ge=0, le=MOST_SHUFFLES)] = 0
    """draws in which the source's images are shuffled; 20 at least for a p below 0.05"""


class IntervalsTable(JobTable):
    """[intervals]: how far a value would move with other images."""

    groups: Annotated[int, Field(ge=2, le=MOST_GROUPS)] | None = None
    """of evaluation images, each left out in turn; left out: no intervals"""


class EnergyTable(JobTable):
    """[diagnostics.energy]: how detectors by energy are made."""

    epochs: Count = _ENERGY.epochs
    """on the labels"""
    finetune_epochs: Count = _ENERGY.finetune_epochs
    """with outliers"""
    width: Count = _ENERGY.width
    """of the first stage for maps; tokens get 3 times, vectors 8 times as many features"""
    depth: Count = _ENERGY.depth
    """blocks, for tokens"""
    samples: FitSamples = None
    """fit images; left out: as many as `fit` has"""
    batch_size: Annotated[int, Field(ge=2)] = _ENERGY.batch_size
    """images a step"""
    lr: Annotated[float, Field(gt=0)] = _ENERGY.lr
    """learning rate"""
    weight_decay: Annotated[float, Field(ge=0)] = _ENERGY.weight_decay
    """on all parameters"""
    seed: Seed = _ENERGY.seed
    """of initialisation and training"""
    outliers: Literal["noise", "patch_shuffle"] | None = None
    """left out: the images of [data.outliers], else `patch_shuffle`"""


class DiagnosticsTable(JobTable):
    """[diagnostics]: further metrics of every stitcher."""

    ood: Annotated[tuple[Literal["mahalanobis", "energy"], ...], AfterValidator(distinct)] = ()
    """detectors that tell whether a stitch's output lies outside the target's distribution"""
    energy: EnergyTable = EnergyTable()
    """how detectors by energy are made, see [diagnostics.energy]"""


class MatcherTable(JobTable):
    """[[matchers]]: the keys of every kind; each kind has parameters of its own besides."""

    kind: str
    """which matcher; `stitchgrid matchers` lists them"""
    samples: Samples = None
    """images a stitcher is fitted on (left out: as `fit` has) or an index reads; a list makes one matcher of each"""
    rank: Ranks = (None,)
    """directions that are kept of the source; a list makes one matcher of each"""
    metrics: Words | None = None
    """which of the kind's metrics; left out: all but those on request"""


class TrainedMatcherTable(MatcherTable):
    """The same for trained kinds."""

    seeds: Seeds = (0,)
    """one training each"""
