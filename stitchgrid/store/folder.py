"""Access to a folder that no name can leave: folders are opened step by step, without links, and only regular files.

A store may come from anybody. A link in it could lead a reader, a writer or a deletion elsewhere, and opening a pipe
would wait for its writer. So folders below the root are never links. A file may be a link to a regular file of the same
store, as tools that share equal content make them; readers follow the link, and writers replace it.
"""

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stitchgrid.paths import user
from stitchgrid.store.root import FOLDER, Root

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PARTIAL = ".partial"  # ends the hidden name of a file that is being written
CLOSED = "cannot be opened"
LEFT = "left by a writer that was stopped"
DEEPEST = 16  # folders below each other; a store has no more than five
FOLDERS = re.compile(  # names that only folders have in a store
    r"set-aside|(parts|snapshots)(/v1)?|snapshots/v1/(data|extracts)|artefacts(/(network|evaluation|fingerprint|probe|detector))?"
    r"|sweeps|sweeps/[^/]+/(journal|claims|logs|\d{4,})"
)
FILES = re.compile(  # names that only files have in a store
    r"parts/v1/[^/]+\.parquet|snapshots/v1/\d{6,9}(-[0-9a-f]{32})?\.json|snapshots/v1/(data|extracts)/[^/]+\.parquet"
    r"|artefacts/(network|evaluation|fingerprint|probe|detector)/[^/]+\.(manifest|json|safetensors)"
    r"|sweeps/[^/]+/((heartbeat|recompute)\.json|\d{4,}/((job|plan|code)\.json|(cells|models|layers|probes)\.parquet))"
    r"|sweeps/[^/]+/(claims|journal/[^/]+)/\d{6,9}\.json|sweeps/[^/]+/logs/[^/]+/\d{3,}\.log"
)
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}  # of a folder, in file systems
KINDS = {
    stat.S_IFLNK: "a link that leads to no file of the store",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """An entry below a store that no store has: a link, a pipe, a file that a stopped writer left."""

    name: str  # relative to the store
    problem: str
    is_unsafe: bool  # leads elsewhere, or makes a reader wait


class NotRegularError(OSError):
    """The entry of this name is not a regular file of the store."""


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a file that can be shown, sent and stored.

    >>> is_name("a b"), is_name(".."), is_name("\\udcff")
    (True, False, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return text not in ("", ".", "..") and "/" not in text and "\0" not in text


@contextmanager
def opened(root: Root, folders: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """Open a folder below a root, whose own path may have links; `make` creates folders that are missing below it.

    Raises:
        UnseenError: If the root is another folder by now, or gone.
        OSError: If it cannot be opened, or there is a link on the way.
    """
    here = root.open()
    try:
        for folder in folders:
            below = _step(here, folder, make=make)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def _step(here: int, folder: str, *, make: bool) -> int:
    try:
        return os.open(folder, FOLDER | os.O_NOFOLLOW, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
        made = True
        try:
            os.mkdir(folder, dir_fd=here)
        except FileExistsError:  # another process made it at this moment
            made = False
        new = os.open(folder, FOLDER | os.O_NOFOLLOW, dir_fd=here)
        if made:
            share_as(here, new, is_folder=True)
        return new
    except OSError as problem:
        if problem.errno in (errno.ENOTDIR, errno.ELOOP) and kind_of(here, folder) == stat.S_IFLNK:
            raise NotRegularError(errno.ELOOP, f"{folder} is a link, and folders of a store are none") from problem
        raise


def owner_of(root: Path, name: str) -> str:
    """Return in words the owner and mode of a file, or of the first folder on its path that may not be entered."""
    here = root
    for part in ("", *name.split("/")):
        here = here / part
        try:
            found = here.lstat()
        except OSError:
            break
        is_folder = stat.S_ISDIR(found.st_mode)
        if not os.access(here, os.R_OK | (os.X_OK if is_folder else 0)):
            return f"{user(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"
    return "somebody else"


def share_as(folder: int, made: int, *, is_folder: bool = False) -> None:
    """Give a new entry of an open folder the folder's group and mode, whatever this process's umask is.

    So a store that several people share stays shared, and a private one stays private. Where the owner or the file
    system does not allow it, the entry stays as it is.
    """
    around = os.fstat(folder)
    mode = stat.S_IMODE(around.st_mode) & (0o3777 if is_folder else 0o666)
    with suppress(OSError):
        if os.fstat(made).st_gid != around.st_gid:
            os.fchown(made, -1, around.st_gid)
    with suppress(OSError):
        os.fchmod(made, mode)


def sync(folder: int) -> None:
    """Write the entries of an open folder to the disk, where its file system offers this."""
    try:
        os.fsync(folder)
    except OSError as problem:
        if problem.errno not in NO_SYNC:
            raise


def kind_of(folder: int, name: str) -> int | None:
    """Return the kind of an entry in an open folder, one of `stat`'s, without following links; None if there is none.

    Raises:
        OSError: If the kind cannot be read.
    """
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def open_file(root: Root, name: str) -> int:
    """Return a descriptor of a regular file, to be read.

    Raises:
        NotRegularError: If it is something else.
        OSError: If it cannot be opened.
    """
    *folders, last = name.split("/")
    with opened(root, folders) as folder:
        kind = kind_of(folder, last)
        if kind == stat.S_IFLNK:
            return _open_target(root, name)
        if kind not in (None, stat.S_IFREG):  # a device is not even opened
            raise _not_regular(kind)
        return _open_regular(folder, last)


def _open_regular(folder: int, name: str) -> int:
    descriptor = os.open(name, FILE, dir_fd=folder)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:  # put there after the kind was read
        os.close(descriptor)
        raise _not_regular(kind)
    return descriptor


def _open_target(root: Root, name: str) -> int:
    """Return a descriptor of the file of the store to which a link leads; its path is checked step by step again."""
    top = os.path.realpath(root.path)
    target = os.path.realpath(f"{top}/{name}")
    if not target.startswith(top.rstrip("/") + "/"):
        raise _not_regular(stat.S_IFLNK)
    *folders, last = os.path.relpath(target, top).split("/")
    with opened(root, folders) as folder:
        if kind_of(folder, last) != stat.S_IFREG:
            raise _not_regular(stat.S_IFLNK)
        return _open_regular(folder, last)


def _not_regular(kind: int | None) -> NotRegularError:
    return NotRegularError(errno.EINVAL, f"it is {KINDS.get(kind or 0, 'something')}, and no regular file")


def write_beside(folder: int, name: str, data: bytes) -> str:
    """Write a file into an open folder under a name that no reader looks at; return the name."""
    # The temporary name must not end in the target's suffix: DuckDB's globs match hidden files too.
    partial = f".{name}.{uuid.uuid4().hex}{PARTIAL}"
    descriptor = os.open(partial, NEW_FILE, 0o666, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            share_as(folder, descriptor)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        remove(folder, partial)
        raise
    return partial


def remove(folder: int, name: str) -> None:
    """Remove a file of an open folder if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def link(folder: int, partial: str, name: str) -> bool:
    """Give a complete file its name unless the name is taken."""
    try:
        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in NO_HARD_LINKS:
            raise
        if kind_of(folder, name) is not None:
            return False
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def strangers(root: Root, untouched: str) -> Iterator[Stranger]:
    """Yield the entries below a root that no store has, whatever their names; the folder `untouched` is left out."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        path = [part for part in folder.split("/") if part]
        try:
            entries = _look(root, path)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            yield Stranger(name=folder, problem=f"{CLOSED}: {reason}", is_unsafe=False)
            continue
        for name, kind in entries:
            full = "/".join([*path, name])
            if kind == stat.S_IFDIR and FILES.fullmatch(full):
                yield Stranger(name=full, problem="a folder in the place of a file", is_unsafe=True)
            elif kind == stat.S_IFDIR and is_name(name) and len(path) < DEEPEST:
                waiting += [full] if full != untouched else []
            elif stranger := _stranger(root, full, kind):
                yield stranger


def _look(root: Root, path: Sequence[str]) -> list[tuple[str, int]]:
    """Return the names in a folder, sorted, with their kinds; 0 for all but regular files and folders."""
    with opened(root, path) as descriptor, os.scandir(descriptor) as entries:
        return sorted((entry.name, _kind(entry)) for entry in entries)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else 0


def _stranger(root: Root, name: str, kind: int) -> Stranger | None:
    """Return why no store has such an entry, None if a store can have it."""
    last = name.rpartition("/")[2]
    if not is_name(last):
        return Stranger(name=name, problem="its name is no text", is_unsafe=False)
    if kind == stat.S_IFDIR:
        return Stranger(name=name, problem="lies deeper than any folder of a store", is_unsafe=False)
    if kind == stat.S_IFREG and FOLDERS.fullmatch(name):
        return Stranger(name=name, problem="a file in the place of a folder", is_unsafe=True)
    if kind == stat.S_IFREG:
        is_left = last.startswith(".") and last.endswith(PARTIAL)
        return Stranger(name=name, problem=LEFT, is_unsafe=False) if is_left else None
    try:
        os.close(open_file(root, name))
    except OSError as problem:  # a link whose target is gone or may not be read is of no use either
        return Stranger(name=name, problem=problem.strerror or str(problem), is_unsafe=True)
    return None
