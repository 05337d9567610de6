"""Networks and images that live in this process alone: what `stitchgrid.compare` is given, as jobs know it.

A job names a live network `live:NAME`, and live images by the data set `live`. Both are found while the block of the
`Live` that holds them lasts, in the thread that entered it. Nothing of them is in a store but digests.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from stitchgrid.errors import InputError

LIVE = "live"  # the library of live networks, their weights, and the data set of live images


@dataclass(frozen=True, kw_only=True)
class Live:
    """What one call of `stitchgrid.compare` was given.

    Attributes:
        networks: Name -> torch.nn.Module, the user's own, which is never changed.
        images: The `Images` of both splits; None where they come from files.
        twins: Name -> the untrained twin of a network, where it was given; others are initialised copies.
    """

    networks: Mapping[str, Any]
    images: Any = None
    twins: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def present(self) -> Iterator[None]:
        """Let jobs find these networks and images within a block."""
        token = _present.set(self)
        try:
            yield
        finally:
            _present.reset(token)


_present: ContextVar[Live | None] = ContextVar("live", default=None)


def live_name(architecture: str) -> str | None:
    """Return the name of a live network, None for any other architecture.

    >>> live_name("live:a"), live_name("stitchgrid:resnet20")
    ('a', None)
    """
    library, _, name = architecture.partition(":")
    return name if library == LIVE else None


def live_network(name: str) -> Any:
    """Return a module that `stitchgrid.compare` was given.

    Raises:
        InputError: If it is not of this process.
    """
    held = _present.get()
    if held is None or name not in held.networks:
        raise InputError(f"it is a live module, given to stitchgrid.compare by a Python session. {_GONE}")
    return held.networks[name]


def live_twin(name: str) -> Any:
    """Return the untrained module that was given for a network, None if there is none."""
    held = _present.get()
    return None if held is None else held.twins.get(name)


def live_images() -> Any:
    """Return the images that `stitchgrid.compare` was given.

    Raises:
        InputError: If they are not of this process.
    """
    held = _present.get()
    if held is None or held.images is None:
        raise InputError(f"the images were given to stitchgrid.compare by a Python session. {_GONE}")
    return held.images


_GONE = (
    "Nothing of it but digests is in the store, so that it cannot be resumed elsewhere, nor by a command: call "
    "stitchgrid.compare again with the same networks, images, name and store, which computes what is missing."
)
