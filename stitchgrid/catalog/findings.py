"""What a sweep found, in a few lines: is every layer most like itself?"""

from collections import defaultdict

from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.labels import parameters
from stitchgrid.catalog.questions import load_question

REMARKS = "select model, unnest(remarks) as remark from models where sweep = $sweep order by all"
DIVERGED = """
select count(distinct cell_id) as num, string_agg(distinct matcher, ', ' order by matcher) as matchers
from results where sweep = $sweep and list_contains(flags, 'diverged')
"""


def remarks(catalog: Catalog, sweep: str) -> list[str]:
    """Return lines that say what to know of a sweep's networks: untrained, at chance, refused; none where nothing."""
    rows = catalog.query(REMARKS, {"sweep": sweep}).to_pylist()
    return ["Of the networks:", *(f"  {row['model']}: {row['remark']}" for row in rows)] if rows else []


def findings(catalog: Catalog, sweep: str) -> list[str]:
    """Return lines that say for how many target layers the best source within its network is not the layer itself.

    Empty where no network of the sweep was compared with itself. Best: highest accuracy for trained stitchers, lowest
    residual for least squares, by direction for indices; a tie that includes the layer itself is none. Also how many
    trainings diverged, if any: their cells are not looked at.
    """
    found = catalog.ask(load_question("diagonal_violations"), {"sweep": sweep}).to_pylist()
    rows = [row for row in found if "rank" not in parameters(row["params"])]  # layers as they are
    judged: dict[str, int] = defaultdict(int)
    violated: dict[str, int] = defaultdict(int)
    for row in rows:
        judged[row["matcher"]] += row["num_judged"]
        violated[row["matcher"]] += row["num_violations"]
    if not any(judged.values()):
        return _diverged(catalog, sweep)
    width = max(map(len, judged))
    return [
        *_diverged(catalog, sweep),
        "Within one network, the best source for a layer is not the layer itself:",
        *(f"  {matcher:{width}}  for {violated[matcher]} of {judged[matcher]} layers" for matcher in judged),
    ]


def _diverged(catalog: Catalog, sweep: str) -> list[str]:
    """Return a line about cells whose training diverged, none where there are none."""
    [row] = catalog.query(DIVERGED, {"sweep": sweep}).to_pylist()
    if not row["num"]:
        return []
    return [
        f"{row['num']} cells of {row['matchers']} diverged: their training ended no better than a constant prediction, "
        "so they are left out of what follows; lower lr, or train for longer."
    ]
