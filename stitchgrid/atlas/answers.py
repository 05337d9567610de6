"""The view `answers` as columns for a page: positions of networks, layers and choices, numbers, verdicts and checks."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.atlas.grids import SweepGrids
from stitchgrid.atlas.packing import Arrays
from stitchgrid.catalog import Catalog
from stitchgrid.catalog.answers import IDLE, ORDER
from stitchgrid.catalog.verdict_rules import CHECKS, NEEDED, VERDICTS, answers_sql

#: An untrained twin is never the source of an answer: answers are compared with twins.
ANSWERS = f"""
select target_model, target_layer, source_model, source_layer, runner_up, matcher, params, samples, seed, margin,
       margin_low, margin_high, p, untrained_value, candidates, verdict, checks
from answers where sweep = $sweep
order by {ORDER}
"""
NUM_LAYERS = "(select count(*) from layers as l where l.sweep = $sweep and l.model = {side}_model)"
#: Cells of the last layers of stages: if a page shows only these, its answers are the best of them.
SHOWN = " and ".join(
    f"({NUM_LAYERS.format(side=side)} - 1 - {side}_index) % $stage = 0" for side in ("source", "target")
)
NUMBERS = ("margin", "margin_low", "margin_high", "p", "untrained_value")
MOST_TEXTS = 400_000  # most letters of sentences about checks; with more, the page keeps only the outcomes
OUTCOMES = ("failed", "passed", "not computed", "does not apply")
NONE = 0xFFFF  # position of a layer that does not exist


def query_answers(catalog: Catalog, sweep: str, stage: int) -> pa.Table:
    """Return the answers of a sweep in which a page shows the last of each `stage` layers."""
    if stage == 1:
        return catalog.query(ANSWERS, {"sweep": sweep})
    query = f"with answers as ({answers_sql(where=f'sweep = $sweep and {SHOWN}')}) {ANSWERS}"
    return catalog.query(query, {"sweep": sweep, "stage": stage})


def pack_answers(grid: SweepGrids, arrays: Arrays, *, many: bool) -> dict[str, Any] | None:
    """Return the answers about layers that the page shows; None if there are none."""
    if grid.answers is None or not grid.answers.num_rows:
        return None
    positions = {network.name: number for number, network in enumerate(grid.networks)}
    layers = [{layer.name: number for number, layer in enumerate(network.layers)} for network in grid.networks]
    entries = {
        (choice.matcher, choice.params, choice.samples, choice.seed): number
        for number, choice in enumerate(grid.choices)
        if choice.is_score
    }
    table = grid.answers
    names = {name: table[name].to_pylist() for name in ("target_model", "source_model", "target_layer", "source_layer")}
    keys = zip(*(table[name].to_pylist() for name in ("matcher", "params", "samples", "seed")), strict=True)
    choice = np.array([entries.get(key, -1) for key in keys])
    sides = {side: np.array([positions[name] for name in names[f"{side}_model"]]) for side in ("target", "source")}
    place = {side: _places(layers, sides[side], names[f"{side}_layer"]) for side in ("target", "source")}
    runner_up = _places(layers, sides["source"], table["runner_up"].to_pylist())
    kept = (choice >= 0) & (place["target"] != NONE) & (place["source"] != NONE)
    table = table.filter(pa.array(kept))
    if not table.num_rows:
        return None
    passed, details = _checks(table)
    candidates = [
        [layers[source].get(name, NONE) for name in found or ()]
        for source, found in zip(sides["source"][kept].tolist(), table["candidates"].to_pylist(), strict=True)
    ]
    texts = pc.dictionary_encode(details)
    has_texts = sum(map(len, texts.dictionary.to_pylist())) <= MOST_TEXTS
    verdicts = np.array([VERDICTS.index(word) for word in table["verdict"].to_pylist()])
    return {
        "target": arrays.add_codes(sides["target"][kept]),
        "targetLayer": arrays.add_codes(place["target"][kept]),
        "source": arrays.add_codes(sides["source"][kept]),
        "sourceLayer": arrays.add_codes(place["source"][kept]),
        "runnerUp": arrays.add_codes(runner_up[kept]),
        "choice": arrays.add_codes(choice[kept]),
        "verdict": arrays.add_codes(verdicts),
        **{
            name: arrays.add_numbers(table[name].cast(pa.float64()).fill_null(np.nan).to_numpy(), many=many)
            for name in NUMBERS
        },
        "candidateEnds": arrays.add_codes(np.cumsum([len(found) for found in candidates])),
        "candidates": arrays.add_codes(np.array([layer for found in candidates for layer in found], dtype=np.int64)),
        "checks": arrays.add_codes(passed.ravel()),
        "details": arrays.add_codes(texts.indices.to_numpy()) if has_texts else None,
        "texts": texts.dictionary.to_pylist() if has_texts else None,
        "names": CHECKS,
        "needed": NEEDED,
        "verdicts": VERDICTS,
        "outcomes": OUTCOMES,
    }


def _places(
    layers: list[dict[str, int]], networks: npt.NDArray[np.int64], names: list[str | None]
) -> npt.NDArray[np.int64]:
    found = [layers[network].get(name or "", NONE) for network, name in zip(networks.tolist(), names, strict=True)]
    return np.array(found, dtype=np.int64)


def _checks(table: pa.Table) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Return the outcomes of all checks, (answers, checks) as positions in `OUTCOMES`, and their sentences."""
    flat = table["checks"].combine_chunks().flatten()
    details = flat.field("detail")
    idle = pc.starts_with(details, IDLE).to_numpy(zero_copy_only=False)
    passed = flat.field("passed").cast(pa.int8()).fill_null(2).to_numpy().astype(np.int64)
    return np.where((passed == 2) & idle, 3, passed).reshape(table.num_rows, -1), details
