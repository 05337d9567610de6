"""Grids -> the data of a page: names and texts as JSON, numbers as arrays.

The layer pairs of a sweep have consecutive numbers: network pair by network pair, row by row. So `values[k]` of every
choice is the value of layer pair k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stitchgrid.atlas.answers import pack_answers
from stitchgrid.atlas.grids import EVIDENCE, Choice, Floats, NetworkInfo, Positions, SweepGrids
from stitchgrid.atlas.packing import FEW, Arrays
from stitchgrid.catalog.labels import parameters
from stitchgrid.records import TWIN

Pairs = dict[tuple[int, int], slice]  # (source, target) -> numbers of their layer pairs


def sweep_content(grid: SweepGrids) -> dict[str, Any]:
    """Return the data of one sweep for the page."""
    arrays = Arrays()
    pairs = number_pairs(grid)
    positions = {network.name: position for position, network in enumerate(grid.networks)}
    many = sum(panel.values_ST.size for choice in grid.choices for panel in choice.panels) > FEW
    size = max((span.stop for span in pairs.values()), default=0)
    return {
        "name": grid.sweep,
        "computed": grid.computed,
        "numEval": grid.num_eval,
        "numFit": grid.num_fit,
        "cells": grid.num_by_status,
        "networks": [_network(network, positions) for network in grid.networks],
        "sources": arrays.add_codes(np.array([source for source, _ in pairs], dtype=np.int64)),
        "targets": arrays.add_codes(np.array([target for _, target in pairs], dtype=np.int64)),
        "judgements": [asdict(judgement) for judgement in grid.judgements],
        "claims": [asdict(claims) for claims in grid.claims],
        "notes": [_without_empty(asdict(note)) for note in grid.notes],
        "choices": [_choice(choice, pairs, size, arrays, many=many) for choice in grid.choices],
        "claimants": find_claimants(grid.choices),
        "answers": pack_answers(grid, arrays, many=many),
        "provenance": grid.provenance,
        "fold": asdict(grid.fold) if grid.fold else None,
        "isRounded": many,
        **arrays.content(),
    }


def number_pairs(grid: SweepGrids) -> Pairs:
    """Return the numbers of the layer pairs of each pair of networks that any choice shows, in order of networks."""
    found = sorted({(panel.source, panel.target) for choice in grid.choices for panel in choice.panels})
    sizes = [len(grid.networks[source].layers) * len(grid.networks[target].layers) for source, target in found]
    ends = np.cumsum(sizes).tolist()
    return {pair: slice(end - size, end) for pair, size, end in zip(found, sizes, ends, strict=True)}


def _network(network: NetworkInfo, positions: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": network.name,
        "architecture": network.architecture,
        "num_parameters": network.num_parameters,
        "accuracy": network.accuracy,
        "layers": [asdict(layer) for layer in network.layers],
        "remarks": network.remarks,
        "isUntrained": network.is_untrained,
        "isTwin": network.is_untrained and network.name.endswith(TWIN),
        "twin": positions.get(network.name + TWIN),
        "origin": network.origin,
    }


def _choice(choice: Choice, pairs: Pairs, size: int, arrays: Arrays, *, many: bool) -> dict[str, Any]:
    names = ("value", *dict.fromkeys(name for panel in choice.panels for name in panel.evidence))
    numbers: dict[str, Floats] = {name: np.full(size, np.nan) for name in names}
    notes: Positions = np.zeros(size, dtype=np.int64)
    for panel in choice.panels:
        span = pairs[panel.source, panel.target]
        notes[span] = panel.notes_ST.ravel()
        numbers["value"][span] = panel.values_ST.ravel()
        for name, values_ST in panel.evidence.items():
            numbers[name][span] = values_ST.ravel()
    evidence = {
        name: arrays.add_numbers(numbers[name], many=many)
        for name in EVIDENCE
        if name in numbers and not np.isnan(numbers[name]).all()
    }
    return {
        "matcher": choice.matcher,
        "label": choice.label,
        "params": choice.params,
        "samples": choice.samples,
        "seed": choice.seed,
        "metric": choice.metric,
        "isScore": choice.is_score,
        "isTrained": choice.is_trained,
        "isSymmetric": choice.is_symmetric,
        "higherIsSimilar": choice.higher_is_similar,
        "direction": choice.direction,
        "scale": asdict(choice.scale),
        "values": arrays.add_numbers(numbers["value"], many=many),
        "notes": arrays.add_codes(notes),
        "evidence": evidence,
    }


def find_claimants(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """Return for each trained matcher and seed the choices with which the query `misleading` judges its claims."""
    entries: dict[tuple[Any, ...], dict[str, int]] = {}
    for position, choice in enumerate(choices):
        key = choice.matcher, choice.params, choice.samples, choice.seed
        entries.setdefault(key, {})[choice.metric] = position
    direct = [(key, found["residual"]) for key, found in entries.items() if key[0] == "direct" and "residual" in found]
    claimants = []
    for key, found in entries.items():
        first = choices[next(iter(found.values()))]
        if first.is_trained and ("accuracy" in found or "relative_accuracy" in found):
            claimants.append(
                {
                    "label": first.label,
                    "seed": first.seed,
                    "choices": list(found.values()),
                    "relativeAccuracy": found.get("relative_accuracy"),
                    "accuracy": found.get("accuracy"),
                    "detectors": [
                        found[name] for name in ("ood_mahalanobis_auroc", "ood_energy_auroc") if name in found
                    ],
                    "direct": [position for other, position in direct if _rank(other[1]) == _rank(key[1])],
                }
            )
    return claimants


def _rank(params: str) -> str:
    return str(parameters(params).get("rank", "full"))


def _without_empty(note: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in note.items() if value not in (None, "")}
