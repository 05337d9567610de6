"""Weights as pages of one file per node: the system keeps each page in memory once, however many workers use it.

A file holds the bytes of parameters and buffers in the order of their names. Each begins at a multiple of 64 bytes, as
torch's own memory does: from other addresses, products may round differently. The file has no header: the network that
was built gives the place of each tensor. The file's name is the digest of its content, and a file that does not have
this digest is not used.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stitchgrid.cache import draft, lock, note_use, sync
from stitchgrid.models.weights import as_bytes, state_digest, tracked

_log = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes


class SharedWeights:
    """The part of the cache that holds weights. If it cannot be used, each worker keeps weights in its own memory."""

    def __init__(self, cache: Path):
        self._folder = cache / "weights"

    def share(self, module: nn.Module, digest: str, *, load: Callable[[], None] = lambda: None) -> None:
        """Let the weights of a frozen network on the CPU share the memory of the node's file of this digest.

        Where the node has no such file, `load` is called to give the network its weights, and a file is written if they
        have the digest. Only this process sees later changes of the network's weights.

        Args:
            module: The network; its weights are replaced if there is a file.
            digest: The weights' `state_digest`.
            load: Loads the weights into the network.
        """
        pages = self._find(module, digest)
        if pages is None:
            with lock(self._folder, digest):  # another process may be loading the same weights just now
                pages = self._find(module, digest)
                if pages is None:
                    load()
                    pages = self._write(module, digest)
        if pages is not None:
            _lay_in(module, pages)

    def _find(self, module: nn.Module, digest: str) -> dict[str, Tensor] | None:
        """Return the weights as they lie in the file, or None if it is missing or damaged."""
        state = module.state_dict()
        places, size = _places(state)
        path = self._folder / digest
        try:
            if not places or path.stat().st_size != size:
                return None
            content = np.asarray(np.memmap(path, dtype=np.uint8, mode="c"))  # writing leaves the file alone
        except (OSError, ValueError):
            return None
        pages = {
            name: torch.from_numpy(content[begin : begin + state[name].nbytes])  # each in a storage of its own
            .view(state[name].dtype)
            .view(state[name].shape)
            for name, begin in places.items()
        }
        if state_digest({**state, **pages}) != digest:
            return None
        note_use(path)
        return pages

    def _write(self, module: nn.Module, digest: str) -> dict[str, Tensor] | None:
        """Write the file if the network's weights have this digest, and return them as they lie in it."""
        state = module.state_dict()
        places, size = _places(state)
        if not places or state_digest(state) != digest:
            return None
        try:
            with draft(self._folder) as folder:
                path = folder / digest
                with path.open("wb") as file:
                    for name, begin in places.items():
                        file.seek(begin)
                        file.write(as_bytes(state[name]).numpy().data)
                    file.truncate(size)
                sync(path)
                path.replace(self._folder / digest)
        except OSError as problem:  # the cache cannot be written, or its disk is full
            _log.warning("weights (%d bytes) stay in this process's own memory: %s", size, problem)
        return self._find(module, digest)


def _places(state: Mapping[str, Tensor]) -> tuple[dict[str, int], int]:
    """Return where in the file the bytes of each tensor begin, and the file's size."""
    places, end = {}, 0
    for name, value in sorted(tracked(state).items()):
        if value.nbytes:
            places[name] = end
            end += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, end


@torch.no_grad()
def _lay_in(module: nn.Module, pages: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the memory and the values of `pages`.

    They stay the same objects, since modules may share them; views that modules keep of them get the values too.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        if name in pages:
            if not torch.equal(as_bytes(value), as_bytes(pages[name])):
                value.copy_(pages[name])
            if value.is_contiguous():  # other memory formats run by other kernels, so such a tensor keeps its own
                value.data = pages[name]
