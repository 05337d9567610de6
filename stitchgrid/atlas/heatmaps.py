"""Turn squares (a row per cell and metric that the job asks for) into choices: heat maps as arrays, with notes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stitchgrid.atlas.grids import EVIDENCE, Choice, Floats, NetworkInfo, Note, Panel, Positions
from stitchgrid.atlas.scales import Scale, choose_scale
from stitchgrid.catalog.labels import matcher_labels, parameters
from stitchgrid.matchers.metrics import OPEN, Metric
from stitchgrid.matchers.registry import MATCHERS

ABSENT = Note()  # the note of a square without a cell; always the first note
NOTE = ("state", "error", "num_fit", "num_eval", "num_rows", "alignment", "flags", "device", "precision")
ENTRY = ("matcher", "params", "seed")
PLACE = ("metric", "source_model", "source_index", "target_model", "target_index")
UNKNOWN = -1


def read_choices(squares: pa.Table, networks: Sequence[NetworkInfo]) -> tuple[tuple[Choice, ...], tuple[Note, ...]]:
    """Return all choices, in the order of the registry of matchers, and the notes of all squares.

    `squares` has the columns of `NOTE`, `ENTRY` and `PLACE`, of evidence, and `samples`, `value` and
    `higher_is_similar`; its rows are in a fixed order.
    """
    values = squares["value"].cast(pa.float64()).fill_null(np.nan).to_numpy()
    samples = pa.array(_samples(squares))
    squares = squares.set_column(squares.column_names.index("samples"), "samples", samples)
    note_of_row, notes = _codes(squares, NOTE)
    choice_of_row, choices = _codes(squares, (*ENTRY, "samples", "metric"))
    diverged = np.array([False, *("diverged" in note["flags"].split(", ") for note in notes)])
    panels = _panels(
        squares, networks, choice_of_row, {"value": values, **_evidence(squares)}, note_of_row + 1, diverged
    )
    palettes = _palettes(squares, values)
    labels = matcher_labels([_variant(row) for row in choices])
    found = [
        Choice(
            matcher=row["matcher"],
            label=label,
            params=row["params"],
            samples=row["samples"] if row["samples"] > UNKNOWN else None,
            seed=row["seed"],
            metric=row["metric"],
            is_score=row["metric"] == _score(row["matcher"]),
            higher_is_similar=palettes[row["matcher"], row["metric"]][0],
            scale=palettes[row["matcher"], row["metric"]][1],
            panels=tuple(panels[code]),
            is_trained=row["matcher"] in MATCHERS and MATCHERS[row["matcher"]].is_trained,
            is_symmetric=row["matcher"] in MATCHERS and MATCHERS[row["matcher"]].symmetric,
        )
        for code, (row, label) in enumerate(zip(choices, labels, strict=True))
    ]
    return tuple(sorted(found, key=_order)), (ABSENT, *(Note(**row) for row in notes))


def _evidence(squares: pa.Table) -> dict[str, Floats]:
    """Return the columns of evidence that have any value."""
    present = [name for name in EVIDENCE if squares[name].null_count < squares.num_rows]
    return {name: squares[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in present}


def _variant(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    samples = row["samples"] if row["samples"] > UNKNOWN else "unknown"
    return row["matcher"], {**parameters(row["params"]), "samples": samples}


def _planned(kind: str, metric: str) -> Metric | None:
    """Return the record of a metric; None if only another version of stitchgrid has the metric."""
    known = MATCHERS[kind].metrics if kind in MATCHERS else ()
    return next((one for one in known if one.name == metric), None)


def _score(kind: str) -> str | None:
    return MATCHERS[kind].score if kind in MATCHERS else None


def _order(choice: Choice) -> tuple[Any, ...]:
    kinds = list(MATCHERS)
    metrics = list(MATCHERS[choice.matcher].metric_names) if choice.matcher in MATCHERS else []
    return (
        _place(choice.matcher, kinds),
        choice.params,
        -1 if choice.samples is None else choice.samples,
        -1 if choice.seed is None else choice.seed,
        _place(choice.metric, metrics),
    )


def _place(word: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(word) if word in known else len(known)), word


def _codes(table: pa.Table, names: Iterable[str]) -> tuple[Positions, list[dict[str, Any]]]:
    """Return for each row the position of its combination of values, and the combinations in order of appearance."""
    names = list(names)
    code = np.zeros(table.num_rows, dtype=np.int64)
    for name in names:
        encoded = table[name].combine_chunks()
        encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
        value = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()
        # Codes are renumbered after each column, so they stay below the number of rows and cannot overflow.
        code = np.unique(code * (len(encoded.dictionary) + 1) + value + 1, return_inverse=True)[1]
    _, first, code = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[code], table.select(names).take(pa.array(first[order])).to_pylist()


def _samples(squares: pa.Table) -> Positions:
    """Return the number of images of each square's matcher, by which otherwise equal matchers of a job differ.

    A cell without stored rows has no such number. It gets a number of its matcher that no other cell of the same layer
    pair and metric has; if none is left, a number below zero.
    """
    samples: Positions = squares["samples"].cast(pa.int64()).fill_null(UNKNOWN).to_numpy().copy()
    unknown = samples == UNKNOWN
    if not unknown.any():
        return samples
    entry, _ = _codes(squares, ENTRY)
    place, _ = _codes(squares, (*ENTRY, *PLACE))
    known = {code: np.unique(samples[(entry == code) & ~unknown]) for code in np.unique(entry[unknown])}
    taken: dict[int, set[int]] = defaultdict(set)
    for row in np.flatnonzero(np.isin(place, place[unknown]) & ~unknown):
        taken[place[row]].add(int(samples[row]))
    for row in np.flatnonzero(unknown):
        used = taken[place[row]]
        left = (int(number) for number in known[entry[row]] if number not in used)
        samples[row] = next(left, UNKNOWN - sum(number < 0 for number in used))
        used.add(int(samples[row]))
    return samples


def _palettes(squares: pa.Table, values: Floats) -> dict[tuple[str, str], tuple[bool | None, Scale]]:
    """Return (matcher, metric) -> direction and colour scale, the same for all seeds and parameters."""
    code, pairs = _codes(squares, ("matcher", "metric"))
    stored = squares["higher_is_similar"].to_numpy()
    palettes = {}
    for number, pair in enumerate(pairs):
        kind, metric = pair["matcher"], pair["metric"]
        rows = code == number
        directions = [bool(one) for one in stored[rows] if one is not None]
        planned = _planned(kind, metric)
        palettes[kind, metric] = (
            directions[0] if directions else planned.higher_is_similar if planned else None,
            choose_scale(planned.scale if planned else OPEN, values[rows]),
        )
    return palettes


def _panels(
    squares: pa.Table,
    networks: Sequence[NetworkInfo],
    choice: Positions,
    numbers: dict[str, Floats],  # `value`, and evidence for it
    notes: Positions,
    diverged: npt.NDArray[np.bool_],  # by note
) -> dict[int, list[Panel]]:
    source, target = (_network_of(squares, side, networks) for side in ("source_model", "target_model"))
    i, j = (squares[name].cast(pa.int64()).to_numpy() for name in ("source_index", "target_index"))
    order = np.lexsort((target, source, choice))
    keys = np.stack([choice, source, target])[:, order]
    starts = np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1
    panels: dict[int, list[Panel]] = defaultdict(list)
    for rows in np.split(order, starts) if len(order) else ():
        f, g = int(source[rows[0]]), int(target[rows[0]])
        shape = len(networks[f].layers), len(networks[g].layers)
        found = {name: np.full(shape, np.nan) for name in numbers}
        for name, values_ST in found.items():
            values_ST[i[rows], j[rows]] = numbers[name][rows]
        notes_ST = np.zeros(shape, dtype=np.int64)
        notes_ST[i[rows], j[rows]] = notes[rows]
        panel = Panel(
            source=f,
            target=g,
            values_ST=found.pop("value"),
            notes_ST=notes_ST,
            diverged_ST=diverged[notes_ST],
            evidence=found,
        )
        panels[int(choice[rows[0]])].append(panel)
    return panels


def _network_of(squares: pa.Table, column: str, networks: Sequence[NetworkInfo]) -> npt.NDArray[np.int64]:
    positions = {network.name: position for position, network in enumerate(networks)}
    codes, names = _codes(squares, (column,))
    return np.array([positions[name[column]] for name in names], dtype=np.int64)[codes]
