"""What a sweep says of its networks: for each pair of them how many layers have a counterpart, with the evidence."""

from collections import Counter
from collections.abc import Sequence

from stitchgrid.catalog.answers import Answer, read_answers, short_interval
from stitchgrid.catalog.judging import VERDICTS
from stitchgrid.catalog.labels import parameters
from stitchgrid.report.asking import Asker
from stitchgrid.report.content import Section, Table, Verdict, share

TOP = 200  # answers that are listed
COLUMNS = (
    *("target_model", "target_layer", "source_model", "best source", "matcher", "value", "95 % interval"),
    *("next best", "margin", "its interval", "as good", "untrained twin", "p", "verdict", "failed", "not known"),
)


def answers_of(ask: Asker) -> list[Answer]:
    """Return the answers of the sweep; those of sources of reduced rank are for the tests alone."""
    return [one for one in read_answers(ask.catalog, ask.sweep) if parameters(one.params).get("rank") is None]


def your_networks(ask: Asker, answers: Sequence[Answer]) -> Section:
    """Return for each pair of networks how many layers of the target have a supported best source."""
    pairs: dict[tuple[str, str], dict[str, list[Answer]]] = {}
    for one in answers:
        pairs.setdefault((one.source_model, one.target_model), {}).setdefault(one.label, []).append(one)
    return Section(
        title="Your networks",
        rule="Each layer of a network gets a best source layer in another, by each matcher. Supported: both networks "
        "are trained and above chance, the match is better than that of an untrained twin and of shuffled images, all "
        "layers that are as good lie within one block, and nothing else that was computed speaks against it. Not "
        "supported: one of the first four fails. Weak: all else. Layers of one network are not independent: intervals "
        "of shares are too narrow.",
        query="",
        command=f"stitchgrid answer {ask.sweep}",
        verdicts=tuple(_sentence(source, target, found) for (source, target), found in sorted(pairs.items())),
        tables=(_evidence(answers),) if answers else (),
        missing="" if answers else f"stitchgrid resume {ask.sweep}",
    )


def _sentence(source: str, target: str, by_label: dict[str, list[Answer]]) -> Verdict:
    parts = [f"{label}: {_counts([one.verdict for one in found])}" for label, found in by_label.items()]
    return Verdict(subject=f"{source} into {target}", text="; ".join(parts), holds=None)


def _counts(verdicts: Sequence[str]) -> str:
    found = Counter(verdicts)
    rest = ", ".join(f"{found[name]} {name}" for name in VERDICTS[1:] if found[name])
    return f"{share(found[VERDICTS[0]], len(verdicts))} supported{', ' if rest else ''}{rest}"


def _evidence(answers: Sequence[Answer]) -> Table:
    rows = tuple(
        (
            *(one.target_model, one.target_layer, one.source_model, one.source_layer, one.label, one.value),
            *(
                short_interval(one.low, one.high),
                one.runner_up,
                one.margin,
                short_interval(one.margin_low, one.margin_high),
            ),
            *(one.candidates, one.untrained_value, one.p, one.verdict),
            *([check.name for check in one.failed] or None, list(one.missing) or None),
        )
        for one in answers[:TOP]
    )
    left_out = max(0, len(answers) - TOP)
    return Table(caption="The evidence", columns=COLUMNS, rows=rows, num_left_out=left_out)
