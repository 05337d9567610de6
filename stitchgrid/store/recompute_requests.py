"""Cells of a sweep that were asked for again, noted until all of them are there: a launch that was stopped goes on."""

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

    globs: tuple[str, ...]  # over the kinds of matchers and the names of models; "all"
    generation: int  # of the rows that answer it: above that of every row which was there before


class RecomputeRequests:
    """What is asked for again of all sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files

    def read(self, sweep: str) -> tuple[RecomputeRequest, ...]:
        """Return what is asked for again and may not be there yet.

        Raises:
            StoreError: If the note is damaged or cannot be read.
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
        """Note what is asked for again, in the place of what was noted."""
        body = {"requests": [asdict(one) for one in requests]}
        self.files.replace(StoreLayout.requests(sweep), canonical(body).encode())

    def forget(self, sweep: str) -> None:
        """Note that all that was asked for is there."""
        self.files.delete(StoreLayout.requests(sweep))
