"""Which launch works on a sweep: numbered claims, of which the highest counts; a claim is never changed.

A claim is written once, so that only one launch gets each number. It holds as long as its launch is alive. On the
machine of the launch, its process shows this; on other machines, and where the system hides other users' processes, a
heartbeat that changes between two readings does.
Clocks are never compared: those of two machines may be minutes apart. A launch that is wrongly taken for dead finds the
higher number and stops.
"""

import getpass
import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import ClaimDocument, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.journal import Journal
from stitchgrid.store.layout import HIGHEST, SWEEPS, StoreLayout, is_safe, numbered

SILENCE_S = 60.0  # a launch elsewhere counts as gone after this time without a heartbeat; one is due every five seconds
LOOK_S = 1.0  # between two readings of heartbeats
HEARTBEAT_IS_FRESH = timedelta(seconds=90)  # only for what is shown: no clock decides which launch may have a sweep
SECOND_LOOK_S = 6.0  # time in which a heartbeat is due
MOST_SKEW = timedelta(hours=14)  # of a clock that is set to a wrong time zone
SKEW_S = 30.0  # difference between two machines' clocks from which on messages mention it
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
    """Another launch works on the sweep."""


class Leases:
    """The claims on all sweeps of a store."""

    def __init__(self, files: Files, journal: Journal):
        self.files, self.journal = files, journal

    def last_number(self, sweep: str) -> int:
        """Return the number of the latest claim, 0 if there was none."""
        names = self.files.names(StoreLayout.claims(sweep))
        return max((number for name in names if (number := claim_number(name)) is not None), default=0)

    def holder(self, sweep: str, *, say: Callable[[str], None] = lambda _: None) -> Claim | None:
        """Return the claim of the launch that works on the sweep, None if none does; found as by `holders`."""
        return self.holders([sweep], say=say).get(sweep)

    def holders(self, sweeps: Collection[str], *, say: Callable[[str], None] = lambda _: None) -> dict[str, Claim]:
        """Return the claims of the launches that work on sweeps, by sweep.

        A launch of another machine is alive if its heartbeat changes. This call waits for such changes, for all sweeps
        at the same time and SILENCE_S seconds at most, and calls `say` with a text about it.
        """
        latest = {sweep: claim for sweep in sweeps if (claim := self._latest(sweep)) is not None}
        found = {s: one for s, one in latest.items() if not (_is_gone(one) or self._is_over(s, one))}
        unsure = [sweep for sweep, claim in found.items() if not is_here(claim)]
        for sweep in unsure:
            whose = f"Sweep {sweep!r} was claimed by {found.pop(sweep)}"
            say(f"{whose}; it takes up to {SILENCE_S:.0f} s to see whether that launch is alive.")
        alive = self.changing(unsure, SILENCE_S) if unsure else ()
        return found | {sweep: claim for sweep in alive if (claim := self._latest(sweep)) is not None}

    def changing(self, sweeps: Collection[str], seconds: float) -> set[str]:
        """Return the sweeps whose heartbeat or claim changes within these seconds: launches work on them."""
        before = {sweep: self._sign_of_life(sweep) for sweep in sweeps}
        end, found = monotonic() + seconds, set[str]()
        while len(found) < len(before) and monotonic() < end:
            sleep(min(LOOK_S, max(0.0, end - monotonic())))
            found |= {sweep for sweep, sign in before.items() if self._sign_of_life(sweep) != sign}
        return found - {sweep for sweep in found if self._is_over(sweep, self._latest(sweep))}

    def _sign_of_life(self, sweep: str) -> tuple[int, dict[str, Any] | None]:
        return self.last_number(sweep), self.journal.read_heartbeat(sweep)

    def claim(
        self, sweep: str, launch: str, *, force: bool = False, say: Callable[[str], None] = lambda _: None
    ) -> Claim:
        """Claim a sweep; `force` takes it from a launch that is alive, which then stops by itself.

        `say` gets a text if this call has to wait.

        Raises:
            LeaseError: If another launch has it.
        """
        number = self.last_number(sweep) + 1  # read first: a launch that claims in between gets the number
        if not force:
            self.require_free(sweep, say=say)
        if number > HIGHEST:
            raise LeaseError(
                f"no claim on sweep {sweep!r} can follow {StoreLayout.claim(sweep, number - 1)} in the store "
                f"{self.files.uri}; no launch counts so far: delete that file."
            )
        mine = _claim(number, launch)
        data = canonical({key: value for key, value in asdict(mine).items() if key != "number"}).encode()
        if not self.files.write_once(StoreLayout.claim(sweep, number), data):
            raise LeaseError(f"sweep {sweep!r} was claimed by another launch at this very moment; try again.")
        return mine

    def running(self) -> dict[str, Claim]:
        """Return the claims of all launches at work in the store, by sweep, even by one that has no job yet."""
        return self.holders([name for name in self.files.folders(SWEEPS) if is_safe(name)])

    def require_free(self, sweep: str, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Make sure that no launch works on a sweep; `say` gets a text if this call has to wait to know it.

        Raises:
            LeaseError: If a launch works on it.
        """
        if (other := self.holder(sweep, say=say)) is not None:
            raise LeaseError(
                f"sweep {sweep!r} is being computed by {other}{self._skew(sweep, other)}; follow it with 'stitchgrid "
                "status --watch', wait for its end with --wait, or take it over with --force (the other then stops by "
                "itself, and nothing that it finished is lost)."
            )

    def wait_until_free(self, sweep: str, *, say: Callable[[str], None]) -> None:
        """Wait until no launch works on a sweep any more, however long that takes."""
        is_said = False
        while (other := self.holder(sweep)) is not None:
            if not is_said:
                say(f"Waiting until {other} has finished sweep {sweep!r}.")
            is_said = True
            sleep(LOOK_S)

    def heartbeat(self, sweep: str, now: datetime) -> dict[str, Any] | None:
        """Return the last heartbeat of the launch that works on a sweep; None if none is known to work on it."""
        beat, claim = self.journal.read_heartbeat(sweep), self._latest(sweep)
        if beat is None or beat.get("is_over") or not is_fresh(beat, now):
            return None
        return None if claim is not None and claim.launch == beat.get("launch") and _is_gone(claim) else beat

    def heartbeats(self, sweeps: Collection[str], now: datetime) -> dict[str, dict[str, Any]]:
        """Return the last heartbeats of the launches that work on these sweeps, by sweep.

        A heartbeat of another machine that is old by its clock, which may be wrong, is read a second time.
        """
        found = {sweep: beat for sweep in sweeps if (beat := self.heartbeat(sweep, now)) is not None}
        unsure = [sweep for sweep in sweeps if sweep not in found and self._may_be_alive(sweep, now)]
        for sweep in self.changing(unsure, SECOND_LOOK_S) if unsure else ():
            found[sweep] = self.journal.read_heartbeat(sweep) or {}
        return found

    def _may_be_alive(self, sweep: str, now: datetime) -> bool:
        claim, beat = self._latest(sweep), self.journal.read_heartbeat(sweep) or {}
        at = moment(beat.get("at"))
        is_recent = at is not None and abs(now - at) <= MOST_SKEW
        return claim is not None and is_recent and not (beat.get("is_over") or is_here(claim))

    def successor(self, sweep: str, mine: Claim) -> Claim | None:
        """Return the claim that has replaced `mine`, None while `mine` holds."""
        latest = self._latest(sweep)
        return latest if latest is not None and latest.number > mine.number else None

    def _latest(self, sweep: str) -> Claim | None:
        number = self.last_number(sweep)
        if number == 0:
            return None
        try:
            found = read_document(self.files, StoreLayout.claim(sweep, number), ClaimDocument)
            return Claim(number=number, **{one.name: found[one.name] for one in fields(Claim) if one.name != "number"})
        except (DamagedFileError, StoreError):  # an unreadable claim counts as long as its launch may be alive
            return Claim(number=number, launch=UNKNOWN, user=UNKNOWN, host=UNKNOWN, pid=0, process="", at=UNKNOWN)

    def _is_over(self, sweep: str, claim: Claim | None) -> bool:
        """Return whether the launch of the latest claim said that it was over."""
        beat = None if claim is None else self._beat(sweep, claim)
        return beat is not None and bool(beat.get("is_over"))

    def _skew(self, sweep: str, claim: Claim) -> str:
        """Return in words how far the clock of a launch that is alive seems to be off, where that is much."""
        at = moment((self._beat(sweep, claim) or {}).get("at", claim.at))
        behind = 0.0 if at is None or is_here(claim) else (datetime.now(UTC) - at).total_seconds()
        if abs(behind) <= SKEW_S:
            return ""
        return f" (whose clock is {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead of'} this machine's)"

    def _beat(self, sweep: str, claim: Claim) -> dict[str, Any] | None:
        beat = self.journal.read_heartbeat(sweep)
        return beat if beat is not None and claim.launch in (beat.get("launch"), UNKNOWN) else None


def claim_number(name: str) -> int | None:
    """Return the number of the claim in a file of this name, None if it is no name of a claim."""
    return numbered(name, width=6, suffix=".json")


def moment(text: object) -> datetime | None:
    """Return the moment that a text in ISO 8601 names, in UTC if it has no time zone; None if it names no moment."""
    try:
        at = datetime.fromisoformat(str(text))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # no moment, or one outside the calendar in UTC
        return None


def is_fresh(beat: Mapping[str, Any], now: datetime) -> bool:
    """Return whether a heartbeat is recent enough to believe that its launch is alive."""
    at = moment(beat.get("at"))
    return at is not None and abs(now - at) <= HEARTBEAT_IS_FRESH


def is_here(claim: Claim) -> bool:
    """Return whether a claim was made on this machine, in this process namespace, by a process that is shown here."""
    is_of_here = bool(claim.process) and claim.process.rpartition("/")[0] == _process(os.getpid()).rpartition("/")[0]
    return is_of_here and not _is_hidden(claim.pid)


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


def _is_hidden(pid: int) -> bool:
    """Return whether there is a process of this number that /proc does not show: another user's, under `hidepid`."""
    try:
        Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        try:
            os.kill(pid, 0)  # sends nothing
        except PermissionError:
            return True
        except (OSError, OverflowError):
            return False
        return True
    return False


def _process(pid: int) -> str:
    """Return an identity that no other process has, past or future, on any machine; "" if there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink()
        state, *counters = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else f"{boot}/{space}/{counters[START_TIME]}"
