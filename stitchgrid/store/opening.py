"""From the text that a user wrote after --store to the files of a store in a format that this version understands."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from stitchgrid import __version__
from stitchgrid.errors import NoStoreError, StoreError
from stitchgrid.paths import named_path
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import Marker, read_document
from stitchgrid.store.files import Files, LocalFiles
from stitchgrid.store.layout import FORMAT, MARKER


def open_files(uri: str | Path, *, create: bool) -> Files:
    """Return the files of a store; `create` makes it where there is none, and checks that it can be written.

    Raises:
        NoStoreError: If there is no store, and `create` is off.
        StoreError: If the store cannot be reached or written, or has a kind or format that this version cannot use.
    """
    files = _files_at(str(uri))
    if create:
        files.create(MARKER, _marker())
    elif not files.exists(MARKER):
        raise NoStoreError(
            f"no store at {files.uri}: {files.absence(MARKER)}; name another with --store or $STITCHGRID_STORE, or "
            "make one with 'stitchgrid launch'."
        )
    _check_format(files)
    return files


def raise_format(files: Files) -> None:
    """Mark an old store as one of this format, so that versions which would overlook some of its files refuse it."""
    if int(read_document(files, MARKER, Marker)["format"]) < FORMAT:
        files.replace(MARKER, _marker())


def _marker() -> bytes:
    return canonical({"format": FORMAT, "version": __version__}).encode()


def _files_at(uri: str) -> Files:
    if "://" not in uri:
        return LocalFiles(named_path(uri).absolute())
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalFiles(Path(unquote(parts.path)).absolute())
    if parts.scheme == "s3":
        from stitchgrid.store.object_address import parse_address
        from stitchgrid.store.object_files import ObjectFiles

        return ObjectFiles(parse_address(uri))
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without a part that may hold a password
    raise StoreError(
        f"stores at {parts.scheme}:// are not supported by this version of stitchgrid ({__version__}), got {place!r}; "
        "name a folder that all workers can see, or s3://bucket/prefix."
    )


def _check_format(files: Files) -> None:
    try:
        found = int(read_document(files, MARKER, Marker)["format"])
    except DamagedFileError as problem:
        raise StoreError(
            f"{MARKER} in the store {files.uri} is damaged ({problem}); if the folder is a store, replace the file by "
            f'{{"format":{FORMAT}}}.'
        ) from problem
    if found > FORMAT:
        raise StoreError(
            f"the store {files.uri} has format {found}, this stitchgrid ({__version__}) reads up to {FORMAT}; "
            "upgrade stitchgrid."
        )
