"""Readings of a checkpoint: every set of tensors in it, under every way to strip its names, that a network could take.

Training frameworks wrap weights in many ways. A reading fits if it has all of the network's tensors, in their shapes,
and none besides. If readings that fit differ in values, such as raw and averaged weights, the job has to name one.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

UNTRACKED = "num_batches_tracked"  # a counter of batch norm that no output depends on
MAX_DEPTH = 16  # dictionaries within dictionaries
MAX_SETS = 10_000
LONGEST_NAME, MOST_PARTS = 1000, 64  # characters, and parts between dots, of a tensor's name
_NUM_PREFIXES = 8  # tried of one set of tensors when nothing fits
_COMPONENTS = ((), ("_orig_mod",), ("_orig_mod", "module"))  # parts of names that torch.compile and DataParallel add


@dataclass(frozen=True, kw_only=True)
class CheckpointReading:
    """One way to read a checkpoint."""

    key: str  # where in the file: "state_dict", "ema.shadow"; "" for the file itself
    strip: str  # the prefix that is stripped from its names
    tensors: dict[str, Tensor]  # by the network's names; those not under `strip` are left out
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it has all that the network has, and nothing else."""
        return not self.num_wrong

    @property
    def num_wrong(self) -> int:
        """Number of names that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def lacks_only(self, names: Collection[str]) -> bool:
        """Return whether nothing is wrong with it but that it lacks some of these tensors."""
        return not self.unexpected and not self.misshapen and set(self.missing) <= set(names)


class Outline:
    """Names and shapes of a network's tensors."""

    def __init__(self, module: nn.Module):
        state = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        self.kind = type(module).__name__
        self.shapes = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(UNTRACKED)}
        self.parameters = [name for name, _ in module.named_parameters()]
        self.tied: dict[str, list[str]] = {}  # name -> names of the same tensor
        by_tensor: dict[int, list[str]] = {}
        for name, value in state.items():
            self.tied[name] = by_tensor.setdefault(id(value), [])
            self.tied[name].append(name)
        self.buffers = self.shapes.keys() - {name for one in self.parameters for name in self.tied.get(one, [one])}
        self.modules = {name.partition(".")[0] for name in state}

    def read(self, key: str, strip: str, tensors: Mapping[str, Tensor], *, lenient: bool = False) -> CheckpointReading:
        """Return how tensors of these names fit; `lenient` leaves out those of modules that the network lacks."""
        if lenient:
            tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] in self.modules}
        given = {name: value for name, value in tensors.items() if not name.endswith(UNTRACKED)}
        for name in self.shapes.keys() - given.keys():  # of tensors with several names, files may hold one
            if held := [given[other] for other in self.tied[name] if other in given]:
                given[name] = held[0]
        misshapen = [
            f"{name} {tuple(given[name].shape)} where the network has {shape}"
            for name, shape in self.shapes.items()
            if name in given and tuple(given[name].shape) != shape
        ]
        return CheckpointReading(
            key=key,
            strip=strip,
            tensors={**tensors, **given},
            missing=tuple(name for name in self.shapes if name not in given),
            unexpected=tuple(name for name in given if name not in self.shapes),
            misshapen=tuple(misshapen),
        )


def find_sets(content: Any) -> Iterator[tuple[str, dict[str, Tensor] | list[Tensor]]]:
    """Yield every dictionary or list of tensors in the content of a file, with the keys that lead to it."""
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    seen: set[int] = set()
    while waiting and len(seen) < MAX_SETS:
        key, value, depth = waiting.pop(0)
        if id(value) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            tensors = {name: one for name, one in value.items() if _is_name(name) and _is_plain(one)}
            if tensors:
                yield key, tensors
            inner = [(f"{key}.{name}" if key else str(name), one) for name, one in value.items()]
            waiting += [(name, one, depth + 1) for name, one in inner if isinstance(one, Mapping | list | tuple)]
        elif isinstance(value, list | tuple) and value and all(map(_is_plain, value)):
            yield key, list(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_nested)


def _is_name(name: object) -> bool:
    """Return whether a name is short enough for a tensor: the time to strip it grows with the square of its parts."""
    return isinstance(name, str) and len(name) <= LONGEST_NAME and name.count(".") < MOST_PARTS


def find_readings(content: Any, outline: Outline, *, key: str | None, strip: str | None) -> list[CheckpointReading]:
    """Return the readings of a file's content, best first; with `key` or `strip`, only those that match."""
    found: list[CheckpointReading] = []
    for where, tensors in find_sets(content):
        if key is not None and not _is_key(where, key):
            continue
        if isinstance(tensors, list):
            if strip is None:
                found += _of_list(where, tensors, outline)
            continue
        is_named = key is not None or strip is not None
        for prefix in _prefixes(tensors, outline) if strip is None else [with_dot(strip)]:
            found += _of_prefix(where, prefix, tensors, outline, lenient=is_named)
    exact = [reading for reading in found if key is not None and reading.key == key]
    return sorted(exact or found, key=lambda one: (not one.fits, len(one.missing), one.num_wrong, len(one.strip)))


def with_dot(strip: str) -> str:
    """Return a prefix with the dot that ends it.

    >>> with_dot("model"), with_dot("model."), with_dot("")
    ('model.', 'model.', '')
    """
    return strip if not strip or strip.endswith(".") else f"{strip}."


def _is_key(where: str, key: str) -> bool:
    return where == key or where.endswith(f".{key}")


def _of_list(where: str, values: Sequence[Tensor], outline: Outline) -> list[CheckpointReading]:
    """Return a list of tensors as the network's parameters in their order, if their shapes say so."""
    shapes = [tuple(value.shape) for value in values]
    if not shapes or shapes != [outline.shapes.get(name) for name in outline.parameters]:
        return []
    return [outline.read(where, "", dict(zip(outline.parameters, values, strict=True)))]


def _of_prefix(
    where: str, prefix: str, tensors: Mapping[str, Tensor], outline: Outline, *, lenient: bool
) -> Iterator[CheckpointReading]:
    """Yield readings without a prefix: by the names as they are and, if these do not fit, without wrappers' parts."""
    under = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not under:
        return
    for components in _COMPONENTS:
        renamed = {_without(components, name): one for name, one in under.items()}
        if components and (renamed.keys() == under.keys() or len(renamed) < len(under)):
            continue
        reading = outline.read(where, prefix, renamed, lenient=lenient)
        yield reading
        if reading.fits:
            return


def _without(components: Collection[str], name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in components)


def _prefixes(tensors: Mapping[str, Tensor], outline: Outline) -> list[str]:
    """Return the prefixes under which most of the network's names are found, and those that all names have."""
    votes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if ".".join(parts[start:]) in outline.shapes:
                votes["".join(f"{part}." for part in parts[:start])] += 1
    shared = _shared([name.split(".")[:-1] for name in tensors])
    of_all = ["".join(f"{part}." for part in shared[: end + 1]) for end in range(len(shared))]
    return list(dict.fromkeys(["", *(prefix for prefix, _ in votes.most_common(_NUM_PREFIXES)), *of_all]))


def of_equal_values(a: CheckpointReading, b: CheckpointReading, outline: Outline) -> bool:
    """Return whether two readings give the network the same values."""
    return all(
        a.tensors[name] is b.tensors[name] or torch.equal(a.tensors[name], b.tensors[name]) for name in outline.shapes
    )


def completed(
    reading: CheckpointReading, others: Sequence[CheckpointReading], outline: Outline
) -> CheckpointReading | None:
    """Return averaged parameters with the buffers of the raw weights in the file; None where these buffers differ."""
    if not others or not reading.lacks_only(outline.buffers):
        return None
    first, *rest = others
    if any(not torch.equal(first.tensors[name], one.tensors[name]) for one in rest for name in reading.missing):
        return None
    buffers = {name: first.tensors[name] for name in reading.missing}
    return replace(reading, tensors={**reading.tensors, **buffers}, missing=())


def _shared(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the beginning that all lists share.

    >>> _shared([["a", "b"], ["a", "c"]])
    ['a']
    """
    found = []
    for column in zip(*lists, strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found
