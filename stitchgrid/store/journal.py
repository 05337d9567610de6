"""The journal of attempts, written before they start, and the heartbeat of a running launch."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.files import Files, write_next
from stitchgrid.store.layout import Layout
from stitchgrid.store.parts import DamagedFileError, json_object


class Journal:
    """Journals and heartbeats of all sweeps of a store."""

    def __init__(self, files: Files):
        self.files = files
        self._last_round: dict[str, int] = {}  # folder of a launch -> number of its last round

    def write(self, sweep: str, launch_id: str, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Note the attempts of one dispatch round before they start."""
        folder = Layout.launch(sweep, launch_id)
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
        for name, data in zip(names, self.files.read_many(names), strict=True):
            entry = _parsed(data)
            if entry is not None and round_problem(entry) is None:
                launch_id = name.split("/")[-2]
                found += [{**one, "launch": launch_id, "at": entry["at"]} for one in entry["attempts"]]
        return sorted(found, key=lambda one: str(one["at"]))

    def round_files(self, sweep: str) -> list[str]:
        """Return the names of the files of all dispatch rounds of a sweep, sound or not."""
        launches = [Layout.launch(sweep, launch_id) for launch_id in self.files.folders(Layout.journal(sweep))]
        return [f"{folder}/{name}" for folder in launches for name in self.files.names(folder)]

    def write_heartbeat(self, sweep: str, beat: Mapping[str, Any]) -> None:
        """Say what is going on now."""
        self.files.replace(Layout.heartbeat(sweep), canonical(dict(beat)).encode())

    def read_heartbeat(self, sweep: str) -> dict[str, Any] | None:
        """Return what was going on last, None if nothing is known."""
        beat = self._read(Layout.heartbeat(sweep))
        return None if beat is None or beat_problem(beat) else beat

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return _parsed(self.files.read(name)) if self.files.exists(name) else None
        except StoreError:
            return None


def _parsed(data: bytes | StoreError) -> dict[str, Any] | None:
    """Return the JSON object in a file that was read, None if there is none."""
    try:
        return None if isinstance(data, StoreError) else json_object(data)
    except DamagedFileError:
        return None


def round_problem(entry: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a round of the journal, None if nothing is."""
    attempts = entry.get("attempts")
    if "at" not in entry or not isinstance(attempts, list) or not all(isinstance(one, dict) for one in attempts):
        return "lacks 'at' or a list of attempts"
    return None


def beat_problem(beat: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a heartbeat, None if nothing is."""
    running = beat.get("running", [])
    if not isinstance(running, list) or not all(isinstance(one, dict) for one in running):
        return "'running' is no list of units"
    return None if "at" in beat else "lacks 'at'"
