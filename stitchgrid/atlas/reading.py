"""Read the grids of a sweep from the catalog: its planned cells, joined with the stored values."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from stitchgrid.atlas.answers import query_answers
from stitchgrid.atlas.grids import Choice, Claims, Fold, Judgement, LayerInfo, NetworkInfo, SweepGrids
from stitchgrid.atlas.heatmaps import read_choices
from stitchgrid.atlas.provenance import read_provenance
from stitchgrid.catalog import Catalog, load_question
from stitchgrid.catalog.misleading import count_misleading

# One row per cell and metric that the job asks for. Two networks of a sweep that share their weights share their cells,
# so rows are joined by names as well.
SQUARES = """
with asked as (
    select *, unnest(list_filter(metrics, lambda one: not contains(one, ':'))) as metric from cells where sweep = $sweep
),
stored as (
    select *, array_to_string(list_sort(flags), ', ') as flag_text, metric as stored_metric
    from results where sweep = $sweep
),
sizes as (select model, count(*) as num from layers where sweep = $sweep group by model)
select a.source_model, (a.source_index - (f.num - 1) % $stage) // $stage as source_index,
       a.target_model, (a.target_index - (g.num - 1) % $stage) // $stage as target_index,
       a.matcher, a.params, a.seed, a.cell_id, a.metric,
       s.value, s.higher_is_similar,
       case when s.value is not null and not isnan(s.value) then 'value'
            when s.stored_metric is not null then 'undefined'
            else a.status end as state,
       if(s.stored_metric is null, a.error, null) as error, s.num_fit, s.num_eval, s.num_rows, s.alignment,
       coalesce(s.flag_text, '') as flags, s.device, s.precision, s.low, s.high,
       list_aggregate(s."null", 'quantile_cont', 0.05) as null_low,
       list_aggregate(s."null", 'quantile_cont', 0.95) as null_high,
       max(if(a.matcher in (select matcher from matchers where family = 'index'), s.num_eval,
              coalesce(s.num_fit, s.num_eval))) over (partition by a.cell_id) as samples
from asked as a
join sizes as f on f.model = a.source_model
join sizes as g on g.model = a.target_model
left join stored as s using (cell_id, source_model, source_index, target_model, target_index, metric)
where (f.num - 1 - a.source_index) % $stage = 0 and (g.num - 1 - a.target_index) % $stage = 0
order by a.matcher, a.params, a.seed nulls first, a.cell_id, a.metric, a.source_model, a.source_index, a.target_model,
         a.target_index
"""
NUM_CELLS = """
with sizes as (select model, count(*) as num from layers where sweep = $sweep group by model)
select count(*) as num from cells as a
join sizes as f on f.model = a.source_model
join sizes as g on g.model = a.target_model
where sweep = $sweep and (f.num - 1 - source_index) % $stage = 0 and (g.num - 1 - target_index) % $stage = 0
"""
MOST_LAYERS = "select max(num) as num from (select count(*) as num from layers where sweep = $sweep group by model)"
MOST_CELLS = 1_000_000  # most cells for which a page shows every layer
STATUSES = "select status, count(*) as num_cells from cells where sweep = $sweep group by status order by status"
ORIGIN = ("entry", "args", "weights_digest", "network_id", "preprocess", "head", "chance")
LAYERS = "select model, layer, depth, kind, shape from layers where sweep = $sweep order by layer_index"
MODELS = f"""
select model, architecture, num_parameters, accuracy, remarks, is_untrained, {", ".join(ORIGIN)}
from models where sweep = $sweep
"""
# Layers of cells that the sweep does not have, or has at another position: their squares would be in the wrong place.
MISPLACED = """
select * from (
    select source_model as model, source_layer as layer, source_index as layer_index from cells where sweep = $sweep
    union
    select target_model, target_layer, target_index from cells where sweep = $sweep
)
anti join (select model, layer, layer_index from layers where sweep = $sweep) using (model, layer, layer_index)
limit 1
"""
DAYS = "select left(min(created_at), 10) as first, left(max(created_at), 10) as last from results where sweep = $sweep"


def read_sweep(catalog: Catalog, sweep: str) -> SweepGrids:
    """Return everything the atlas shows of a sweep.

    Raises:
        LookupError: If cells name layers that the sweep does not have.
    """

    def rows(query: str) -> list[dict[str, Any]]:
        table: list[dict[str, Any]] = catalog.query(query, {"sweep": sweep}).to_pylist()
        return table

    if lost := rows(MISPLACED):
        raise LookupError(f"cells of sweep {sweep!r} name {lost[0]}, which is not one of its layers")
    fold = _fold(catalog, sweep)
    stage = fold.num_layers if fold else 1
    networks = _networks(rows(MODELS), rows(LAYERS), stage)
    choices, notes = read_choices(catalog.query(SQUARES, {"sweep": sweep, "stage": stage}), networks)
    [days] = rows(DAYS)
    return SweepGrids(
        sweep=sweep,
        networks=networks,
        choices=choices,
        notes=notes,
        judgements=_judgements(catalog, sweep, choices),
        claims=_claims(catalog, sweep, networks, choices),
        num_by_status={row["status"]: row["num_cells"] for row in rows(STATUSES)},
        num_eval=tuple(row["n"] for row in rows(_numbers("num_eval"))),
        num_fit=tuple(row["n"] for row in rows(_numbers("num_fit"))),
        computed=(days["first"], days["last"]) if days["first"] else None,
        answers=query_answers(catalog, sweep, stage),
        provenance=read_provenance(catalog, sweep),
        fold=fold,
    )


def _fold(catalog: Catalog, sweep: str) -> Fold | None:
    """Return how layers are folded into stages so that a page can show the cells; None: every layer is shown.

    At least the last layer of each network is shown, however many networks there are.
    """

    def num_cells(stage: int) -> int:
        [row] = catalog.query(NUM_CELLS, {"sweep": sweep, "stage": stage}).to_pylist()
        return int(row["num"])

    whole = shown = num_cells(1)
    [deepest] = catalog.query(MOST_LAYERS, {"sweep": sweep}).to_pylist()
    stage = 1
    while shown > MOST_CELLS and stage < (deepest["num"] or 0):
        stage += 1
        shown = num_cells(stage)
    return Fold(num_layers=stage, num_cells=whole, most_cells=MOST_CELLS) if stage > 1 else None


def _numbers(column: str) -> str:
    return f"select distinct {column} as n from results where sweep = $sweep and {column} > 0 order by n"


def _networks(
    models: Sequence[dict[str, Any]], layers: Sequence[dict[str, Any]], stage: int
) -> tuple[NetworkInfo, ...]:
    """Return the networks, each with the last layer of each stage."""
    layers_of: dict[str, list[LayerInfo]] = defaultdict(list)
    for row in layers:
        layers_of[row["model"]].append(
            LayerInfo(name=row["layer"], depth=row["depth"], kind=row["kind"], shape=tuple(row["shape"]))
        )
    return tuple(
        NetworkInfo(
            name=row["model"],
            architecture=row["architecture"],
            num_parameters=row["num_parameters"],
            accuracy=row["accuracy"],
            remarks=tuple(row["remarks"] or ()),
            layers=tuple(layers_of[row["model"]][::-1][::stage][::-1]),
            is_untrained=bool(row["is_untrained"]),
            origin={name: row[name] for name in ORIGIN if row[name] is not None},
        )
        for row in models
    )


def _judgements(catalog: Catalog, sweep: str, choices: Sequence[Choice]) -> tuple[Judgement, ...]:
    """Return how often a layer does not match itself best, in the order of the choices."""
    by_entry = _first_choices(choices)
    found = []
    for row in catalog.ask(load_question("diagonal_violations"), {"sweep": sweep}).to_pylist():
        entry = row["matcher"], row["params"], row["samples"]
        if entry in by_entry:  # no choice is the score of a matcher that this version does not have
            position = by_entry[entry]
            found.append(
                Judgement(
                    network=row["model"],
                    label=choices[position].label,
                    choice=position,
                    num_judged=row["num_judged"],
                    num_violations=row["num_violations"],
                    num_missing=row["num_missing"],
                    violations=tuple(row["violations"]),
                )
            )
    return tuple(sorted(found, key=lambda one: one.choice))


def _claims(
    catalog: Catalog, sweep: str, networks: Sequence[NetworkInfo], choices: Sequence[Choice]
) -> tuple[Claims, ...]:
    """Return the claims of trained matchers about each pair of networks, matchers in the order of the choices."""
    by_entry = _first_choices(choices)
    position = {network.name: number for number, network in enumerate(networks)}
    rows = catalog.ask(load_question("misleading"), {"sweep": sweep, "all": "true"}).to_pylist()
    found = [
        Claims(
            source=position[one.source],
            target=position[one.target],
            label=choices[by_entry[one.matcher, one.params, one.samples]].label,
            choice=by_entry[one.matcher, one.params, one.samples],
            num_claims=one.num_claims,
            num_misleading=one.num_misleading,
            num_unchecked=one.num_unchecked,
            pairs=one.pairs,
        )
        for one in count_misleading(rows)
        if (one.matcher, one.params, one.samples) in by_entry
    ]
    return tuple(sorted(found, key=lambda one: (one.source, one.target, one.choice)))


def _first_choices(choices: Sequence[Choice]) -> dict[tuple[str, str, int | None], int]:
    """Return (matcher, parameters, number of images) -> position of the first choice that shows the score."""
    by_entry: dict[tuple[str, str, int | None], int] = {}
    for position, choice in enumerate(choices):
        if choice.is_score:
            by_entry.setdefault((choice.matcher, choice.params, choice.samples), position)
    return by_entry
