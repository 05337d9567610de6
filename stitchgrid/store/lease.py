"""Who works on a sweep: numbered claims, of which the highest counts; a claim is never changed.

A claim is written once, so that of two who want the same number one gets it. It stands as long as its launch says that
it is alive: by the heartbeat of the sweep, whose age is told by comparing clocks, and on the machine where the launch
runs by its process. A launch that was taken for dead and is not finds the higher number and stops.
"""

import getpass
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import ClaimDocument, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.journal import Journal
from stitchgrid.store.layout import HIGHEST, SWEEPS, Layout, is_safe, numbered

HEARTBEAT_IS_FRESH = timedelta(seconds=90)
START_TIME = 18  # its place in /proc/PID/stat, behind the state
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One launch's claim on a sweep."""

    number: int
    launch: str
    user: str
    host: str
    pid: int
    process: str  # the machine since it was started, its process ids, and the moment this process was started; or ""
    at: str  # ISO 8601, UTC

    def __str__(self) -> str:
        return f"launch {self.launch} ({self.user}@{self.host}, process {self.pid})"


class LeaseError(StoreError):
    """Somebody else works on the sweep."""


class Leases:
    """The claims on all sweeps of a store."""

    def __init__(self, files: Files, journal: Journal):
        self.files, self.journal = files, journal

    def last_number(self, sweep: str) -> int:
        """Return the number of the latest claim, 0 if there was none."""
        names = self.files.names(Layout.claims(sweep))
        return max((number for name in names if (number := claim_number(name)) is not None), default=0)

    def holder(self, sweep: str) -> Claim | None:
        """Return the claim of whoever works on the sweep, None if nobody is known to."""
        claim = self._latest(sweep)
        return claim if claim is not None and self._is_alive(sweep, claim) else None

    def claim(self, sweep: str, launch: str, *, force: bool = False) -> Claim:
        """Claim a sweep; `force` takes it from a launch that is alive, which then stops by itself.

        Raises:
            LeaseError: If another launch has it.
        """
        number = self.last_number(sweep) + 1  # looked up first: who claims in between gets it
        if not force:
            self.require_free(sweep)
        if number > HIGHEST:
            raise LeaseError(
                f"no claim on sweep {sweep!r} can follow {Layout.claim(sweep, number - 1)} in the store "
                f"{self.files.uri}; no launch counts so far: delete that file."
            )
        mine = _claim(number, launch)
        data = canonical({key: value for key, value in asdict(mine).items() if key != "number"}).encode()
        if not self.files.write_once(Layout.claim(sweep, number), data):
            raise LeaseError(f"sweep {sweep!r} was claimed by another launch at this very moment; try again.")
        return mine

    def running(self) -> dict[str, Claim]:
        """Return who works on which sweep of the store now, on sweeps that have no job yet, too."""
        names = [name for name in self.files.folders(SWEEPS) if is_safe(name)]
        return {name: holder for name in names if (holder := self.holder(name)) is not None}

    def require_free(self, sweep: str) -> None:
        """Raise a LeaseError if somebody works on a sweep."""
        if (other := self.holder(sweep)) is not None:
            raise LeaseError(
                f"sweep {sweep!r} is being computed by {other}, heard of {self._heard(sweep, other):.0f} s ago; follow "
                "it with 'stitchgrid status --watch', wait for its end, or take it over with --force (the other then "
                "stops by itself, and nothing that it finished is lost)."
            )

    def heartbeat(self, sweep: str, now: datetime) -> dict[str, Any] | None:
        """Return what the launch that is at a sweep said last; None if none is known to be at it."""
        beat, claim = self.journal.read_heartbeat(sweep), self._latest(sweep)
        if beat is None or beat.get("is_over") or not is_fresh(beat, now):
            return None
        return None if claim is not None and claim.launch == beat.get("launch") and _is_gone(claim) else beat

    def successor(self, sweep: str, mine: Claim) -> Claim | None:
        """Return the claim that has taken the place of mine, None while mine stands."""
        latest = self._latest(sweep)
        return latest if latest is not None and latest.number > mine.number else None

    def _latest(self, sweep: str) -> Claim | None:
        number = self.last_number(sweep)
        if number == 0:
            return None
        try:
            found = read_document(self.files, Layout.claim(sweep, number), ClaimDocument)
            return Claim(number=number, **{one.name: found[one.name] for one in fields(Claim) if one.name != "number"})
        except (DamagedFileError, StoreError):  # whoever it was, it counts as long as it could be alive
            return Claim(number=number, launch=UNKNOWN, user=UNKNOWN, host=UNKNOWN, pid=0, process="", at=UNKNOWN)

    def _is_alive(self, sweep: str, claim: Claim) -> bool:
        beat = self._beat(sweep, claim)
        if beat is not None and beat.get("is_over"):
            return False
        return not _is_gone(claim) and is_fresh(beat or {"at": claim.at}, datetime.now(UTC))

    def _heard(self, sweep: str, claim: Claim) -> float:
        at = moment((self._beat(sweep, claim) or {}).get("at", claim.at))
        return max(0.0, (datetime.now(UTC) - at).total_seconds()) if at else 0.0

    def _beat(self, sweep: str, claim: Claim) -> dict[str, Any] | None:
        beat = self.journal.read_heartbeat(sweep)
        return beat if beat is not None and claim.launch in (beat.get("launch"), UNKNOWN) else None


def claim_number(name: str) -> int | None:
    """Return the number of the claim that a file is, None if it is none."""
    return numbered(name, width=6, suffix=".json")


def moment(text: object) -> datetime | None:
    """Return the moment that a text says, of a clock of UTC where it says none; None if it says no moment."""
    try:
        at = datetime.fromisoformat(str(text))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # of a year that no calendar of another zone has
        return None


def is_fresh(beat: Mapping[str, Any], now: datetime) -> bool:
    """Return whether a heartbeat is recent enough to believe that its launch is alive."""
    at = moment(beat.get("at"))
    return at is not None and abs(now - at) <= HEARTBEAT_IS_FRESH


def is_here(claim: Claim) -> bool:
    """Return whether a claim was made among the process ids that this process sees."""
    return bool(claim.process) and claim.process.rpartition("/")[0] == _process(os.getpid()).rpartition("/")[0]


def is_running(claim: Claim) -> bool:
    """Return whether the process of a claim made here still runs."""
    return _process(claim.pid) == claim.process


def _is_gone(claim: Claim) -> bool:
    return is_here(claim) and not is_running(claim)


def _claim(number: int, launch: str) -> Claim:
    return Claim(
        number=number,
        launch=launch,
        user=_user(),
        host=platform.node(),
        pid=os.getpid(),
        process=_process(os.getpid()),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return str(os.getuid())


def _process(pid: int) -> str:
    """Return what no other process, past or future, on this machine or another, has; "" where there is no such one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink()
        state, *counters = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else f"{boot}/{space}/{counters[START_TIME]}"
