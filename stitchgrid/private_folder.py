"""The one folder of this user's temporary files: no other user of the machine can read, write or enter it.

It holds Ray's session, DuckDB's spilled data, users' own code on its way to the workers, and compiled networks. Ray and
other libraries make files there that everyone may read, so the folder around them stays closed.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from stitchgrid.errors import InputError

NAME = "stitchgrid"
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # without it torch runs code from a folder in /tmp that any user may have made
_REMEDY = "remove it, or set TMPDIR (RAY_TMPDIR, where that is set) to a folder of your own"


def private_path(home: Path) -> Path:
    """Return the path of this user's private folder in `home`, whether it exists or not."""
    return home.absolute() / (NAME if sys.platform == "win32" else f"{NAME}-{os.geteuid()}")


def private_folder(home: Path | None = None) -> Path:
    """Return this user's folder for temporary files in `home` or $TMPDIR; make it if it is missing.

    Raises:
        InputError: If something else has its name, others may enter it, or it cannot be made.
    """
    folder = private_path(Path(tempfile.gettempdir()) if home is None else home)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        pass  # a link or a file, which `require_private` refuses
    except OSError as problem:
        raise InputError(f"the private folder {folder} cannot be made ({problem.strerror}); {_REMEDY}.") from problem
    require_private(folder)
    return folder


def require_private(folder: Path) -> None:
    """Refuse a folder that is not private to this user.

    Raises:
        InputError: If it is a link, belongs to another user, is open to others, or others may replace it.
    """
    if sys.platform == "win32":  # each user has a temporary folder of their own
        return
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        wrong = "is a link"
    elif not stat.S_ISDIR(found.st_mode):
        wrong = "is no folder"
    elif found.st_uid != os.geteuid():
        wrong = f"belongs to another user ({found.st_uid}, this is {os.geteuid()})"
    elif found.st_mode & 0o077:
        wrong = f"is open to others (mode {stat.S_IMODE(found.st_mode):04o}, wanted 0700)"
    elif open_parent := _open_parent(folder):
        wrong = f"can be replaced by others, who own {open_parent} or may write it without a sticky bit"
    else:
        return
    raise InputError(
        f"the folder {folder} {wrong}, so that others might read or change what stitchgrid keeps there; {_REMEDY}."
    )


def _open_parent(folder: Path) -> Path | None:
    """Return the nearest folder around a folder in which another user may rename this user's files; None without."""
    return next((parent for parent in folder.resolve().parents if is_open_to_others(parent)), None)


def is_open_to_others(folder: Path) -> bool:
    """Return whether another user may rename the content of a folder: its owner, its group, or everybody."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        return True
    writers = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid not in (0, os.getegid()) else 0)
    return bool(found.st_mode & writers) and not found.st_mode & stat.S_ISVTX


def numbered_folder(kind: str, home: Path | None = None) -> Path:
    """Return a new folder with a short name in this user's private folder; the caller removes it.

    Raises:
        InputError: As `private_folder` does.
    """
    outer = private_folder(home)
    for number in count(1):
        with suppress(FileExistsError):
            (folder := outer / f"{kind}{number}").mkdir(mode=0o700)
            break
    return folder


@contextmanager
def private_space(kind: str) -> Iterator[Path]:
    """Yield a new private folder, which is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=private_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def keep_compiled_code_private() -> None:
    """Let torch keep the output of `torch.compile` in this user's private folder, unless the user has named another."""
    if COMPILED not in os.environ:
        os.environ[COMPILED] = str(private_folder() / "compiled")


def read_own(path: Path) -> str:
    """Return the text of a file that belongs to this user or to root; links are not followed, pipes not read.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it belongs to another user, or is not a regular file.
    """
    if sys.platform == "win32":
        return path.read_text()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise InputError(f"{path} cannot be read as a file of one's own ({problem.strerror}); remove it.") from problem
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise InputError(f"{path} is not a file of this user (owner {found.st_uid}), so it is not read.")
        return file.read()
