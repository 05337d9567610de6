"""A session of the user's that computes in its own process: what it has set stays as it is."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from stitchgrid.models.process_guard import settings_kept


@contextmanager
def as_it_was(device: torch.device) -> Iterator[None]:
    """Leave the process's settings of torch and its generators as they are, whatever is done within a block."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.enter_context(settings_kept(seed=0))
        stack.enter_context(torch.cuda.device(device) if device.type == "cuda" else nullcontext())
        yield
