"""Checks of torch.save files: of the archive before torch reads it, and of the size of the loaded tensors."""

import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitchgrid.errors import InputError
from stitchgrid.limits import check_growth
from stitchgrid.records import Limits

if TYPE_CHECKING:
    from torch import Tensor

_END = struct.Struct("<4sHHHHIIH")  # of an archive: sizes and place of its directory, and how long a comment is
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_FIELD = struct.Struct("<HH")  # of a member's extra data: kind and length
_ZIP64 = 1


def check_directory(path: Path) -> None:
    """Refuse a zip archive in which zipfile and torch may find different directories, hence different members.

    In one of torch.save's, the directory ends where the record of its end begins, and nothing follows that.

    Raises:
        InputError: If anything lies between or behind.
    """
    size = path.stat().st_size
    at = size - _END.size
    with path.open("rb") as file:

        def record(kind: struct.Struct, place: int) -> tuple[Any, ...]:
            file.seek(max(place, 0))
            content = file.read(kind.size)
            return kind.unpack(content) if place >= 0 and len(content) == kind.size else (b"",)

        end = record(_END, at)
        is_sound = end[0] == b"PK\x05\x06" and end[-1] == 0
        length, start = end[5:7] if is_sound else (0, 0)
        locator = record(_LOCATOR_64, at - _LOCATOR_64.size)
        if locator[0] == b"PK\x06\x07":
            at -= _LOCATOR_64.size + _END_64.size
            end = record(_END_64, at)
            is_sound = is_sound and end[0] == b"PK\x06\x06" and locator[2] == at
            length, start = end[8:10] if is_sound else (0, 0)
        if not is_sound or start + length != at or (length and record(struct.Struct("<4s"), start)[0] != b"PK\x01\x02"):
            raise InputError(
                f"{path} is damaged: a zip archive whose directory does not end where its file does, so that two "
                "programs may find different members in it; save the model's state_dict() with torch.save, or as "
                ".safetensors."
            )


def are_ambiguous(members: Sequence[zipfile.ZipInfo]) -> bool:
    """Return whether torch may take a member of an archive for another one than zipfile does.

    torch finds members by name, whatever the case of its letters. Of several fields with large sizes and places, torch
    takes the first; zipfile may take the second.
    """
    names = {member.orig_filename.lower() for member in members}
    return len(names) < len(members) or any(_num_zip64(member.extra) > 1 for member in members)


def _num_zip64(extra: bytes) -> int:
    found = 0
    while len(extra) >= _FIELD.size:
        kind, length = _FIELD.unpack_from(extra)
        found += kind == _ZIP64
        extra = extra[_FIELD.size + length :]
    return found


def tensors_in(content: Any) -> Iterator["Tensor"]:
    """Return all tensors in nested dictionaries and lists, those that are held twice once."""
    import torch

    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value


def is_expanded(tensor: "Tensor") -> bool:
    """Return whether a dense tensor has more elements than its storage, as `expand` makes one."""
    import torch

    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def check_shapes(path: Path, content: Any, limits: Limits, *, harmless: int) -> None:
    """Refuse tensors that stand for many more bytes than their file has: views that repeat a few numbers.

    Raises:
        TooMuchError: With both sizes.
    """
    num_bytes = sum(value.numel() * value.element_size() for value in tensors_in(content) if is_expanded(value))
    check_growth(path, num_bytes, limits, harmless=harmless)
