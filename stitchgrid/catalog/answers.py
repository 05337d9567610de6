"""The view `answers` as records with names, as a table and as sentences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.labels import labels_of
from stitchgrid.catalog.verdict_rules import CHECKS, IS_TWIN, NEEDED, answers_sql
from stitchgrid.errors import QueryError, nearest
from stitchgrid.printable import in_one_line
from stitchgrid.records import TWIN

IDLE = "Does not apply"  # start of the sentence of a check that does not apply to the answer
ORDER = "target_model, target_index, source_model, matcher, params, samples, seed"  # in which answers are listed
ROWS = f"""
select a.*, m.family, m.trained as is_trained
from answers as a join matchers as m using (matcher)
where sweep = $sweep
order by {ORDER}
"""
# Rows that decide an answer: those of its target layer and source network, of any matcher, and of the source's twin.
DECIDING = f"""
sweep = $sweep and ($target_model is null or target_model = $target_model)
and ($target_layer is null or target_layer = $target_layer)
and ($source_model is null or source_model in ($source_model, $source_model || '{TWIN}'))
"""
TARGETS = "select distinct target_model, target_layer from cells where sweep = $sweep"
SOURCES = f"""
select distinct source_model from cells
where sweep = $sweep and source_model not in (select model from models where sweep = $sweep and {IS_TWIN})
"""
KINDS = "select distinct matcher from cells where sweep = $sweep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of an answer: a condition that a supported answer should meet."""

    name: str
    passed: bool | None  # None: not computed, or it does not apply
    detail: str  # a sentence with the numbers

    @property
    def is_missing(self) -> bool:
        """Whether the check applies but was not computed."""
        return self.passed is None and not self.detail.startswith(IDLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The best source layer of one network for a target layer under one matcher, and the evidence for it."""

    sweep: str
    target_model: str
    target_layer: str
    source_model: str
    source_layer: str
    matcher: str  # the kind
    label: str  # the kind, and the parameters in which matchers of that kind differ in the sweep
    params: str
    samples: int | None
    seed: int | None
    family: str  # index | stitcher
    is_trained: bool
    metric: str
    higher_is_similar: bool
    value: float
    low: float | None
    high: float | None
    runner_up: str | None
    margin: float | None
    margin_low: float | None
    margin_high: float | None
    candidates: tuple[str, ...] | None
    p: float | None
    untrained_value: float | None
    verdict: str
    checks: tuple[Check, ...]
    num_sources: int = 1  # source layers among which the best was chosen
    num_diverged: int = 0  # source layers left out because their cells diverged
    num_failed: int = 0  # ... because their cells failed
    num_pending: int = 0  # ... because their cells are not computed yet
    has_twin: bool = False  # whether the sweep has an untrained twin of the source network
    r2: float | None = None  # share of the target's variance that the map explains, where the sweep has it

    @property
    def best(self) -> str:
        """The best source layer."""
        return self.source_layer

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of the value; None where no intervals were asked for."""
        return self.low, self.high

    def passed(self, name: str) -> bool | None:
        """Return whether a check passed; None if it was not computed or does not apply."""
        return next(check.passed for check in self.checks if check.name == name)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the checks that a match needs to be supported and that were not computed."""
        return tuple(check.name for check in self.checks if check.is_missing and check.name in NEEDED)

    @property
    def unknown(self) -> str:
        """The missing checks as words; empty if there are none."""
        return f"not known: {', '.join(self.missing)}" if self.missing else ""

    @property
    def why(self) -> str:
        """Names of the checks that failed and, if the answer is weak, of those that are missing; else empty."""
        failed = f"failed: {', '.join(check.name for check in self.failed)}" if self.failed else ""
        return "; ".join(filter(None, (failed, self.unknown if self.verdict == "weak" else "")))

    @property
    def sentence(self) -> str:
        """The answer as an English sentence, for people who do not know the field."""
        way = "higher" if self.higher_is_similar else "lower"
        parts = [f"{self.metric} is {short_number(self.value)}{_interval(self.low, self.high)} ({way} is more similar)"]
        if self.r2 is not None and self.metric == "residual":
            parts.append(f"r2 is {short_number(self.r2)} (0 is no better than the mean)")
        if self.runner_up is not None:
            margin = "" if self.margin is None else f"; margin {short_number(self.margin)}"
            parts.append(f"next best {self.runner_up}{margin}{_interval(self.margin_low, self.margin_high)}")
        if self.untrained_value is not None:
            parts.append(f"untrained twin reaches {short_number(self.untrained_value)}")
        if self.p is not None:
            parts.append(f"p with shuffled images {short_number(self.p)}")
        return f"{self.title}: {self.verdict}. Its {'; '.join(parts)}.{self._omitted}"

    @property
    def _omitted(self) -> str:
        counts = {"diverged": self.num_diverged, "failed": self.num_failed, "not computed yet": self.num_pending}
        if not any(counts.values()):
            return ""
        told = ", ".join(f"{num} {word}" for word, num in counts.items() if num)
        every = self.num_sources + sum(counts.values())
        return f" Best of {self.num_sources} of {every} source layers: of the others, {told}."

    @property
    def title(self) -> str:
        """Target layer, source layer and matcher, as one text."""
        label = self.label.replace(" (", ", ").removesuffix(")")
        return f"{self.target_model} {self.target_layer} <- {self.source_model} {self.source_layer} ({label})"


ROUNDING = 1e-9  # smaller numbers are rounding errors, and people see 0
_CHECK = pa.struct([("passed", pa.bool_()), ("detail", pa.string())])
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("target_model", "target_layer", "source_model", "source_layer")),
        *((name, pa.string()) for name in ("matcher", "metric")),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        ("higher_is_similar", pa.bool_()),
        ("runner_up", pa.string()),
        *((name, pa.float64()) for name in ("margin", "margin_low", "margin_high")),
        ("candidates", pa.list_(pa.string())),
        *((name, pa.float64()) for name in ("p", "untrained_value")),
        ("verdict", pa.string()),
        ("checks", pa.struct([(name, _CHECK) for name in CHECKS])),
    ]
)


_APART = pa.schema([("sweep", pa.string()), ("params", pa.string()), ("samples", pa.int64()), ("seed", pa.int64())])


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """Which answers are asked for; a field that is None or empty asks for all."""

    target_model: str | None = None
    target_layer: str | None = None
    source_model: str | None = None
    kinds: tuple[str, ...] = ()

    def takes(self, answer: Answer) -> bool:
        """Return whether an answer is asked for."""
        return (
            self.target_model in (None, answer.target_model)
            and self.target_layer in (None, answer.target_layer)
            and self.source_model in (None, answer.source_model)
            and (not self.kinds or answer.matcher in self.kinds)
        )


def find_wanted(
    catalog: Catalog, sweeps: Sequence[str], *, target: str | None, source: str | None, kinds: Sequence[str]
) -> AnswerRequest:
    """Return the request for answers by names; `target` is MODEL or MODEL:LAYER.

    Raises:
        QueryError: If the sweeps have no such network, layer or matcher.
    """

    def rows(query: str) -> list[dict[str, str]]:
        return [row for sweep in sweeps for row in catalog.query(query, {"sweep": sweep}).to_pylist()]

    model, layer = target, None
    if target is not None:
        layers: dict[str, set[str]] = {}
        for row in rows(TARGETS):
            layers.setdefault(row["target_model"], set()).add(row["target_layer"])
        if target not in layers:
            model, separator, rest = target.partition(":")
            _check(model, layers, "target network")
            layer = rest if separator else None
        if model is not None and layer is not None:
            _check(layer, layers[model], "layer", f" of network {model!r}")
    if source is not None:
        _check(source, {row["source_model"] for row in rows(SOURCES)}, "source network")
    known = {row["matcher"] for row in rows(KINDS)} if kinds else set()
    for kind in kinds:
        _check(kind, known, "matcher")
    return AnswerRequest(target_model=model, target_layer=layer, source_model=source, kinds=tuple(kinds))


def _check(name: str, known: Iterable[str], what: str, of: str = "") -> None:
    names = sorted(known)
    if name not in names:
        raise QueryError(f"no {what} {name!r}{of} among the compared cells; {nearest(name, names)}.")


ALL = AnswerRequest()


def read_answers(catalog: Catalog, sweep: str, wanted: AnswerRequest = ALL) -> list[Answer]:
    """Return the answers of a sweep that are asked for, sorted by target, source and matcher.

    Raises:
        QueryError: If there is no such sweep.
    """
    catalog.require_sweep(sweep)
    params: dict[str, Any] = {"sweep": sweep}
    query = ROWS
    if wanted.target_model is not None or wanted.source_model is not None:  # a few of very many cells
        query = f"with answers as ({answers_sql(where=DECIDING)}) {ROWS}"
        params |= {name: getattr(wanted, name) for name in ("target_model", "target_layer", "source_model")}
    rows = catalog.query(query, params).to_pylist()
    labels = labels_of(_entry(row) for row in rows)
    answers = [_answer(row, labels[_entry(row)]) for row in rows]
    return [one for one in answers if wanted.takes(one)]


def _entry(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["matcher"], row["params"], row["samples"], row["seed"]


def _answer(row: Mapping[str, Any], label: str) -> Answer:
    changed: dict[str, Any] = {
        "label": label,
        "candidates": None if row["candidates"] is None else tuple(row["candidates"]),
        "checks": tuple(Check(**check) for check in row["checks"]),
    }
    named: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Answer)}
    return Answer(**(named | changed))


def as_table(answers: Sequence[Answer], *, short: bool = False) -> pa.Table:
    """Return answers as a table.

    Each of sweep, params, samples and seed is a column only if answers to the same question differ in it. If `short`,
    the checks are one text: the names of those that failed, and of those that were not computed.
    """
    extra = [field for field in _APART if _tells_apart(field.name, answers)]
    schema = pa.schema([*extra, *SCHEMA])
    if short:
        schema = schema.set(len(schema) - 1, pa.field("checks", pa.string()))
    return pa.Table.from_pylist([_plain(answer, schema.names, short=short) for answer in answers], schema=schema)


def _plain(answer: Answer, names: Sequence[str], *, short: bool) -> dict[str, Any]:
    checks = {one.name: {"passed": one.passed, "detail": one.detail} for one in answer.checks}
    return {name: getattr(answer, name) for name in names} | {"checks": _short(answer.checks) if short else checks}


def _tells_apart(name: str, answers: Sequence[Answer]) -> bool:
    """Return whether two answers to the same question differ in a column."""
    found: dict[tuple[str, ...], set[object]] = {}
    for answer in answers:
        question = answer.target_model, answer.target_layer, answer.source_model, answer.matcher
        found.setdefault(question, set()).add(getattr(answer, name))
    return any(len(values) > 1 for values in found.values())


def _short(checks: Sequence[Check]) -> str:
    """Return which checks did not pass.

    >>> _short([Check(name="sound", passed=False, detail=""), Check(name="trained", passed=True, detail="")])
    'failed: sound'
    """
    failed = [one.name for one in checks if one.passed is False]
    missing = [one.name for one in checks if one.is_missing]
    told = (("failed", failed), ("not computed", missing))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in told if names)


def in_words(answers: Sequence[Answer]) -> list[str]:
    """Return a sentence for each answer; below it, its failed checks, and if it is weak, its missing checks."""
    lines = []
    for answer in answers:
        lines += [answer.sentence, *(f"    {check.name}: {check.detail}" for check in answer.failed)]
        if answer.missing and answer.verdict == "weak":
            lines.append(f"    {answer.unknown}")
    return list(map(in_one_line, lines))


def short_interval(low: float | None, high: float | None) -> str | None:
    """Return an interval with three digits; None where there is no interval."""
    return None if low is None or high is None else f"{short_number(low)} to {short_number(high)}"


def _interval(low: float | None, high: float | None) -> str:
    found = short_interval(low, high)
    return "" if found is None else f", 95 % interval {found}"


def short_number(value: float) -> str:
    """Return a number with three digits; a rounding error is 0.

    >>> short_number(0.12345), short_number(-2e-16)
    ('0.123', '0')
    """
    return "0" if abs(value) < ROUNDING else f"{value:.3g}"
