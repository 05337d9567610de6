"""Networks that were cut while a sweep was planned, kept for a worker of this process: it need not build them again.

The plan's digests and fingerprints were taken of these same networks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from stitchgrid.live_networks import live_name
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.records import Network

MOST_PARAMETERS = 100_000_000  # of all that are kept


@dataclass(kw_only=True)
class _Held:
    cuts: dict[tuple[str, ...], CutNetwork] = field(default_factory=dict)
    num_parameters: int = 0


_present: ContextVar[_Held | None] = ContextVar("held", default=None)


@contextmanager
def holding_cuts() -> Iterator[None]:
    """Keep cut networks within a block, in the thread that entered it."""
    token = _present.set(_Held())
    try:
        yield
    finally:
        _present.reset(token)


def hold(network: Network, cut: CutNetwork) -> None:
    """Keep a network, cut on the CPU, within `holding_cuts` and while there is room; a live module takes no room."""
    held = _present.get()
    if held is None or _key(network) in held.cuts:
        return
    shares_weights = live_name(network.spec.architecture) is not None and not network.spec.is_twin
    num_parameters = 0 if shares_weights else network.num_parameters
    if held.num_parameters + num_parameters <= MOST_PARAMETERS:
        held.cuts[_key(network)] = cut
        held.num_parameters += num_parameters


def held_cut(network: Network) -> CutNetwork | None:
    """Return a network that was kept, None where it was not."""
    held = _present.get()
    return None if held is None else held.cuts.get(_key(network))


def _key(network: Network) -> tuple[str, ...]:
    return network.network_id, str(network.spec.interface), str(network.input_shape)


def let_go() -> None:
    """Drop all kept networks, and keep no more: no worker of this process asks for them."""
    held = _present.get()
    if held is not None:
        held.cuts.clear()
        held.num_parameters = MOST_PARAMETERS + 1
