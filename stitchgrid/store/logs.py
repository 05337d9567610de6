"""Logs of workers: one text for each attempt at a unit, for users to read."""

from stitchgrid.errors import StoreError
from stitchgrid.store.damage import Damage
from stitchgrid.store.files import Files, LocalFiles, write_next
from stitchgrid.store.layout import StoreLayout, is_safe, numbered, safe

MAX_CHARACTERS = 100_000  # of one attempt
LONGEST = 4 * MAX_CHARACTERS  # bytes


class Logs:
    """The logs of all sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files

    def write(self, sweep: str, unit_id: str, text: str) -> None:
        """Keep the text of one attempt beside those of earlier ones; of a long text, only the end is kept."""
        folder = self._folder(sweep, unit_id)
        data = text[-MAX_CHARACTERS:].encode()
        write_next(self.files, lambda number: f"{folder}/{number:03d}.log", data, after=len(self.files.names(folder)))

    def read(self, sweep: str, unit_id: str) -> str | None:
        """Return the texts of all attempts, oldest first; None if there are none."""
        folder = self._folder(sweep, unit_id)
        names = self._texts(folder)
        return "\n".join(self._text(f"{folder}/{name}") for name in names) if names else None

    def problems(self, sweep: str, unit_id: str) -> list[Damage]:
        """Return the logs that are longer than any log of a worker; `read` does not show them."""
        folder = self._folder(sweep, unit_id)
        sizes = ((f"{folder}/{name}", self._size(f"{folder}/{name}")) for name in self._texts(folder))
        return [
            Damage(file=name, reason=f"has {size} bytes; no log has more than {LONGEST}")
            for name, size in sizes
            if size > LONGEST
        ]

    def names(self, sweep: str) -> list[str]:
        """Return the ids of the units that have logs, sorted."""
        return [name for name in self.files.folders(StoreLayout.logs(sweep)) if is_safe(name)]

    def _texts(self, folder: str) -> list[str]:
        return [name for name in self.files.names(folder) if numbered(name, width=3, suffix=".log") is not None]

    def _size(self, name: str) -> int:
        if isinstance(self.files, LocalFiles):  # a name may be a link to another file of the store
            return self.files.size(name)
        facts = self.files.facts(name)
        return facts.num_bytes if facts else 0

    def _text(self, name: str) -> str:
        try:
            return self.files.read(name, LONGEST).decode(errors="replace")
        except StoreError as problem:  # no regular file, or not one that a worker wrote
            return f"{problem}\n"

    def _folder(self, sweep: str, unit_id: str) -> str:
        return f"{StoreLayout.logs(sweep)}/{safe(unit_id, 'unit')}"
