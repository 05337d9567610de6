"""Every kind of JSON that is read from a store: a pydantic model for each, and the one reader that checks them.

Numbers are finite, texts are texts, and names of files are of the kind that belongs there. The parser refuses documents
that are nested too deeply, and needs no stack for that. Keys that this version does not know are left as they are,
since a later version may have written them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails, from_json

from stitchgrid.json_files import unique_keys
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.files import Files
from stitchgrid.store.layout import DATA_NAME, EXTRACTS, HIGHEST, MANIFEST_NAME, PART_NAME, SAFE_NAME, SNAPSHOT_DATA
from stitchgrid.store.limits import KB, MB, MOST

SHOWN = 3  # problems of one document

Count = Annotated[int, Field(ge=0, le=MOST)]
Number = Annotated[int, Field(ge=1, le=HIGHEST)]
Text = Annotated[str, Field(max_length=1 * MB)]
Short = Annotated[str, Field(max_length=1 * KB)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SweepName = Annotated[str, Field(pattern=f"^{SAFE_NAME.pattern}$", max_length=255)]
PartFile = Annotated[str, Field(pattern=f"^{PART_NAME.pattern}$", max_length=255)]
DataFile = Annotated[str, Field(pattern=f"^{SNAPSHOT_DATA}/{DATA_NAME.pattern}$")]
ManifestFile = Annotated[str, Field(pattern=f"^{MANIFEST_NAME.pattern}$")]
ExtractFile = Annotated[str, Field(pattern=f"^{EXTRACTS}/{DATA_NAME.pattern}$")]


class Document(BaseModel):
    """A JSON object of a store."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class Marker(Document):
    """`store.json`."""

    format: Annotated[int, Field(ge=1, le=MOST)]


class ClaimDocument(Document):
    """Who works on a sweep."""

    launch: Short
    user: Short
    host: Short
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    process: Short
    at: Short


class UnitDocument(Document):
    """A unit of work in the journal or a heartbeat."""

    unit: Short
    shard: Short | None = None
    worker: Short | None = None
    node: Short | None = None
    since: Short | None = None


class RoundDocument(Document):
    """The attempts of one dispatch round."""

    at: Short
    attempts: list[UnitDocument]


class WorkerDocument(Document):
    """A worker in a heartbeat, with or without a unit."""

    worker: Short | None = None
    node: Short | None = None
    state: Short | None = None
    unit: Short | None = None


class BeatDocument(Document):
    """What a launch is doing."""

    at: Short
    launch: Short | None = None
    host: Short | None = None
    is_over: bool = False
    stage: Short | None = None
    noun: Short | None = None
    num_done: Count = 0
    num_failed: Count = 0
    num_total: Count = 0
    seconds: Annotated[float, Field(ge=0, le=MOST)] = 0.0
    happened: dict[Short, Count] = {}
    running: list[UnitDocument] = []
    workers: list[WorkerDocument] = []


class RequestDocument(Document):
    """Cells that are to be computed again."""

    globs: list[Short] = Field(min_length=1)
    generation: Annotated[int, Field(ge=1, le=MOST)]


class RequestsDocument(Document):
    """The requests to compute cells of a sweep again."""

    requests: list[RequestDocument]


class MetricDocument(Document):
    """What a sweep's plan says about a metric."""

    name: Short
    higher_is_similar: bool | None
    low: float | None = None
    high: float | None = None


class KindDocument(Document):
    """What a sweep's plan says about a kind of matcher."""

    kind: Short
    family: Literal["index", "stitcher"]
    summary: Text
    score: Short
    symmetric: bool
    is_trained: bool
    metrics: list[MetricDocument] = Field(min_length=1)

    @model_validator(mode="after")
    def _ranks_by_a_metric(self) -> Self:
        if self.score not in {metric.name for metric in self.metrics}:
            raise ValueError(f"no metric {self.score!r}, by which layers are ranked")
        return self


class CodeDocument(Document):
    """The own code that a job named: digests for each network, for files that give images, and for single modules."""

    own_code: dict[Text, Short] = {}
    own_data: dict[Text, Short] = {}
    own_files: dict[Text, dict[Text, Short]] = {}


class InfoDocument(CodeDocument):
    """What the planner kept with a revision."""

    assumed_flops_per_second: Annotated[float, Field(gt=0)] = 1.0
    matchers: list[KindDocument] = []
    artefacts: dict[Short, list[Short]] | None = None  # keys by kind; None: of an earlier version
    groups: Count | None = None
    shuffles: Count = 0


def job_digest(job: Mapping[str, Any]) -> str:
    """Return the digest of a job without its name: a merge may give it another one."""
    return _json_digest(job, without="name")


def plan_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of the manifest of a revision, without the digest in it."""
    return _json_digest(manifest, without="digest")


def _json_digest(value: Mapping[str, Any], *, without: str) -> str:
    rest = {key: one for key, one in value.items() if key != without}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class PlanDocument(Document):
    """The manifest of a revision of a sweep."""

    created_at: Short
    version: Short
    num_rows: dict[Short, Count]
    sha256: dict[Short, Sha256]
    info: InfoDocument
    job: Sha256 | None = None  # digest of the job without its name; None: written by an earlier version
    digest: Sha256 | None = None  # of all other entries; None: written by an earlier version

    @model_validator(mode="before")
    @classmethod
    def _is_as_written(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("digest") not in (None, plan_digest(value)):
            raise ValueError("content differs from the digest in it")
        return value


class ArtefactDocument(Document):
    """The manifest of an artefact: which file holds its data."""

    digest: Digest
    num_bytes: Count | None = None
    generation: Count = 0  # of the cells for which it was made anew


class ExtractDocument(Document):
    """Which extract a snapshot has for a sweep."""

    revision: Number
    file: ExtractFile
    plan: Literal[""] | Digest = ""


class TierDocument(Document):
    """Rows that were merged together."""

    file: DataFile
    num_rows: Count
    ids: ExtractFile
    results: dict[SweepName, ExtractDocument]


class SnapshotBody(Document):
    """The content of a snapshot, which one compaction wrote."""

    tiers: list[TierDocument]
    cells: dict[SweepName, ExtractDocument]
    replaces: list[PartFile]
    follows: list[ManifestFile] = []
    before: list[DataFile | ExtractFile] = []


class SnapshotDocument(Document):
    """The manifest of a snapshot."""

    digest: Digest
    snapshot: SnapshotBody


class OrderDocument(Document):
    """Another order of the classes, which would explain a network's answers."""

    accuracy: float
    classes: list[Count]
    is_seen: list[bool]

    @model_validator(mode="after")
    def _is_of_as_many_classes(self) -> Self:
        if len(self.is_seen) != len(self.classes) or any(label >= len(self.classes) for label in self.classes):
            raise ValueError("not an order of as many classes as there are")
        return self


class EvaluationDocument(Document):
    """What was measured of a network; undefined numbers may be NaN."""

    model_config = ConfigDict(allow_inf_nan=True)

    accuracy: float | None = None
    loss: float | None = None
    chance: float | None = None
    is_at_chance: bool | None = None
    num_eval: Count | None = None
    order: OrderDocument | None = None
    libraries: dict[Short, Short] = {}
    problems: list[Text] = []
    remarks: list[Text] = []

    @model_validator(mode="after")
    def _has_what_it_is_judged_by(self) -> Self:
        if self.accuracy is None and (self.is_at_chance or self.order):
            raise ValueError("no accuracy to judge it by")
        if self.chance is None and self.is_at_chance:
            raise ValueError("no accuracy of chance to judge it by")
        return self


class SummaryDocument(Document):
    """Three numbers about one tensor."""

    model_config = ConfigDict(allow_inf_nan=True, extra="forbid")

    mean: float
    std: float
    projection: float


Summary = Annotated[tuple[Short, SummaryDocument], Field(strict=False)]  # JSON has no tuples


class FingerprintDocument(Document):
    """What a network computes from a few images."""

    input_shape: list[Count]
    noise: list[Summary]
    images: list[Summary]
    images_digest: Short


class LayerProbeDocument(Document):
    """The probe of one layer."""

    model_config = ConfigDict(allow_inf_nan=True)

    layer_index: Annotated[int, Field(ge=0, lt=2**31)]
    rank: Count | None = None
    accuracy: float | None = None
    loss: float | None = None
    fit_accuracy: float | None = None
    num_iter: Count | None = None
    converged: bool | None = None
    flags: list[Text] = []
    error: Text | None = None


class ProbeDocument(Document):
    """The probes of all layers of a network."""

    num_fit: Count
    num_eval: Count
    probes: list[LayerProbeDocument]


OF_ARTEFACTS: Mapping[str, type[Document]] = {
    "evaluation": EvaluationDocument,
    "fingerprint": FingerprintDocument,
    "probe": ProbeDocument,
}
LONGEST = {  # bytes
    Marker: 64 * KB,
    ClaimDocument: 64 * KB,
    ArtefactDocument: 64 * KB,
    BeatDocument: 16 * MB,
    RoundDocument: 8 * MB,  # an attempt of one unit has 100 to 200 bytes
    PlanDocument: 16 * MB,
    SnapshotDocument: 32 * MB,  # 100,000 names of parts have 10 MB
}
LONGEST_JSON = 16 * MB  # of any other kind

Kind = TypeVar("Kind", bound=Document)


def read_document(files: Files, name: str, kind: type[Document] = Document) -> dict[str, Any]:
    """Return the JSON object in a file of a store.

    Raises:
        DamagedFileError: If it is not what a document of its kind has to be.
        StoreError: If it cannot be read, or is longer than any of its kind.
    """
    return json_object(files.read(name, longest(kind)), kind)


def longest(kind: type[Document]) -> int:
    """Return how many bytes a document of a kind has at most."""
    return LONGEST.get(kind, LONGEST_JSON)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


_STRICT = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=_finite)


def json_object(data: bytes, kind: type[Document] = Document) -> dict[str, Any]:
    """Return the JSON object in a file, checked against the form of its kind.

    Raises:
        DamagedFileError: If it is no JSON object, or does not have this form.
    """
    may_be_nan = kind in OF_ARTEFACTS.values()
    try:
        value: JsonValue = from_json(data, allow_inf_nan=may_be_nan, cache_strings="keys")
        _STRICT.decode(data.decode())  # pydantic's takes 1e400, and the last of equal keys
    except (ValueError, RecursionError) as problem:
        raise DamagedFileError(f"not readable as JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise DamagedFileError("not a JSON object")
    if wrong := problems(value, kind):
        raise DamagedFileError(wrong)
    return value


def problems(value: Mapping[str, Any], kind: type[Document]) -> str:
    """Return what is wrong with a document, "" if nothing is."""
    try:
        kind.model_validate(value)
    except ValidationError as problem:
        found = problem.errors(include_url=False, include_context=False, include_input=False)
        shown = [f"{'.'.join(map(str, one['loc']))}: {_said(one)}"[:200] for one in found[:SHOWN]]
        return "; ".join(shown) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return ""


def _said(problem: ErrorDetails) -> str:
    """Return what is wrong with one value, without the patterns of names, which tell users little."""
    return "not a name that belongs there" if problem["type"] == "string_pattern_mismatch" else problem["msg"]
