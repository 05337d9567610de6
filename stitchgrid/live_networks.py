"""Live networks and images: they exist only in this process, and are given to `stitchgrid.compare`.

A job names a live network `live:NAME`, and live images by the data set `live`. Both are found within the block
`Live.present` of the `Live` that holds them, in the thread that entered it. A store has only their digests.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from stitchgrid.errors import InputError
from stitchgrid.records import architecture_word

LIVE = "live"  # the library of live networks, their weights, and the data set of live images


@dataclass(frozen=True, kw_only=True)
class Live:
    """The networks and images of one call of `stitchgrid.compare`.

    Attributes:
        networks: Name -> the user's own torch.nn.Module, which is never changed.
        images: The `Images` of both splits; None if they come from files.
        twins: Name -> the untrained twin of a network, if it was given; other twins are initialised copies.
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
    origin, name = architecture_word(architecture)
    return name if origin == LIVE else None


def live_network(name: str) -> Any:
    """Return a module that was given to `stitchgrid.compare`.

    Raises:
        InputError: If it does not exist in this process.
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
    """Return the images that were given to `stitchgrid.compare`.

    Raises:
        InputError: If they do not exist in this process.
    """
    held = _present.get()
    if held is None or held.images is None:
        raise InputError(f"the images were given to stitchgrid.compare by a Python session. {_GONE}")
    return held.images


_GONE = (
    "The store has only digests of live networks and images, so another process or a command cannot resume the sweep: "
    "call stitchgrid.compare again with the same networks, images, name and store, which computes what is missing."
)
