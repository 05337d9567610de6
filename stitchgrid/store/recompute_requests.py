"""Requests to compute cells of a sweep again, kept until all are computed: a launch that was stopped can go on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import RequestsDocument, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.layout import StoreLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputeRequest:
    """Cells that are to be computed again."""

    globs: tuple[str, ...]  # of kinds of matchers and names of models; "all"
    generation: int  # of the rows that answer the request: above that of every earlier row


class RecomputeRequests:
    """The requests for all sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files

    def read(self, sweep: str) -> tuple[RecomputeRequest, ...]:
        """Return the requests of a sweep that may not be answered yet.

        Raises:
            StoreError: If the file of the requests is damaged or cannot be read.
        """
        name = StoreLayout.requests(sweep)
        if not self.files.exists(name):
            return ()
        try:
            found = read_document(self.files, name, RequestsDocument)["requests"]
        except DamagedFileError as problem:
            raise StoreError(
                f"{name} in the store {self.files.uri} is damaged: {problem}; set it aside with 'stitchgrid check "
                "--repair', and ask again with --recompute."
            ) from problem
        return tuple(RecomputeRequest(globs=tuple(one["globs"]), generation=one["generation"]) for one in found)

    def write(self, sweep: str, requests: Sequence[RecomputeRequest]) -> None:
        """Store these requests in place of the earlier ones."""
        body = {"requests": [asdict(one) for one in requests]}
        self.files.replace(StoreLayout.requests(sweep), canonical(body).encode())

    def forget(self, sweep: str) -> None:
        """Delete the requests of a sweep, all of which are answered."""
        self.files.delete(StoreLayout.requests(sweep))
