"""The view `answers` as records with names, as sentences, and with what a job lacks for more to be said."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.judging import CHECKS, FEWEST_DRAWS
from stitchgrid.catalog.labels import matcher_labels, parameters
from stitchgrid.errors import QueryError, nearest
from stitchgrid.records import TWIN

ROWS = """
select a.*, m.family, m.trained as is_trained
from answers as a join matchers as m using (matcher)
where sweep = $sweep
order by target_model, target_index, source_model, matcher, params, samples, seed
"""
NAMES = """
select distinct target_model, target_layer, source_model, matcher from cells
where sweep = $sweep and target_layer is not null
"""
TWINS = f"select count(*) as num from models where sweep = $sweep and is_untrained and suffix(model, '{TWIN}')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that has to hold before a match is believed."""

    name: str
    passed: bool | None  # None: not computed, or it does not apply
    detail: str  # a sentence with the numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The best source layer of one network for a layer of another under one matcher, and how sure that is."""

    sweep: str
    target_model: str
    target_layer: str
    source_model: str
    source_layer: str
    matcher: str  # its label: the kind, and what tells it from others of the sweep
    kind: str
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

    def passed(self, name: str) -> bool | None:
        """Return whether a check passed."""
        return next(check.passed for check in self.checks if check.name == name)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def sentence(self) -> str:
        """What was found, for people who do not know the field."""
        way = "higher" if self.higher_is_similar else "lower"
        parts = [f"{self.metric} {_number(self.value)}{_interval(self.low, self.high)} ({way} is more similar)"]
        if self.runner_up is not None:
            margin = "" if self.margin is None else f"; margin {_number(self.margin)}"
            parts.append(f"next best {self.runner_up}{margin}{_interval(self.margin_low, self.margin_high)}")
        if self.untrained_value is not None:
            parts.append(f"untrained twin reaches {_number(self.untrained_value)}")
        if self.p is not None:
            parts.append(f"p with shuffled images {_number(self.p)}")
        told = "; ".join(parts)
        return f"{self.title}: {self.verdict}. {told[0].upper()}{told[1:]}."

    @property
    def title(self) -> str:
        """Who matches whom."""
        return f"{self.target_model} {self.target_layer} <- {self.source_model} {self.source_layer} ({self.matcher})"

    @property
    def record(self) -> dict[str, Any]:
        """The answer as plain data, under the names of the command `answer`."""
        plain = {name: getattr(self, name) for name in SCHEMA.names if name != "checks"}
        plain["candidates"] = None if self.candidates is None else list(self.candidates)
        return plain | {"checks": {one.name: {"passed": one.passed, "detail": one.detail} for one in self.checks}}


_CHECK = pa.struct([("passed", pa.bool_()), ("detail", pa.string())])
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("target_model", "target_layer", "source_model", "source_layer")),
        *((name, pa.string()) for name in ("matcher", "metric")),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        ("runner_up", pa.string()),
        *((name, pa.float64()) for name in ("margin", "margin_low", "margin_high")),
        ("candidates", pa.list_(pa.string())),
        *((name, pa.float64()) for name in ("p", "untrained_value")),
        ("verdict", pa.string()),
        ("checks", pa.struct([(name, _CHECK) for name in CHECKS])),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which answers somebody asks for; None and empty: all."""

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
            and (not self.kinds or answer.kind in self.kinds)
        )


def find_wanted(
    catalog: Catalog, sweeps: Sequence[str], *, target: str | None, source: str | None, kinds: Sequence[str]
) -> Wanted:
    """Return what is asked for by names; `target` is MODEL or MODEL:LAYER.

    Raises:
        QueryError: If the sweeps have no such network, layer or matcher.
    """
    rows = [row for sweep in sweeps for row in catalog.query(NAMES, {"sweep": sweep}).to_pylist()]
    targets = {row["target_model"] for row in rows}
    model, layer = target, None
    if target is not None and target not in targets:
        model, separator, rest = target.partition(":")
        layer = rest if separator else None
        _check(model, targets, "network with answers as a target is called")
        of_model = {row["target_layer"] for row in rows if row["target_model"] == model}
        if layer is not None:
            _check(layer, of_model, f"selected layer of {model!r} is called")
    if source is not None:
        _check(source, {row["source_model"] for row in rows}, "network with answers as a source is called")
    for kind in kinds:
        _check(kind, {row["matcher"] for row in rows}, "matcher of the sweep is called")
    return Wanted(target_model=model, target_layer=layer, source_model=source, kinds=tuple(kinds))


def _check(name: str, known: Iterable[str], what: str) -> None:
    names = sorted(known)
    if name not in names:
        raise QueryError(f"no {what} {name!r}; {nearest(name, names)}.")


def read_answers(catalog: Catalog, sweep: str, wanted: Wanted | None = None) -> list[Answer]:
    """Return the answers of a sweep, by target, source and matcher.

    Raises:
        QueryError: If there is no such sweep.
    """
    if sweep not in catalog.sweeps:
        raise QueryError(f"no planned sweep {sweep!r} in the store; {nearest(sweep, catalog.sweeps)}.")
    rows = catalog.query(ROWS, {"sweep": sweep}).to_pylist()
    entries = list(dict.fromkeys(_entry(row) for row in rows))
    variants = [
        (kind, parameters(params) | {"samples": samples} | ({} if seed is None else {"seed": seed}))
        for kind, params, samples, seed in entries
    ]
    labels = dict(zip(entries, matcher_labels(variants), strict=True))
    found = [_answer(row, labels[_entry(row)]) for row in rows]
    return [answer for answer in found if wanted is None or wanted.takes(answer)]


def _entry(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["matcher"], row["params"], row["samples"], row["seed"]


def _answer(row: Mapping[str, Any], label: str) -> Answer:
    changed: dict[str, Any] = {
        "matcher": label,
        "kind": row["matcher"],
        "candidates": None if row["candidates"] is None else tuple(row["candidates"]),
        "checks": tuple(Check(**check) for check in row["checks"]),
    }
    named: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Answer)}
    return Answer(**(named | changed))


def as_table(answers: Sequence[Answer], *, with_sweep: bool = False, short: bool = False) -> pa.Table:
    """Return answers as a table; the sweep is its first column where there are several.

    In `short` the checks are one text: the names of those that failed, and of those that were not computed.
    """
    table = pa.Table.from_pylist([answer.record for answer in answers], schema=SCHEMA)
    if short:
        told = pa.array([_short(answer.checks) for answer in answers], pa.string())
        table = table.set_column(table.num_columns - 1, "checks", told)
    return table.add_column(0, "sweep", pa.array([a.sweep for a in answers], pa.string())) if with_sweep else table


def _short(checks: Sequence[Check]) -> str:
    """Return which checks did not pass.

    >>> _short([Check(name="sound", passed=False, detail=""), Check(name="trained", passed=True, detail="")])
    'failed: sound'
    """
    words = {False: "failed", None: "not computed"}
    found = {passed: ", ".join(one.name for one in checks if one.passed is passed) for passed in words}
    return "; ".join(f"{words[passed]}: {names}" for passed, names in found.items() if names)


def in_words(answers: Sequence[Answer]) -> list[str]:
    """Return a sentence for each answer, and below it one for each check that failed."""
    return [
        line
        for answer in answers
        for line in (answer.sentence, *(f"    {check.name}: {check.detail}" for check in answer.failed))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Something that a job lacks for more to be said."""

    what: str  # to write, or to run
    why: str


UNTRAINED = Addition(
    what="[controls] untrained = true", why="compares with untrained twins: is the match one of architecture alone?"
)
SHUFFLED = Addition(what="[controls] shuffled = 40", why="compares with shuffled images: is the match one of chance?")
MORE_DRAWS = Addition(
    what="[controls] shuffled = 40", why=f"with fewer than {FEWEST_DRAWS} draws no p can be below 0.05"
)
GROUPS = Addition(what="[intervals] groups = 20", why="gives intervals: which layers are as good as the best?")
OOD = Addition(
    what='[diagnostics] ood = ["mahalanobis"]', why="tells whether stitched rows stay in the target's distribution"
)
DIRECT = Addition(
    what='[[matchers]] kind = "direct"', why="is what trained matchers are held against, which alone prove nothing"
)
OTHERS = Addition(what='[[matchers]] kind = "cka_unbiased"', why="is a second opinion that needs no training")


def additions(catalog: Catalog, sweep: str, answers: Sequence[Answer]) -> list[Addition]:
    """Return what to add to the job of a sweep for these answers to have no check open, each thing once."""
    if not answers:
        return []
    groups, shuffles = catalog.evidence_asked(sweep)
    [twins] = catalog.query(TWINS, {"sweep": sweep}).to_pylist()
    closed = [answer for answer in answers if not answer.is_trained]
    lacks_twin = any(answer.untrained_value is None for answer in answers)
    lacks_draws = any(answer.p is None for answer in closed)
    lacks_interval = any(answer.candidates is None for answer in answers)
    stitchers = [answer for answer in answers if answer.family == "stitcher"]
    wanted = (
        (lacks_twin and not twins["num"], UNTRAINED),
        (lacks_draws and not shuffles, SHUFFLED),
        (0 < shuffles < FEWEST_DRAWS, MORE_DRAWS),
        (lacks_interval and not groups, GROUPS),
        (any(answer.passed("in_distribution") is None for answer in stitchers), OOD),
        (any(answer.is_trained and answer.passed("undenied") is None for answer in answers), DIRECT),
        (any(answer.passed("others_agree") is None for answer in answers), OTHERS),
    )
    found = [addition for is_wanted, addition in wanted if is_wanted]
    if (lacks_draws and shuffles) or (lacks_interval and groups):
        found.append(Addition(what=f"stitchgrid resume {sweep}", why="computes what was asked for and is missing"))
    return found


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f", 95 % interval {_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.3g}"
