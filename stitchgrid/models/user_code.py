"""Code of users' own that a job names: staged in one folder, so that it reaches workers which do not see the files.

The folder is a package that Ray puts where its workers import from. It holds the code that the sweep was planned with,
so workers do not notice when a file is changed, moved or deleted afterwards.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stitchgrid.errors import InputError
from stitchgrid.models.architecture import find_code
from stitchgrid.models.code_closure import Code, Module
from stitchgrid.models.shipped_code import MANIFEST, MODULES, PACKAGE
from stitchgrid.private_folder import private_space
from stitchgrid.records import NetworkSpec, architecture_word

MAX_BYTES = 20_000_000
MAX_FILES = 10_000


@contextmanager
def staged(specs: Iterable[NetworkSpec]) -> Iterator[Path | None]:
    """Make the package of the own code behind these networks for the time of a block, None without any.

    Raises:
        InputError: If a file is missing, or an own package is too large to be sent around.
    """
    words = {(spec.base, spec.architecture): spec for spec in specs}
    found = [(spec, code) for spec in words.values() if (code := find_code(spec)) is not None and code.is_own]
    if not found:
        yield None
        return
    with private_space("own") as folder:
        package = folder / PACKAGE
        (package / MODULES).mkdir(parents=True)
        (package / "__init__.py").touch()
        staging = _Staging(package)
        for spec, code in found:
            staging.add(spec, code)
        (package / MANIFEST).write_text(json.dumps(staging.manifest))
        yield package


class _Staging:
    """Copies own code into a package; modules beside files and modules of sys.path go into separate folders."""

    def __init__(self, package: Path):
        self.package = package
        self.manifest: dict[str, str] = {}
        self._whole: set[Path] = set()  # folders of packages that were copied as they are

    def add(self, spec: NetworkSpec, code: Code) -> None:
        """Copy the code of one network."""
        if code.folders:
            path = Path(spec.base, architecture_word(spec.architecture).origin)
            _write(self._beside(path.parent) / path.name, code.entry.content)
        others = (module for name, module in code.modules.items() if not code.folders or name != code.entry.name)
        for module in others:
            self._add(module, code)

    def _beside(self, folder: Path) -> Path:
        return self.package / self.manifest.setdefault(str(folder), f"beside_{len(self.manifest)}")

    def _add(self, module: Module, code: Code) -> None:
        top = code.modules.get(module.name.partition(".")[0], module)
        roots = [Path(folder) for folder in top.folders] if top.folders is not None else [Path(str(top.file))]
        for root in roots:
            home = next((folder for folder in code.folders if root.parent == folder), None)
            target = self.package / MODULES if home is None else self._beside(home)
            if top.folders is None:
                _write(target / root.name, module.content)
                continue
            is_whole = self._copy_whole(root, target, required=home is None and _top(code) == top.name)
            if not is_whole and home is not None and module.file is not None and module.file.is_relative_to(root):
                _write(target / root.name / module.file.relative_to(root), module.content)

    def _copy_whole(self, root: Path, target: Path, *, required: bool) -> bool:
        """Copy a package's folder, data included; return whether it is small enough to be sent."""
        if root in self._whole:
            return True
        files, num_bytes = _files_of(root)
        if num_bytes > MAX_BYTES or len(files) > MAX_FILES:
            if required:
                raise InputError(
                    f"the package {root} is sent to the workers, but its files have {num_bytes / 1e6:.0f} MB, more "
                    f"than the {MAX_BYTES / 1e6:.0f} MB allowed; move data out of it, or install it on every node."
                )
            return False
        for path in files:
            copy = target / root.name / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        self._whole.add(root)
        return True


def _top(code: Code) -> str:
    return code.entry.name.partition(".")[0]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _files_of(folder: Path) -> tuple[list[Path], int]:
    """Return a package's files, without what Python or version control put there, and their bytes.

    Stops where there are more than can be sent.
    """
    files: list[Path] = []
    num_bytes = 0
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        paths = [Path(home, name) for name in sorted(names) if not name.startswith(".")]
        new = [path for path in paths if path.is_file()]
        files += new
        num_bytes += sum(path.stat().st_size for path in new)
        if num_bytes > MAX_BYTES or len(files) > MAX_FILES:
            break
    return files, num_bytes
