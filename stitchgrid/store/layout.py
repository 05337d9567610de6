"""Where everything in a store lies: the one place that knows the paths.

```
store.json                                          what makes a folder a store
parts/v1/SHARD-DIGEST-ROWS.parquet                  rows of one shard: the name is the manifest
snapshots/v1/NNNNNN-DIGEST.json                     parts merged: written once; counts unless a later one follows it
snapshots/v1/data/NNNNNN-DIGEST-ROWS.parquet        their rows
snapshots/v1/extracts/NNNNNN-DIGEST-ROWS.parquet    the same as views need them: can be deleted
artefacts/KIND/KEY.manifest                         which file is the artefact: written last, the first writer wins
artefacts/KIND/KEY-DIGEST.SUFFIX                    its data
sweeps/NAME/0001/job.json                           the job as edited, written first
sweeps/NAME/0001/code.json                          own code that the job named when it was launched
sweeps/NAME/0001/{cells,models,layers,probes}.parquet   what the job means
sweeps/NAME/0001/plan.json                          manifest of the revision: its existence means completeness
sweeps/NAME/journal/LAUNCH/000001.json              attempts that were about to start, one file a dispatch round
sweeps/NAME/heartbeat.json                          what the launch is doing now
sweeps/NAME/recompute.json                          requests to compute cells again, until that is done
sweeps/NAME/claims/000001.json                      which launch works on the sweep: the highest number
sweeps/NAME/logs/SHARD/001.log                      what its worker noted, one file an attempt
set-aside/...                                       damaged files, under the names they had; nobody reads them
```
"""

import hashlib
import re
from dataclasses import dataclass

from stitchgrid.errors import StoreError
from stitchgrid.paths import LONGEST_NAME

FORMAT = 2  # raised when an older stitchgrid could not read the store; 1: snapshots had numbers alone
MARKER = "store.json"
PARTS = "parts/v1"
SNAPSHOTS = "snapshots/v1"
SNAPSHOT_DATA = f"{SNAPSHOTS}/data"
EXTRACTS = f"{SNAPSHOTS}/extracts"
SWEEPS = "sweeps"
SET_ASIDE = "set-aside"
JOB = "job.json"
PLAN = "plan.json"
CODE = "code.json"
REQUESTS = "recompute.json"
TABLES = ("cells", "models", "layers", "probes")  # the last one only where there are probes
SUFFIXES = {  # kind of artefact -> suffix of its data
    "network": ".safetensors",
    "evaluation": ".json",
    "fingerprint": ".json",
    "probe": ".json",
    "detector": ".safetensors",
}

HIGHEST = 999_999_999  # number of a snapshot, a revision or a claim
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
PART_NAME = re.compile(rf"(?P<shard>{SAFE_NAME.pattern})-(?P<digest>[0-9a-f]{{32}})-(?P<rows>[0-9]{{1,12}})\.parquet")
MANIFEST_NAME = re.compile(r"(?P<number>[0-9]{6,9})(-(?P<digest>[0-9a-f]{32}))?\.json")
DATA_NAME = re.compile(r"(?P<number>[0-9]{6,9})-(?P<digest>[0-9a-f]{32})-(?P<rows>[0-9]{1,12})\.parquet")


def content_digest(data: bytes) -> str:
    """Return 32 hex digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def safe(name: str, what: str) -> str:
    """Return the name if it can be a file name inside a store.

    Raises:
        StoreError: If it could lead elsewhere.
    """
    if not SAFE_NAME.fullmatch(name):
        raise StoreError(
            f"{what} {name!r} cannot be a name in a store: use letters, digits, '.', '_' and '-', with no '.' in front."
        )
    return name


def is_safe(name: str) -> bool:
    """Return whether a name found in a store is one that a store can have given."""
    return SAFE_NAME.fullmatch(name) is not None and len(name) <= LONGEST_NAME


def numbered(name: str, *, width: int, suffix: str = "") -> int | None:
    """Return the number in a name that is a number with leading zeros and a suffix; None for any other name.

    >>> numbered("000012.json", width=6, suffix=".json"), numbered("12.json", width=6, suffix=".json")
    (12, None)
    """
    stem = name.removesuffix(suffix)
    if not name.endswith(suffix) or not (stem.isascii() and stem.isdecimal()) or len(stem) > len(str(HIGHEST)):
        return None
    return number if (number := int(stem)) and f"{number:0{width}d}" == stem else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartName:
    """What the name of a part says about its content."""

    shard: str
    digest: str
    num_rows: int

    def __str__(self) -> str:
        return f"{safe(self.shard, 'shard')}-{self.digest}-{self.num_rows}.parquet"

    @classmethod
    def parse(cls, name: str) -> "PartName | None":
        """Return the parts of a name, None if no part has such a name.

        >>> PartName.parse("s-1-" + "0" * 32 + "-7.parquet").num_rows
        7
        """
        if not (match := PART_NAME.fullmatch(name)):
            return None
        return cls(shard=match["shard"], digest=match["digest"], num_rows=int(match["rows"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataName:
    """What the name of a file of a snapshot says about its content."""

    number: int  # of the snapshot it was written for
    digest: str
    num_rows: int

    def __str__(self) -> str:
        return f"{self.number:06d}-{self.digest}-{self.num_rows}.parquet"

    @classmethod
    def parse(cls, name: str) -> "DataName | None":
        """Return the parts of a name, None if no file of a snapshot has such a name.

        >>> DataName.parse("000012-" + "0" * 32 + "-7.parquet").number
        12
        """
        if not (match := DATA_NAME.fullmatch(name)):
            return None
        return cls(number=int(match["number"]), digest=match["digest"], num_rows=int(match["rows"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestName:
    """What the name of the manifest of a snapshot says."""

    number: int  # above those of the snapshots that it follows
    digest: str  # of its content; "" of an old one, which has a number alone

    def __str__(self) -> str:
        return f"{self.number:06d}{'-' * bool(self.digest)}{self.digest}.json"

    @classmethod
    def parse(cls, name: str) -> "ManifestName | None":
        """Return the parts of a name, None if no manifest of a snapshot has such a name.

        >>> ManifestName.parse("000012.json").number, ManifestName.parse("12.json")
        (12, None)
        """
        match = MANIFEST_NAME.fullmatch(name)
        if not match or numbered(match["number"], width=6) is None:
            return None
        return cls(number=int(match["number"]), digest=match["digest"] or "")


class StoreLayout:
    """Paths relative to the store; every name that comes from outside is checked."""

    @staticmethod
    def part(name: PartName) -> str:
        """Return where a part lies."""
        return f"{PARTS}/{name}"

    @staticmethod
    def manifest(kind: str, key: str) -> str:
        """Return where the manifest of an artefact lies."""
        assert kind in SUFFIXES, f"unknown kind of artefact {kind!r}"
        return f"artefacts/{kind}/{safe(key, 'artefact')}.manifest"

    @staticmethod
    def artefact(kind: str, key: str, data_digest: str) -> str:
        """Return where the data of an artefact lie."""
        return f"artefacts/{kind}/{safe(key, 'artefact')}-{data_digest}{SUFFIXES[kind]}"

    @staticmethod
    def sweep(sweep: str) -> str:
        """Return the folder of a sweep."""
        return f"{SWEEPS}/{safe(sweep, 'sweep')}"

    @classmethod
    def revision(cls, sweep: str, revision: int, file: str) -> str:
        """Return where a file of a revision lies."""
        return f"{cls.sweep(sweep)}/{revision:04d}/{file}"

    @staticmethod
    def revision_number(name: str) -> int | None:
        """Return the number of the revision that a folder of a sweep holds, None if it holds none."""
        return numbered(name, width=4)

    @classmethod
    def claim(cls, sweep: str, number: int) -> str:
        """Return where a claim on a sweep lies."""
        return f"{cls.claims(sweep)}/{number:06d}.json"

    @classmethod
    def launch(cls, sweep: str, launch_id: str) -> str:
        """Return the folder of a launch's journal."""
        return f"{cls.journal(sweep)}/{safe(launch_id, 'launch')}"

    @classmethod
    def journal(cls, sweep: str) -> str:
        """Return the folder of all journals of a sweep."""
        return f"{cls.sweep(sweep)}/journal"

    @classmethod
    def claims(cls, sweep: str) -> str:
        """Return the folder of the claims on a sweep."""
        return f"{cls.sweep(sweep)}/claims"

    @classmethod
    def logs(cls, sweep: str) -> str:
        """Return the folder of a sweep's logs."""
        return f"{cls.sweep(sweep)}/logs"

    @classmethod
    def requests(cls, sweep: str) -> str:
        """Return where the requests to compute cells of a sweep again lie."""
        return f"{cls.sweep(sweep)}/{REQUESTS}"

    @classmethod
    def heartbeat(cls, sweep: str) -> str:
        """Return where the heartbeat of a sweep lies."""
        return f"{cls.sweep(sweep)}/heartbeat.json"
