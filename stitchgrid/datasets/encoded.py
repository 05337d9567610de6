"""Decode image files by a few threads, with only a few files in memory at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from stitchgrid.cpus import num_cpus
from stitchgrid.datasets.decoding import decode, is_large
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.sources import Decoded, Position, Unreadable
from stitchgrid.limits import raise_by
from stitchgrid.printable import in_one_line
from stitchgrid.records import Limits

T = TypeVar("T")
R = TypeVar("R")
Found: TypeAlias = Decoded | Unreadable

MOST_DECODE_THREADS = 8
NO_FILE = "cannot be read, or is a link"
DECODE_CHUNK = 8  # files that a thread takes at a time
HELD_BYTES = 256_000_000  # most bytes of files that are read but not decoded yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The content of an image file, or why it cannot be read."""

    position: Position
    name: str
    label: int
    raw: bytes | str  # the content; a text is the reason why it cannot be read


def decode_all(items: Iterable[Encoded], bounds: Bounds | None, limits: Limits) -> Iterator[tuple[Position, Found]]:
    """Yield the images in the order of `items`; large images are decoded one at a time."""

    def decode_one(item: Encoded) -> tuple[Position, Found | Callable[[], Found]]:
        name = in_one_line(item.name)  # a file name may have bytes that are not text
        if isinstance(item.raw, str):
            return item.position, Unreadable(name=name, reason=item.raw)
        decoded = partial(decode, item.raw, name, item.label, bounds, limits)
        return item.position, decoded if is_large(item.raw) else decoded()

    for position, found in in_threads(decode_one, items, weigh=lambda item: len(item.raw)):
        yield position, found() if callable(found) else found


def in_threads(function: Callable[[T], R], items: Iterable[T], *, weigh: Callable[[T], int]) -> Iterator[R]:
    """Yield function(item) in the order of `items`, computed by a few threads; few chunks are in memory at a time.

    `weigh` returns the size of an item in bytes: the larger the items, the fewer are in memory at a time.
    """
    num_threads = min(MOST_DECODE_THREADS, num_cpus())
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[tuple[Future[list[R]], int]] = deque()
        held = 0
        for chunk, weight in _chunks(items, weigh):
            waiting.append((pool.submit(lambda part: [function(item) for item in part], chunk), weight))
            held += weight
            while waiting and (len(waiting) > 2 * num_threads or held > HELD_BYTES):
                first, its_weight = waiting.popleft()
                held -= its_weight
                yield from first.result()
        while waiting:
            yield from waiting.popleft()[0].result()


def _chunks(items: Iterable[T], weigh: Callable[[T], int]) -> Iterator[tuple[list[T], int]]:
    chunk: list[T] = []
    weight = 0
    for item in items:
        chunk.append(item)
        weight += weigh(item)
        if len(chunk) == DECODE_CHUNK or weight > HELD_BYTES // DECODE_CHUNK:
            yield chunk, weight
            chunk, weight = [], 0
    if chunk:
        yield chunk, weight


def too_large(limits: Limits) -> str:
    """Return the reason why a file above the limit is not read."""
    return f"larger than {limits.file_bytes / 1e6:,g} MB; {raise_by('file_bytes')}"
