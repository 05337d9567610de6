"""The journal of attempts, written before they start, and the heartbeat of a running launch."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import BeatDocument, RoundDocument, json_object, longest, read_document
from stitchgrid.store.files import Files, write_next
from stitchgrid.store.layout import StoreLayout, is_safe, numbered


class Journal:
    """Journals and heartbeats of all sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files
        self._last_round: dict[str, int] = {}  # folder of a launch -> number of its last round

    def write(self, sweep: str, launch_id: str, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Note the attempts of one dispatch round before they start."""
        folder = StoreLayout.launch(sweep, launch_id)
        if folder not in self._last_round:
            self._last_round[folder] = len(self.files.names(folder))
        entry = {"at": datetime.now(UTC).isoformat(), "launch": launch_id, "attempts": [dict(one) for one in attempts]}
        self._last_round[folder] = write_next(
            self.files,
            lambda number: f"{folder}/{number:06d}.json",
            canonical(entry).encode(),
            after=self._last_round[folder],
        )

    def attempts(self, sweep: str) -> list[dict[str, Any]]:
        """Return every attempt with its `launch` and `at`, oldest first; rounds that cannot be read are left out."""
        found: list[dict[str, Any]] = []
        names = self.round_files(sweep)
        for name, data in zip(names, self.files.read_many(names, longest(RoundDocument)), strict=True):
            if entry := _round(data):
                launch_id = name.split("/")[-2]
                found += [{**one, "launch": launch_id, "at": entry["at"]} for one in entry["attempts"]]
        return sorted(found, key=lambda one: str(one["at"]))

    def round_files(self, sweep: str) -> list[str]:
        """Return the names of the files of all dispatch rounds of a sweep, sound or not."""
        folders = [
            StoreLayout.launch(sweep, one) for one in self.files.folders(StoreLayout.journal(sweep)) if is_safe(one)
        ]
        return [f"{folder}/{name}" for folder in folders for name in self.files.names(folder) if is_round(name)]

    def write_heartbeat(self, sweep: str, beat: Mapping[str, Any]) -> None:
        """Write what a launch is doing now."""
        self.files.replace(StoreLayout.heartbeat(sweep), canonical(dict(beat)).encode())

    def read_heartbeat(self, sweep: str) -> dict[str, Any] | None:
        """Return the last heartbeat, None if there is none that can be read."""
        name = StoreLayout.heartbeat(sweep)
        try:
            return read_document(self.files, name, BeatDocument) if self.files.exists(name) else None
        except (DamagedFileError, StoreError):
            return None


def _round(data: bytes | StoreError) -> dict[str, Any] | None:
    """Return the round in a file that was read, None if it is damaged."""
    try:
        return None if isinstance(data, StoreError) else json_object(data, RoundDocument)
    except DamagedFileError:
        return None


def is_round(name: str) -> bool:
    """Return whether a file of a launch's journal is a round."""
    return numbered(name, width=6, suffix=".json") is not None
