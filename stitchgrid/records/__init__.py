"""What travels between the stages: frozen, keyword-only dataclasses, free of torch, ray and paths of code.

A *network* is one frozen set of weights behind one architecture and one preprocessing. Layers, networks and matchers
are referred to by their position in the sweep they belong to, so that a shard stays a handful of integers.
"""

from stitchgrid.records.addresses import canonical, digest, framed
from stitchgrid.records.networks import NO_HEAD, Fingerprint, Head, Layer, Network, TensorSummary
from stitchgrid.records.rows import Row
from stitchgrid.records.specs import (
    DEFAULT_LIMITS,
    FEATURES,
    HEADS,
    ORDINARY,
    STEP,
    TWIN,
    DataSpec,
    EnergyRecipe,
    EnergySpec,
    Interface,
    Limits,
    MatcherSpec,
    NetworkSpec,
    Preprocess,
    ProbeSpec,
    Recipe,
    Tokens,
)
from stitchgrid.records.sweep import Sweep
from stitchgrid.records.units import (
    Block,
    Cell,
    EvaluateNetwork,
    OfNetwork,
    ProbeNetwork,
    Shard,
    TrainDetector,
    TrainNetwork,
    Unit,
    UnitReport,
)

__all__ = [
    "DEFAULT_LIMITS",
    "FEATURES",
    "HEADS",
    "NO_HEAD",
    "ORDINARY",
    "STEP",
    "TWIN",
    "Block",
    "Cell",
    "DataSpec",
    "EnergyRecipe",
    "EnergySpec",
    "EvaluateNetwork",
    "Fingerprint",
    "Head",
    "Interface",
    "Layer",
    "Limits",
    "MatcherSpec",
    "Network",
    "NetworkSpec",
    "OfNetwork",
    "Preprocess",
    "ProbeNetwork",
    "ProbeSpec",
    "Recipe",
    "Row",
    "Shard",
    "Sweep",
    "TensorSummary",
    "Tokens",
    "TrainDetector",
    "TrainNetwork",
    "Unit",
    "UnitReport",
    "canonical",
    "digest",
    "framed",
]
