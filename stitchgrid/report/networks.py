"""The section on a sweep's networks: for each pair, how many layers have a supported counterpart, and the evidence."""

from collections import Counter
from collections.abc import Sequence

from stitchgrid.catalog.answers import Answer, read_answers, short_interval, short_number
from stitchgrid.catalog.labels import parameters
from stitchgrid.catalog.verdict_rules import VERDICTS
from stitchgrid.report.content import MARKS, Judged, ReportTable, Section, Verdict, share
from stitchgrid.report.report_queries import Asker

TOP = 40  # pairs of networks whose layers are listed; there may be thousands of pairs
COLUMNS = (
    *("layer", "matcher", "best source", "score", "next best", "margin", "as good", "untrained twin", "p", "verdict"),
    *("failed", "not known"),
)


def answers_of(ask: Asker) -> list[Answer]:
    """Return the answers of the sweep, without sources of reduced rank, which only tests use."""
    return [one for one in read_answers(ask.catalog, ask.sweep) if parameters(one.params).get("rank") is None]


def your_networks(ask: Asker, answers: Sequence[Answer]) -> Section:
    """Return the section that says how many layers have a supported best source, for each pair of networks."""
    pairs: dict[tuple[str, str], dict[str, list[Answer]]] = {}
    for one in answers:
        pairs.setdefault((one.source_model, one.target_model), {}).setdefault(one.label, []).append(one)
    return Section(
        title="Your networks",
        rule="Each layer of a network gets a best source layer in another, by each matcher. Supported: both networks "
        "are trained and above chance, the match is better than that of an untrained twin and of shuffled images, all "
        "layers that are as good lie within one block, and nothing else that was computed speaks against it. Not "
        "supported: one of the first four fails. Weak: everything else. Layers of one network are not independent, so "
        "intervals of shares are too narrow.",
        query="",
        command=f"stitchgrid answer {ask.sweep}",
        verdicts=tuple(_sentence(source, target, found) for (source, target), found in sorted(pairs.items())),
        tables=tuple(
            table
            for (source, target), found in sorted(pairs.items())[:TOP]
            for table in (_overview(source, target, found), _evidence(source, target, found))
        ),
        left_out=f"The layers of {len(pairs) - TOP:,} more pairs are left out." if len(pairs) > TOP else "",
        missing="" if answers else f"stitchgrid resume {ask.sweep}",
    )


def _sentence(source: str, target: str, by_label: dict[str, list[Answer]]) -> Verdict:
    parts = [f"{label}: {_counts([one.verdict for one in found])}" for label, found in by_label.items()]
    return Verdict(subject=f"{source} into {target}", text="; ".join(parts), holds=None)


def _counts(verdicts: Sequence[str]) -> str:
    found = Counter(verdicts)
    rest = ", ".join(f"{found[name]} {name}" for name in VERDICTS[1:] if found[name])
    return f"{share(found[VERDICTS[0]], len(verdicts))} supported{', ' if rest else ''}{rest}"


def _overview(source: str, target: str, by_label: dict[str, list[Answer]]) -> ReportTable:
    """Return the best sources of each layer of a target, with one column per matcher."""
    layers = dict.fromkeys(one.target_layer for found in by_label.values() for one in found)
    best = {
        (one.target_layer, label): Judged(text=one.source_layer, verdict=one.verdict)
        for label, found in by_label.items()
        for one in found
    }
    signs = ", ".join(f"{sign} {verdict}" for verdict, sign in MARKS.items())
    return ReportTable(
        caption=f"{source} into {target}: the best source of each layer ({signs})",
        columns=(f"layer of {target}", *by_label),
        rows=tuple((layer, *(best.get((layer, label)) for label in by_label)) for layer in layers),
    )


def _evidence(source: str, target: str, by_label: dict[str, list[Answer]]) -> ReportTable:
    """Return the evidence for and against the best sources of a target's layers."""
    answers = [one for found in by_label.values() for one in found]
    places = {layer: place for place, layer in enumerate(dict.fromkeys(one.target_layer for one in answers))}
    rows = tuple(
        (
            *(one.target_layer, one.label, one.source_layer),
            _with_interval(one.value, one.low, one.high),
            one.runner_up,
            None if one.margin is None else _with_interval(one.margin, one.margin_low, one.margin_high),
            *(one.candidates, one.untrained_value, one.p, one.verdict),
            *([check.name for check in one.failed] or None, list(one.missing) or None),
        )
        for one in sorted(answers, key=lambda one: places[one.target_layer])
    )
    return ReportTable(
        caption=f"{source} into {target}: the evidence, with 95 % intervals", columns=COLUMNS, rows=rows, is_folded=True
    )


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    interval = short_interval(low, high)
    return short_number(value) if interval is None else f"{short_number(value)} ({interval})"
