"""Parameters of kinds, as a job file sets them; the rules by which stitchers resample a source to a target."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stitchgrid.records import MatcherSpec


class Params(BaseModel):
    """Parameters of a kind; a job file may set these and no others. The manual shows the text under each field."""

    came_later: ClassVar[frozenset[str]] = frozenset()  # added later: defaults are left out of addresses
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def of(cls, spec: MatcherSpec) -> Self:
        """Return the parameters of a matcher of this kind; those that its record does not name have their default."""
        return cls(**{name: value for name, value in spec.values.items() if name in cls.model_fields})

    def for_address(self) -> dict[str, Any]:
        """Return the parameters as plain JSON; those that came later are left out while they have their default."""
        later = {name for name in self.came_later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=later)


class NoParams(Params):
    """A kind without parameters."""


class NeighbourParams(Params):
    """How many neighbours of each image are compared."""

    k: int = Field(default=10, ge=1)
    """neighbours of each image that are compared"""


class Rules(Params):
    """How rows are resampled to a target of another shape, if there is a choice: see the manual, networks."""

    resize: Literal["bilinear", "area", "nearest"] = "bilinear"
    """how a source is resized to a target of another grid"""
    cls: Literal["copy", "pool", "drop"] = "copy"
    """what the target's prefix tokens are made of"""
    pool: Literal["mean", "cls"] = "mean"
    """what a target vector is made of"""


class TrainingParams(Rules):
    """How a map is trained; defaults are those of Balogh & Jelasity (2025), except for the augmentation."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """passes over the fit images"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """learning rate"""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """on all parameters of the map"""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """images per step; it changes values, unlike that of [numerics]"""
    augment: Literal["none", "crop4_flip"] = "none"
    """`crop4_flip`: images moved by up to 4 pixels, and mirrored in half of the cases"""
    init: Literal["default", "direct", "identity"] = "default"
    """the initial map: PyTorch's own initialisation, least squares on the fit images, or the identity"""
    adapter: Literal["affine", "affine_bn", "bottleneck", "mlp", "conv3x3"] = "affine"
    """what the map is: affine, with batch norm behind it, with a hidden layer narrower or as wide, or a convolution"""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """the optimiser"""

    came_later: ClassVar[frozenset[str]] = frozenset({"init", "adapter", "optimizer"})

    @model_validator(mode="after")
    def _starts_from_what_it_is(self) -> Self:
        if self.init != "default" and self.adapter != "affine":
            raise ValueError(f'init = "{self.init}" is an affine map, and the adapter is {self.adapter!r}; drop one')
        return self
