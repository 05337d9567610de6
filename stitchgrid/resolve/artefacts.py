"""Artefacts of networks that a store keeps, and those that still have to be made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from stitchgrid.records import OfNetwork, TrainNetwork

Maker = TypeVar("Maker", bound=OfNetwork | TrainNetwork)  # of one artefact


class ArtefactReader(Protocol):
    """A store of artefacts, such as trained networks."""

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether an artefact is there."""
        ...

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return the content of an artefact."""
        ...

    def artefact_generation(self, kind: str, key: str) -> int:
        """Return the generation of the cells for which an artefact was made anew, 0 where it was not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    """What to make anew, with its new generation; an artefact that has this generation is not made again."""

    networks: Mapping[str, int] = field(default_factory=dict)  # by name: its training, evaluation and probes
    detectors: int = 0  # for those of all target layers

    def of_detector(self, network: str) -> int:
        """Return the generation that the detectors of a network get."""
        return max(self.detectors, self.networks.get(network, 0))


NOTHING_ANEW = Anew()


def not_made(kind: str, units: Sequence[Maker], artefacts: ArtefactReader) -> list[Maker]:
    """Return the units whose artefacts of a kind are not there, each once: two names may stand for one network."""
    by_key = {unit.unit_id: unit for unit in sorted(units, key=lambda unit: unit.generation)}
    return [unit for key, unit in by_key.items() if not is_made(kind, key, artefacts, unit.generation)]


def is_made(kind: str, key: str, artefacts: ArtefactReader, generation: int) -> bool:
    """Return whether an artefact is there, of at least this generation."""
    return artefacts.has_artefact(kind, key) and (
        not generation or artefacts.artefact_generation(kind, key) >= generation
    )
