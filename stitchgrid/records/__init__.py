"""Records that pass between the stages: frozen, keyword-only dataclasses that import neither torch nor ray.

A *network* is one frozen set of weights behind one architecture and one preprocessing. Layers, networks and matchers
are referred to by their position in their sweep, so that a shard consists of a few integers.
"""

from stitchgrid.records.addresses import canonical, digest, framed
from stitchgrid.records.networks import NO_HEAD, Fingerprint, Head, Layer, Network, TensorSummary
from stitchgrid.records.rows import Row
from stitchgrid.records.specs import (
    DEFAULT_LIMITS,
    FEATURES,
    HEADS,
    HUGGINGFACE,
    ORDINARY,
    STEP,
    TWIN,
    ArchitectureWord,
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
    architecture_word,
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
    "HUGGINGFACE",
    "NO_HEAD",
    "ORDINARY",
    "STEP",
    "TWIN",
    "ArchitectureWord",
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
    "architecture_word",
    "canonical",
    "digest",
    "framed",
]
