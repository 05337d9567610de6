"""Loaders of single modules that run the bytes they are given, not what the file or Python's cache holds by then."""

import linecache
import os
import tempfile
from collections.abc import Mapping
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from stitchgrid.private_folder import private_folder
from stitchgrid.records import digest

_compiled: dict[str, str] = {}  # file of a compiled module -> digest of what this process has loaded


class SourceLoader(SourceFileLoader):
    """Runs a source with builtins of its own; no .pyc is read or written."""

    def __init__(self, name: str, path: str, content: bytes, own_builtins: Mapping[str, Any]):
        super().__init__(name, path)
        self.content, self.builtins = content, own_builtins

    def get_data(self, path: str) -> bytes:
        """Return the content of the source, or of another file beside it."""
        return self.content if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002  # signature of the base
        """Compile the source."""
        code: CodeType = self.source_to_code(self.content, self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the source; tracebacks and `inspect` show the very lines that run."""
        text = self.get_source(module.__name__) or ""
        linecache.cache[self.path] = (len(text), None, text.splitlines(keepends=True), self.path)
        vars(module)["__builtins__"] = self.builtins
        super().exec_module(module)


class CompiledLoader(ExtensionFileLoader):
    """Loads a compiled module, whose file cannot be loaded twice by one process."""

    def __init__(self, name: str, path: str, content: bytes, _own_builtins: Mapping[str, Any]):
        super().__init__(name, path)
        self.content = content

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module, loaded from a private copy of the given bytes.

        Raises:
            ImportError: If this process has loaded the file with other content.
        """
        wanted = digest(self.content)
        if _compiled.setdefault(self.path, wanted) != wanted:
            raise ImportError(
                f"{self.path} has changed since this process loaded it; start a new process", name=spec.name
            )
        module = super().create_module(ModuleSpec(spec.name, self, origin=_as_file(self.content)))
        module.__file__ = self.path
        return module


def _as_file(content: bytes) -> str:
    """Return the path of a file of this process's own that holds the bytes for as long as the process lives."""
    if hasattr(os, "memfd_create"):
        # Kept open: the system's loader identifies what it loaded by this path.
        descriptor = os.memfd_create("stitchgrid")
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(dir=private_folder(), suffix=".so")
    with open(descriptor, "wb", closefd=not path.startswith("/proc")) as file:
        file.write(content)
    return path
