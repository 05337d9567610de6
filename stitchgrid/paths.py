"""Paths that users name, which may be invalid, and files that are written there completely or not at all."""

import errno
import os
import pwd
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stitchgrid.errors import InputError
from stitchgrid.printable import in_one_line

LONGEST_NAME = 255  # bytes of a file's name that file systems take
LONGEST_PATH = 4095
MOST_LINKS = 40  # that a path may have, as for the system
FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC  # to walk through, not to list
HELD = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC  # to know, not to read
FILE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


def check_path(text: str) -> str:
    """Return the text if it can be a path.

    Raises:
        ValueError: If it is too long, has control characters, or starts at the home of a user who does not exist.
    """
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"a path has no control characters, got {text[:60]!r}")
    if len(text.encode(errors="replace")) > LONGEST_PATH or any(
        len(part.encode(errors="replace")) > LONGEST_NAME for part in text.split("/")
    ):
        raise ValueError(f"too long for a path: {text[:60]!r}...")
    with_home(text)
    return text


def with_home(text: str) -> Path:
    """Return a path whose leading `~` is replaced by the home that it stands for.

    Raises:
        ValueError: If it is the home of a user who does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"no user has the home that {text[:60]!r} starts with") from None


def named_path(text: str) -> Path:
    """Return the path that a text names; `~` and $VARIABLES that the shell has left in it are replaced.

    Raises:
        InputError: If it starts at the home of a user who does not exist.
    """
    try:
        return with_home(os.path.expandvars(text))
    except ValueError as problem:
        raise InputError(f"{problem}; name another path.") from None


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False if no file can have such a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def user(number: int) -> str:
    """Return the name and the number of a user, for messages."""
    try:
        return f"{pwd.getpwuid(number).pw_name} (user {number})"
    except KeyError:
        return f"user {number}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it holds all of the data, or what it held before.

    A link that belongs to this user stays, and the file that it leads to is written. A pipe or a device is written
    directly, and so is a file in a folder in which no other file can be made. A file that belonged to this user keeps
    its permissions; those of other users' files are not taken over.

    Raises:
        OSError: If that cannot be done, or another user has put a link, a pipe or a file there; nothing has changed.
    """
    try:
        folder, name, _ = _followed(path)
        try:
            _write(folder, name, data)
        finally:
            os.close(folder)
    except OSError as problem:
        problem.filename = str(path)
        raise


def real_place(path: Path) -> Path:
    """Return the path without links to which a path leads; make the folders on the way to it that are missing.

    The same links are followed as by `write_whole`.

    Raises:
        OSError: If that cannot be done, or another user has put a link, or a file of that name, there.
    """
    try:
        folder, name, where = _followed(path, makes_folders=True)
        try:
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not _is_trusted(found, folder, is_last=True):
                    raise _foreign("pipe" if stat.S_ISFIFO(found.st_mode) else "file", name, found)
        finally:
            os.close(folder)
    except OSError as problem:
        problem.filename = str(path)
        raise
    return where / name


def real_folder(path: Path) -> Path:
    """Return the path without links of a folder, which is made if it is missing, as `real_place` does.

    Raises:
        OSError: If that cannot be done, or another user has put a link there.
    """
    return real_place(path / "_").parent


def _followed(path: Path, *, makes_folders: bool = False) -> tuple[int, str, Path]:
    """Return the open folder and the name to which a path leads, and where the folder lies.

    Links of root are followed, and links to folders that belong to the owner of the folder in which they lie; no other
    link that another user has put there.
    """
    here, where = (os.open("/", FOLDER), Path("/")) if path.is_absolute() else (os.open(".", FOLDER), Path.cwd())
    ahead = [part for part in reversed(path.parts) if part != "/"]
    try:
        for _ in range(MOST_LINKS):
            while len(ahead) > 1:
                if (below := _open_folder(here, ahead[-1], makes=makes_folders)) is None:
                    break
                os.close(here)
                here, where = below, where / ahead.pop()
            name = ahead.pop() if ahead else "."
            found = _link_at(here, name)
            if found is None:
                return here, name, where
            if not _is_trusted(found, here, is_last=not ahead):
                raise _foreign("link", name, found)
            target = Path(os.readlink(name, dir_fd=here))
            ahead += [part for part in reversed(target.parts) if part != "/"]
            if target.is_absolute():
                os.close(here)
                here, where = os.open("/", FOLDER), Path("/")
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except BaseException:
        os.close(here)
        raise


def _open_folder(around: int, name: str, *, makes: bool) -> int | None:
    """Return an open folder in another one, made if it is missing and asked for; None if it is a link."""
    try:
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=around)
    except FileNotFoundError:
        if not makes:
            raise
    except OSError:
        if _link_at(around, name) is None:
            raise
        return None
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=around)
    return _open_folder(around, name, makes=False)


def _link_at(folder: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISLNK(found.st_mode) else None


def _is_trusted(found: os.stat_result, folder: int, *, is_last: bool) -> bool:
    """Return whether a link or file in an open folder may be followed or written.

    It may if it belongs to this user or to root. Unless it is the last part of a path, it also may in a folder that is
    not shared, or if it belongs to the owner of a shared one.
    """
    around = os.fstat(folder)
    is_shared = bool(around.st_mode & stat.S_ISVTX and around.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if found.st_uid in (0, os.geteuid()):
        return True
    return not is_last and (not is_shared or found.st_uid == around.st_uid)


def _write(folder: int, name: str, data: bytes) -> None:
    with _held(folder, name) as before:
        _write_over(folder, name, data, before)


@contextmanager
def _held(folder: int, name: str) -> Iterator[os.stat_result | None]:
    """Yield what is known of a file, None if there is none; within the block no other file gets its number."""
    try:
        held = os.open(name, HELD, dir_fd=folder)
    except FileNotFoundError:
        yield None
        return
    try:
        yield os.fstat(held)
    finally:
        os.close(held)


def _write_over(folder: int, name: str, data: bytes, before: os.stat_result | None) -> None:
    if before is not None and not stat.S_ISREG(before.st_mode):
        if stat.S_ISFIFO(before.st_mode) and before.st_uid not in (0, os.geteuid()):
            raise _foreign("pipe", name, before)
        _write_in_place(folder, name, data, before)
        return
    partial = f".{uuid.uuid4().hex}.partial"
    try:
        made = os.open(partial, FILE | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
        with os.fdopen(made, "wb") as file:
            if before is not None and before.st_uid == os.geteuid():
                _keep_mode(made, before)
            file.write(data)
            file.flush()
            os.fsync(made)
        os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException as problem:
        with suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        if not isinstance(problem, PermissionError) or before is None:
            raise
        _write_in_place(folder, name, data, before)


def _foreign(what: str, name: str, found: os.stat_result) -> PermissionError:
    owner = user(found.st_uid)
    said = f"{in_one_line(name)} is a {what} of another user, {owner}, and might lead the writing elsewhere"
    return PermissionError(errno.EACCES, said)


def _keep_mode(made: int, before: os.stat_result) -> None:
    """Give a new file the read and write permissions of the old one, and no setuid or setgid bits."""
    usual = os.fstat(made)
    mode = before.st_mode & 0o666
    os.fchmod(made, mode if usual.st_gid == before.st_gid else mode & usual.st_mode)


def _write_in_place(folder: int, name: str, data: bytes, before: os.stat_result) -> None:
    """Write into the file, pipe or device that was found, and into nothing that has taken its place since."""
    at_once = os.O_NONBLOCK if stat.S_ISREG(before.st_mode) else 0  # a pipe that came meanwhile may have no reader
    with os.fdopen(os.open(name, FILE | at_once, dir_fd=folder), "wb") as file:
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino) != (before.st_dev, before.st_ino):
            raise PermissionError(errno.EACCES, f"{in_one_line(name)} was replaced while it was being written")
        if stat.S_ISREG(found.st_mode):
            if not _is_trusted(found, folder, is_last=False):
                raise _foreign("file", name, found)
            os.ftruncate(file.fileno(), 0)
        file.write(data)
