"""Keep the torch settings of a user's session while stitchgrid computes in the same process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from stitchgrid.models.process_guard import settings_kept


@contextmanager
def as_it_was(device: torch.device) -> Iterator[None]:
    """Restore the process's torch settings and random generators after a block, whatever the block does."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.enter_context(settings_kept(seed=0))
        stack.enter_context(torch.cuda.device(device) if device.type == "cuda" else nullcontext())
        yield
