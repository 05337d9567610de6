"""Load files of torch.save's, after a check of the instructions of their pickles.

`torch.load` runs no code of a checkpoint, but a few bytes of a file can make it allocate any amount of memory, and it
hashes every key of the file.
"""

import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from stitchgrid.datasets.pickle_values import RefusedPickleError
from stitchgrid.datasets.pickle_walk import PickleWalk, StoppedPickleError
from stitchgrid.datasets.torch_files import are_ambiguous, check_directory
from stitchgrid.errors import InputError
from stitchgrid.records import DEFAULT_LIMITS, Limits

_NUM_HEADS = 3  # pickles before the content in files of torch before 1.6: a number, a version, the system


def load_pickles(path: Path, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return what a file of torch.save's holds, on the CPU, after a check of its pickles.

    Raises:
        InputError: As `check_pickles` does.
        Exception: Of any type, if it is damaged; a `pickle.UnpicklingError` if it holds more than tensors and values.
    """
    import torch

    check_pickles(path, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old storage formats: nothing a user can act on
            return torch.load(path, map_location="cpu", weights_only=True)
    finally:  # torch would check the sparse tensors of a file that it could not read when it reads the next one
        torch._utils._sparse_tensors_to_validate.clear()


def check_pickles(path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse a file of torch.save's that makes what the file does not hold, or has keys that take for ever.

    Raises:
        InputError: If one of its pickles does, or an archive may be read in two ways.
        Exception: Of zipfile's, if it is an archive that cannot be read; torch may read more of one than zipfile does.
            Of any type, if the instructions of a pickle do not fit each other.
    """
    num_bytes = path.stat().st_size
    walk = PickleWalk(limits.tensors, num_bytes)
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
            file.seek(0)
            if is_archive:
                check_directory(path)
                _check_archive(walk, file)
            else:
                _check_stream(walk, file, num_bytes)
    except RefusedPickleError as problem:
        raise InputError(
            f"{path} {problem}, so that it is not read; save the model's state_dict() with torch.save, or as "
            ".safetensors."
        ) from problem


def _check_archive(walk: PickleWalk, file: IO[bytes]) -> None:
    """Check each pickle, and that each of its storages is a member of the archive, with all its bytes."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if are_ambiguous(members):
            raise RefusedPickleError("has two members of one name, or a member in two places")
        sizes = {member.orig_filename: member.file_size for member in members}
        for member in members:
            if not member.orig_filename.lower().endswith(".pkl"):
                continue
            if not member.CRC:  # torch.save was told to compute none; None is not compared
                member.CRC = None  # type: ignore[assignment]
            with archive.open(member) as inner, suppress(StoppedPickleError):
                walk.follow(inner)
            folder = member.orig_filename[: -len(".pkl")]
            held = {key: sizes[name] for key in walk.calls.stored if (name := f"{folder}/{key}") in sizes}
            _check_held(walk.calls.stored, held)


def _check_stream(walk: PickleWalk, file: IO[bytes], num_bytes: int) -> None:
    """Check the pickles of a file of torch before 1.6, and that they list all storages of the content."""
    if _is_tar(file.read(tarfile.BLOCKSIZE)):  # torch looks for one first; Python before 3.11.10 reads some for ever
        raise RefusedPickleError("is a tar archive")
    file.seek(0)
    is_whole = False
    with suppress(StoppedPickleError):
        for _ in range(_NUM_HEADS + 1):
            walk.follow(file)
        is_whole = True
    stored = walk.calls.stored
    if (num_stored := sum(stored.values())) > num_bytes:
        raise RefusedPickleError(f"has {num_bytes:,} bytes, and tensors of {num_stored:,}")
    with suppress(StoppedPickleError):
        found = walk.follow(file) if is_whole else []
        if not isinstance(found, list | tuple) or not all(isinstance(key, str) for key in found):
            raise RefusedPickleError("has no list of its tensors")
        if is_whole:
            _check_held(stored, {key: stored[key] for key in found if key in stored})


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _check_held(stored: Mapping[str, int], held: Mapping[str, int]) -> None:
    if lost := stored.keys() - held.keys():
        raise RefusedPickleError(f"has {len(lost)} tensors without their numbers")
    if some := [key for key, num_bytes in stored.items() if held[key] != num_bytes]:
        raise RefusedPickleError(f"has {held[some[0]]:,} bytes of a tensor of {stored[some[0]]:,}")
