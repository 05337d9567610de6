"""Image folders in a tar or zip archive, which is read member by member.

No member is ever extracted to disk. A member's name only says to which split and class its bytes belong, so a hostile
name or link cannot reach any file.
"""

import stat
import tarfile
import zipfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any
from zlib import error as ZlibError

from stitchgrid.datasets.encoded import NO_FILE, too_large
from stitchgrid.datasets.folder import FolderSource, stamp_of
from stitchgrid.datasets.image_files import is_image, suffix_of
from stitchgrid.datasets.imagefolder import (
    OUTSIDE,
    File,
    ImageFolderSource,
    Tree,
)
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.sources import Position
from stitchgrid.errors import InputError
from stitchgrid.limits import TooMuchError, check_growth
from stitchgrid.records import DEFAULT_LIMITS, Limits, digest

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # first bytes of a zip archive, and of an empty one
UNREADABLE = (  # errors for a member that is damaged, encrypted, or compressed by an unknown method
    zipfile.BadZipFile,
    RuntimeError,
    NotImplementedError,
    EOFError,
    ValueError,
    ZlibError,
    LZMAError,
)
EXTENDED = (  # types of members that hold attributes of the next member
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAX_HEADER_BYTES = 1_000_000  # of one extended header, or of the map of a sparse file
MAX_SHARED = 1_000  # attributes that hold for all following members: tarfile gives them to each of these
HARMLESS_BYTES = 10_000_000_000  # unpacked size that is always allowed: an archive is unpacked one member at a time
MACOS = "__MACOSX"  # folder with metadata that macOS adds to archives


class ArchiveSource(ImageFolderSource):
    """An archive; its splits may lie at the top, or in a single folder at the top."""

    def signature(self) -> str:
        """Return a digest over path and stamp of the archive."""
        stamp = stamp_of(self.root.stat())
        return digest("archive", str(self.has_labels), str(self.root.resolve()), stamp, *self._splits)

    @abstractmethod
    def _members(self) -> Iterator[tuple[str, int, bool]]:
        """Yield the name of every member, its position in the archive, and whether it is a folder."""

    def _tree(self) -> Tree:
        listed = []
        for number, (name, place, is_folder) in enumerate(self._members(), start=1):
            self.check_number(number)
            if (parts := _parts(name)) is not None:
                listed.append((parts, place, is_folder))
        tops = {parts[0] for parts, _, _ in listed}
        if len(tops) == 1 and not tops & set(self._splits):
            listed = [(parts[1:], place, is_folder) for parts, place, is_folder in listed if len(parts) > 1]
        classes: dict[str, set[str]] = {}
        files: dict[str, File] = {}  # by path; of members with one name the last wins, as when an archive is unpacked
        left_out: dict[str, dict[str, str]] = {}  # split -> path -> kind of file
        for parts, place, is_folder in listed:
            split = parts[0]
            if not self.has_labels:
                classes.setdefault(split, set())
            fewest = 3 if self.has_labels else 2
            if not is_folder and (len(parts) < fewest or not is_image(parts[-1])):
                kind = OUTSIDE if is_image(parts[-1]) else suffix_of(parts[-1])
                left_out.setdefault(split, {})["/".join(parts)] = kind
                continue
            found = classes.setdefault(split, set())
            if len(parts) > 1 and self.has_labels:
                found.add(parts[1])
            if not is_folder:
                class_name = parts[1] if self.has_labels else ""
                file = File(split=split, class_name=class_name, name="/".join(parts[fewest - 1 :]), place=place)
                files[file.path] = file
        return Tree(
            classes=classes,
            files=tuple(files.values()),
            left_out={split: Counter(kinds.values()) for split, kinds in left_out.items() if split in classes},
        )


class TarSource(ArchiveSource):
    """A .tar, .tar.xz, .tar.gz or .tar.bz2."""

    def _members(self) -> Iterator[tuple[str, int, bool]]:
        with walking(self.root, self.limits) as (_, members):
            for place, member in members:
                yield member.name, place, member.isdir()

    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | str]]:
        wanted = {file.place: (position, file) for position, file in files}
        with walking(self.root, self.limits) as (tar, members):
            for place, member in members:
                if place in wanted:
                    yield *wanted.pop(place), tar_content(tar, member, self.limits)
                if not wanted:
                    return


@contextmanager
def walking(path: Path, limits: Limits) -> Iterator[tuple[tarfile.TarFile, Iterator[tuple[int, tarfile.TarInfo]]]]:
    """Open a tar archive for one pass from its beginning; yield it and its members, each with its position.

    Raises:
        InputError: If it cannot be opened, or if reading it within the block fails.
    """
    try:
        # A compressed archive is opened as a stream: seeking backwards would decompress it again from the start.
        with tarfile.open(path, "r:" if _is_plain(path) else "r|*", tarinfo=_ShortHeader) as tar:
            yield tar, _members_of(tar, path, limits)
    except TooMuchError as problem:
        raise InputError(f"{problem}.") from problem
    except (*UNREADABLE, tarfile.TarError, OSError, RecursionError, OverflowError) as problem:
        raise InputError(
            f"cannot read {path} as a tar archive ({type(problem).__name__}: {problem}); give a "
            "folder or a complete .tar, .tar.gz, .tar.bz2, .tar.xz or .zip."
        ) from problem


def _members_of(tar: tarfile.TarFile, path: Path, limits: Limits) -> Iterator[tuple[int, tarfile.TarInfo]]:
    place = 0
    while (member := tar.next()) is not None:
        check_growth(path, member.offset, limits, harmless=HARMLESS_BYTES)
        yield place, member
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header of the archive
        place += 1


class _ShortHeader(tarfile.TarInfo):
    """A member that refuses long extended headers, because tarfile reads them into memory whatever their size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        if len(tar.pax_headers) > MAX_SHARED:
            raise tarfile.ReadError(f"{len(tar.pax_headers)} attributes of all members")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    def _proc_sparse(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        with _short_map(tar):
            return super()._proc_sparse(tar)  # type: ignore[misc,no-any-return]

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, pax_headers: Mapping[str, str], tar: tarfile.TarFile) -> None:
        with _short_map(tar):
            super()._proc_gnusparse_10(next, pax_headers, tar)  # type: ignore[misc]


class _ShortMap:
    """The file of an archive while the map of a sparse file is read from it, which may be long or end early."""

    def __init__(self, file: IO[bytes]):
        self._file, self._left = file, MAX_HEADER_BYTES
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0 or len(found := self._file.read(size)) < size:
            raise tarfile.ReadError("the map of a sparse file is too long, or not complete")
        return found


@contextmanager
def _short_map(tar: tarfile.TarFile) -> Iterator[None]:
    """Within a block, let at most `MAX_HEADER_BYTES` be read from an archive."""
    before: Any = tar.fileobj
    tar.fileobj = _ShortMap(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        tar.fileobj = before


class ZipSource(ArchiveSource):
    """A .zip."""

    def _members(self) -> Iterator[tuple[str, int, bool]]:
        with self._opened() as archive:
            for place, member in enumerate(archive.infolist()):
                yield member.filename, place, member.is_dir()

    def _bytes(self, files: Sequence[tuple[Position, File]]) -> Iterator[tuple[Position, File, bytes | str]]:
        with self._opened() as archive:
            members = archive.infolist()
            for position, file in sorted(files, key=lambda item: item[1].place):
                yield position, file, _zip_content(archive, members[file.place], self.limits)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.root) as archive:
                yield archive
        except (*UNREADABLE, OSError) as problem:
            raise InputError(
                f"cannot read {self.root} as a zip archive ({type(problem).__name__}: {problem}); give a complete "
                "archive."
            ) from problem


def open_image_folder(
    root: Path,
    splits: Sequence[str],
    *,
    bounds: Bounds | None = None,
    named: Sequence[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    has_labels: bool = True,
) -> ImageFolderSource:
    """Return the source for a folder or an archive.

    Args:
        root: The folder or archive.
        splits: Names of the splits in use.
        bounds: The pixel values of black and white, for pixels that do not have eight bits.
        named: Classes that the job names; they may have no images.
        limits: Limits on the sizes of what is read.
        has_labels: Whether the folders in a split are classes.

    Raises:
        InputError: If there is no such folder or file.
    """
    if root.is_dir():
        return FolderSource(root, splits, bounds=bounds, named=named, limits=limits, has_labels=has_labels)
    if root.is_file():
        kind = ZipSource if _is_zip(root) else TarSource
        return kind(root, splits, bounds=bounds, named=named, limits=limits, has_labels=has_labels)
    raise InputError(f"there is no folder or archive {root}; set `root` under [data] to that of the images.")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in ZIP_STARTS


def _is_plain(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:", tarinfo=_ShortHeader):
            return True
    except tarfile.TarError:
        return False


def tar_content(tar: tarfile.TarFile, member: tarfile.TarInfo, limits: Limits) -> bytes | str:
    """Return the content of a member, or as text the reason why it is not read."""
    if not member.isreg():
        return NO_FILE
    if member.size > limits.file_bytes:  # checked here, since a sparse file is small in the archive
        return too_large(limits)
    content = tar.extractfile(member)
    return content.read() if content else NO_FILE


def _zip_content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: Limits) -> bytes | str:
    if stat.S_ISLNK(member.external_attr >> 16):
        return NO_FILE
    if member.file_size > limits.file_bytes:
        return too_large(limits)
    try:
        with archive.open(member) as file:
            return file.read()  # at most `file_size` bytes, even if the compressed data hold more
    except UNREADABLE as problem:
        return f"{type(problem).__name__}: {problem}"


def _parts(name: str) -> tuple[str, ...] | None:
    """Return the folders and the file name of a member; None if it is hidden or has an absolute path."""
    path = PurePosixPath(name)
    if path.is_absolute() or path.parts[:1] == (MACOS,) or any(part.startswith(".") for part in path.parts):
        return None
    return path.parts or None
