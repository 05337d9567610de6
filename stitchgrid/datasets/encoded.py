"""Images as the bytes of files -> pixels, by a few threads; only some of them are in memory at a time."""

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
from stitchgrid.printable import printable
from stitchgrid.records import Limits

T = TypeVar("T")
R = TypeVar("R")
Found: TypeAlias = Decoded | Unreadable

MOST_DECODE_THREADS = 8
NO_FILE = "cannot be read, or is a link"
DECODE_CHUNK = 8  # files a thread takes at a time
HELD_BYTES = 256_000_000  # of files that were read and are not decoded yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The content of an image file, or why it cannot be read."""

    position: Position
    name: str
    label: int
    raw: bytes | str  # a text says why there is nothing


def decode_all(items: Iterable[Encoded], bounds: Bounds | None, limits: Limits) -> Iterator[tuple[Position, Found]]:
    """Yield the images in the items' order; large ones are decoded when their turn comes, one at a time."""

    def decode_one(item: Encoded) -> tuple[Position, Found | Callable[[], Found]]:
        name = printable(item.name)  # names of files need not be text
        if isinstance(item.raw, str):
            return item.position, Unreadable(name=name, reason=item.raw)
        decoded = partial(decode, item.raw, name, item.label, bounds, limits)
        return item.position, decoded if is_large(item.raw) else decoded()

    for position, found in in_threads(decode_one, items, weigh=lambda item: len(item.raw)):
        yield position, found() if callable(found) else found


def in_threads(function: Callable[[T], R], items: Iterable[T], *, weigh: Callable[[T], int]) -> Iterator[R]:
    """Yield function(item) in the items' order, from a few threads; only a few chunks are in memory at a time.

    `weigh` tells the bytes of an item: of several that weigh much, fewer are held at a time.
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
    """Return why a file is not read, as the reason of an image that is unreadable."""
    return f"larger than {limits.file_bytes / 1e6:,g} MB; {raise_by('file_bytes')}"
