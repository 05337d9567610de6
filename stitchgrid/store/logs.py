"""What workers noted while they did their units: a text for each attempt, for people."""

from stitchgrid.errors import StoreError
from stitchgrid.store.files import Files, write_next
from stitchgrid.store.layout import Layout, is_safe, numbered, safe

MAX_CHARACTERS = 100_000  # of one attempt
LONGEST = 4 * MAX_CHARACTERS  # bytes


class Logs:
    """The logs of all sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files

    def write(self, sweep: str, unit_id: str, text: str) -> None:
        """Keep the text of one attempt beside those of earlier ones; its end counts where it is long."""
        folder = self._folder(sweep, unit_id)
        data = text[-MAX_CHARACTERS:].encode()
        write_next(self.files, lambda number: f"{folder}/{number:03d}.log", data, after=len(self.files.names(folder)))

    def read(self, sweep: str, unit_id: str) -> str | None:
        """Return the texts of all attempts, oldest first; None if there are none."""
        folder = self._folder(sweep, unit_id)
        names = [name for name in self.files.names(folder) if numbered(name, width=3, suffix=".log") is not None]
        return "\n".join(self._text(f"{folder}/{name}") for name in names) if names else None

    def names(self, sweep: str) -> list[str]:
        """Return the ids of the units that have logs, sorted."""
        return [name for name in self.files.folders(Layout.logs(sweep)) if is_safe(name)]

    def _text(self, name: str) -> str:
        try:
            return self.files.read(name, LONGEST).decode(errors="replace")
        except StoreError as problem:  # no regular file, or not one that a worker wrote
            return f"{problem}\n"

    def _folder(self, sweep: str, unit_id: str) -> str:
        return f"{Layout.logs(sweep)}/{safe(unit_id, 'unit')}"
