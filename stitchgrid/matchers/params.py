"""Parameters of kinds, as a job file sets them; the rules by which every stitcher lays a source on a target."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from stitchgrid.records import MatcherSpec


class Params(BaseModel):
    """Parameters of a kind; a job file may set each of them, and no other."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, spec: MatcherSpec) -> Self:
        """Return the parameters of a matcher of this kind; those that its record does not name have their default."""
        return cls(**{name: value for name, value in spec.values.items() if name in cls.model_fields})


class NoParams(Params):
    """A kind without parameters."""


class Rules(Params):
    """Which rule lays a source on a target of another shape, where there is a choice; README has the table."""

    resize: Literal["bilinear", "area", "nearest"] = "bilinear"  # where grids differ
    cls: Literal["copy", "pool", "drop"] = "copy"  # what the target's prefix tokens are made of
    pool: Literal["mean", "cls"] = "mean"  # what a vector is made of
