"""Files of a store as objects below a prefix of an S3 bucket."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from random import Random
from time import monotonic, sleep, time
from typing import Any, TypeVar

from stitchgrid.errors import StoreError
from stitchgrid.store.files import FileFacts, read_or_problem, too_long
from stitchgrid.store.limits import LONGEST_FILE
from stitchgrid.store.object_address import ObjectAddress
from stitchgrid.store.object_clients import NUM_CONNECTIONS, ObjectClients
from stitchgrid.store.object_problems import explain, pauses

AHEAD = 4 * NUM_CONNECTIONS  # files that are read before they are asked for
PROBE = ".writable"

Answer = TypeVar("Answer")


class ObjectFiles:
    """Objects below a prefix: each appears whole, by one PUT, or not at all; a folder is a shared beginning of names.

    Requests that fail for a temporary reason are repeated, for a minute at most.
    """

    def __init__(self, address: ObjectAddress):
        self.address = address
        self._clients = ObjectClients(address)
        self._random = Random()

    def __reduce__(self) -> tuple[type["ObjectFiles"], tuple[ObjectAddress]]:
        return type(self), (self.address,)  # clients belong to a process

    @property
    def uri(self) -> str:
        """Bucket, prefix, endpoint and region."""
        return self.address.uri

    def where(self, name: str) -> str:
        """Return the object's full name for people."""
        return self.address.where(name)

    def exists(self, name: str) -> bool:
        """Return whether the object is there."""
        [info] = self._ask("read", name, lambda: self._clients.reading.get_file_info([self._path(name)]))
        return bool(info.is_file)

    def read(self, name: str, longest: int = LONGEST_FILE) -> bytes:
        """Return what an object holds; a StoreError if it cannot be read, or is longer than `longest`."""

        def request() -> bytes | int:
            with self._clients.reading.open_input_file(self._path(name)) as stream:
                size = int(stream.size())
                return size if size > longest else bytes(stream.read())

        found = self._ask("read", name, request)
        if isinstance(found, int):
            raise too_long(self, name, found, longest)
        return found

    def read_many(self, names: Iterable[str], longest: int = LONGEST_FILE) -> Iterator[bytes | StoreError]:
        """Yield what each object holds, in the order of the names, or the error that reading it raised.

        Several are read at a time, since each read takes a round trip.
        """
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            reading: deque[Future[bytes | StoreError]] = deque()
            for name in names:
                reading.append(pool.submit(read_or_problem, self, name, longest))
                if len(reading) == AHEAD:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    def facts(self, name: str) -> FileFacts | None:
        """Return how large an object is and when it was written; None if it is not there."""
        [info] = self._ask("read", name, lambda: self._clients.reading.get_file_info([self._path(name)]))
        if not info.is_file:
            return None
        return FileFacts(num_bytes=int(info.size), age_seconds=time() - (info.mtime_ns or 0) / 1e9)

    def names(self, folder: str) -> list[str]:
        """Return the sorted names (without the folder) of its objects."""
        return sorted(info.base_name for info in self._entries(folder) if info.is_file)

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders inside a folder."""
        return sorted(info.base_name for info in self._entries(folder) if not info.is_file)

    def write_once(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists; return whether this call wrote it, so that the first writer wins.

        Without boto3, two writers within the same instant may both believe that they won.
        """
        if self.exists(name):
            return False
        attempts = count()

        def request() -> bool:
            is_repeated = next(attempts) > 0
            won = self._clients.writing.put_new(self.address.key(name), data)
            # The answer to an attempt that won may have been lost: then the next one finds what it has written.
            return won or (is_repeated and self.read(name) == data)

        return self._ask("write", name, request)

    def replace(self, name: str, data: bytes) -> None:
        """Write an object whether or not it exists; readers see the old or the new one, never a mixture."""
        self._ask("write", name, lambda: self._clients.writing.put(self.address.key(name), data))

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens if it is not there."""
        self._ask("delete", name, lambda: self._clients.writing.delete(self.address.key(name)))

    def check_writable(self) -> None:
        """Raise a StoreError if no object can be written."""
        self.replace(PROBE, b"?")
        with suppress(StoreError):  # only compaction needs to delete, and the next check writes the same object
            self.delete(PROBE)

    def create(self, name: str, data: bytes) -> None:
        """Write this object unless it exists, in a bucket that can be written."""
        self.check_writable()
        self.write_once(name, data)

    def absence(self, name: str) -> str:
        """Return what to say about a prefix where this object is missing."""
        bucket = self.address.bucket
        [info] = self._ask("read", name, lambda: self._clients.reading.get_file_info([bucket]))
        if not info.type:  # NotFound
            return f"there is no bucket {bucket!r}"
        return f"there is no {name} below that prefix"

    def _path(self, name: str) -> str:
        return f"{self.address.bucket}/{self.address.key(name)}".rstrip("/")

    def _entries(self, folder: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(folder), allow_not_found=True)
        found = self._ask("list", folder or "everything", lambda: self._clients.reading.get_file_info(selector))
        return [info for info in found if not info.base_name.startswith(".")]

    def _ask(self, verb: str, name: str, request: Callable[[], Answer]) -> Answer:
        """Return the answer to a request, which is repeated while its errors may be temporary.

        Raises:
            StoreError: If an error lasts.
        """
        start = monotonic()
        for pause in pauses(self._random):
            try:
                return request()
            except self._clients.errors as error:
                problem = explain(error, bucket=self.address.bucket, endpoint=self.address.endpoint)
                tried = monotonic() - start
                if tried + pause > problem.patience:
                    how_long = f", tried for {tried:.0f} s" if problem.patience else ""
                    raise StoreError(
                        f"cannot {verb} {name} in the store {self.uri}: {problem.reason}{how_long}; {problem.remedy}"
                    ) from error
            sleep(pause)
        raise AssertionError("pauses never end")
