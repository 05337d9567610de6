"""Users' code may change settings of the whole process, and print: both are undone around every call of it."""

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
)
_FLAGS = (
    *((torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "enabled", "allow_tf32")),
    (torch.backends.cuda.matmul, "allow_tf32"),
)


@contextmanager
def settings_kept(seed: int) -> Iterator[None]:
    """Undo the changes that a block makes to the process, and send its prints to stderr: stdout is for results.

    Within the block, every random generator starts from `seed`, so that draws do not depend on code that ran before.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        for get, put in _SETTINGS:
            stack.callback(_put_back, get, put, get())
        with suppress(FileNotFoundError):  # the folder may have been removed
            stack.callback(_put_back, Path.cwd, os.chdir, Path.cwd())
        for home, name in _FLAGS:
            stack.callback(setattr, home, name, getattr(home, name))
        stack.callback(_put_back, _device, torch.set_default_device, _device())
        torch.default_generator.manual_seed(seed)  # the CPU's alone: other devices' states are not saved
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


def _put_back(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> None:
    if get() != value:
        put(value)


def _device() -> torch.device | None:
    """Return the default device, None for the CPU, which is what torch takes without one."""
    found = torch.get_default_device()
    return None if found.type == "cpu" else found


class Defaults:
    """Settings of the process that importing a module has changed: they hold only while its networks are built."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        self.paths: list[str] = []  # added to sys.path
        self._before: list[str] | None = None  # sys.path, while changes are noted

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the changes of a block; sys.path is restored, so that searches do not depend on code that ran before."""
        dtype, device, self._before = torch.get_default_dtype(), _device(), list(sys.path)
        try:
            yield
        finally:
            self.paths = self.extra_paths()
            sys.path[:], self._before = self._before, None
        if (now := torch.get_default_dtype()) != dtype:
            self.dtype = now
        if (there := _device()) != device:
            self.device = there

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Apply the noted settings; `settings_kept` undoes them."""
        if self.dtype is not None:
            torch.set_default_dtype(self.dtype)
        if self.device is not None:
            torch.set_default_device(self.device)
        yield

    def extra_paths(self) -> list[str]:
        """Return the paths added to sys.path; while changes are noted, those added so far."""
        return self.paths if self._before is None else [path for path in sys.path if path not in self._before]

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Within a block, also search the noted paths."""
        added = [path for path in self.paths if path not in sys.path]
        sys.path += added
        try:
            yield
        finally:
            sys.path[:] = [path for path in sys.path if path not in added]
