"""Which artefacts a sweep needs: the keys of those that a store has, and the units of work that make the others."""

from stitchgrid.models.fingerprint import keys_of
from stitchgrid.planning import Plan
from stitchgrid.records import Unit
from stitchgrid.resolve import ArtefactReader, Resolution, not_made


def units_before(resolution: Resolution, plan: Plan, artefacts: ArtefactReader) -> list[Unit]:
    """Return the units of work that come before the shards of a plan: networks, proofs, probes, detectors."""
    proofs = not_made("evaluation", resolution.evaluations(), artefacts) if plan.todo else ()
    probes = not_made("probe", resolution.probes(), artefacts)
    return [*resolution.to_make, *proofs, *probes, *not_made("detector", resolution.detectors(), artefacts)]


def artefact_keys(resolution: Resolution, artefacts: ArtefactReader) -> dict[str, list[str]]:
    """Return the keys of the artefacts that a sweep needs, by kind, as far as a store has them."""
    networks = resolution.sweep.networks
    fingerprints = [
        (one.plain_id or one.network_id, one.fingerprint) for one in networks if one.fingerprint is not None
    ]
    wanted = {
        "network": [one.artefact for one in networks if one.artefact is not None],
        "evaluation": [unit.unit_id for unit in resolution.evaluations()],
        "probe": [unit.unit_id for unit in resolution.probes()],
        "detector": [unit.unit_id for unit in resolution.detectors()],
        "fingerprint": [key for plain_id, found in fingerprints for key in keys_of(plain_id, found, artefacts)],
    }
    return {kind: sorted({key for key in keys if artefacts.has_artefact(kind, key)}) for kind, keys in wanted.items()}
