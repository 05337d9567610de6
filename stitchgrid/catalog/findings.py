"""The findings of a sweep in a few lines: is every layer most similar to itself?"""

from collections import defaultdict

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.labels import parameters
from stitchgrid.catalog.query_files import load_question

REMARKS = "select model, unnest(remarks) as remark from models where sweep = $sweep order by all"
DIVERGED = """
select count(distinct cell_id) as num, string_agg(distinct matcher, ', ' order by matcher) as matchers
from results where sweep = $sweep and list_contains(flags, 'diverged')
"""


def remarks(catalog: Catalog, sweep: str) -> list[str]:
    """Return lines with the remarks on a sweep's networks (untrained, at chance, refused); empty if there are none."""
    rows = catalog.query(REMARKS, {"sweep": sweep}).to_pylist()
    return ["Of the networks:", *(f"  {row['model']}: {row['remark']}" for row in rows)] if rows else []


def findings(catalog: Catalog, sweep: str) -> list[str]:
    """Return lines that say for how many target layers the best source within the same network is another layer.

    Best: highest accuracy for trained stitchers, lowest residual for least squares, by direction for indices; if the
    layer itself is among the best, it counts as the best. The first line says how many cells diverged, if any: they
    are left out. Empty if no network of the sweep was compared with itself and no cell diverged.
    """
    found = catalog.ask(load_question("diagonal_violations"), {"sweep": sweep}).to_pylist()
    rows = [row for row in found if "rank" not in parameters(row["params"])]  # without reduced layers
    judged: dict[str, int] = defaultdict(int)
    violated: dict[str, int] = defaultdict(int)
    for row in rows:
        judged[row["matcher"]] += row["num_judged"]
        violated[row["matcher"]] += row["num_violations"]
    if not any(judged.values()):
        return diverged_cells(catalog, sweep)
    width = max(map(len, judged))
    return [
        *diverged_cells(catalog, sweep),
        "Within one network, the best source for a layer is not the layer itself:",
        *(f"  {matcher:{width}}  for {violated[matcher]} of {judged[matcher]} layers" for matcher in judged),
    ]


def diverged_cells(catalog: Catalog, sweep: str) -> list[str]:
    """Return a line about the cells whose training diverged; empty if there are none."""
    [row] = catalog.query(DIVERGED, {"sweep": sweep}).to_pylist()
    if not row["num"]:
        return []
    return [
        f"{row['num']} cells of {row['matchers']} diverged: their training ended no better than a constant prediction, "
        "so answers and best layers leave them out; train for longer (epochs), or with another lr."
    ]
