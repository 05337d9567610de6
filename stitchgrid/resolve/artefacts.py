"""What a store keeps of networks, and what of it is still to be made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from stitchgrid.records import OfNetwork, TrainNetwork

Maker = TypeVar("Maker", bound=OfNetwork | TrainNetwork)  # of one artefact


class ArtefactReader(Protocol):
    """Where trained networks are kept."""

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether it is there."""
        ...

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return its content."""
        ...

    def artefact_generation(self, kind: str, key: str) -> int:
        """Return the generation of the cells for which it was made anew, 0 where it was not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    """What is to be made anew, with the generation that it gets; what has it already is there."""

    networks: Mapping[str, int] = field(default_factory=dict)  # by name: what is trained, measured and probed of each
    detectors: int = 0  # those of all target layers

    def of_detector(self, network: str) -> int:
        """Return the generation that the detectors of a network get."""
        return max(self.detectors, self.networks.get(network, 0))


NOTHING_ANEW = Anew()


def not_made(kind: str, units: Sequence[Maker], artefacts: ArtefactReader) -> list[Maker]:
    """Return the units whose artefacts of a kind are not there, each once: two names may stand for one network."""
    by_key = {unit.unit_id: unit for unit in sorted(units, key=lambda unit: unit.generation)}
    return [unit for key, unit in by_key.items() if not is_made(kind, key, artefacts, unit.generation)]


def is_made(kind: str, key: str, artefacts: ArtefactReader, generation: int) -> bool:
    """Return whether an artefact is there, of this generation at least."""
    return artefacts.has_artefact(kind, key) and (
        not generation or artefacts.artefact_generation(kind, key) >= generation
    )
