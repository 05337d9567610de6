"""The SQL views over the tables of `tables.py`. Users rely on their columns: add columns, never rename or narrow one.

A sweep is *ready* if the store's snapshot holds its rows and cells in the form of the views. For other sweeps, and for
*loose* rows, which no snapshot holds yet, the views join tables at each query. A cell that has both snapshot rows and
loose rows is *moved*: all its rows are among the loose ones, and its snapshot rows do not count.
"""

from dataclasses import dataclass

from stitchgrid.matchers.evidence import IS_EVIDENCE

LAYER_PAIR = (
    "source_model, source_layer, source_index, source_depth, target_model, target_layer, target_index, target_depth"
)
MEASURED = (
    "metric, value, higher_is_similar, num_fit, num_eval, num_rows, seconds, device, precision, alignment, flags, "
    "source_weights, target_weights, data, version, created_at"
)
EVIDENCE = 'low, high, replicates, "null"'
NETWORKS = "source_network, source_layer, target_network, target_layer"
NO_EVIDENCE = f"where not regexp_matches(metric, '{IS_EVIDENCE}')"
IS_VALUE = "status = 'done' and metric is not null"
NAMED = f"sweep, cell_id, {LAYER_PAIR}, matcher, params, seed"


@dataclass(frozen=True, kw_only=True)
class TablesShape:
    """Which tables behind the views have rows."""

    has_snapshot: bool  # _rows
    has_ready: bool  # _ready_cells, _ready_results
    has_others: bool  # sweeps in _cells that are not ready
    has_loose: bool  # rows in _loose
    has_moved: bool  # cells in _moved
    has_running: bool  # shards in _running
    has_values: bool  # whether _loose has the columns of values, or only the columns that give the status of cells
    has_evidence: bool = False  # whether a sweep asks for intervals or shuffled images


def view_sql(shape: TablesShape) -> dict[str, str]:
    """Return name -> statement of each view; a view comes after the views that it uses."""
    measured = f"cell_id, {MEASURED}, {EVIDENCE}, {NETWORKS}, matcher, params, seed, shard"
    of_cells = {
        "_values": _rows_where(shape, measured if shape.has_values else "cell_id, metric, created_at", IS_VALUE),
        "_errors": _rows_where(shape, "cell_id, status, error, created_at", "status <> 'done'"),
        "cells": _cells(shape),
        "models": MODELS,
        "layers": LAYERS,
        "probes": PROBES,
        "matchers": MATCHERS,
    }
    of_values = {
        "measurements": _with_evidence(
            shape, f"{MEASUREMENTS} {NO_EVIDENCE * (not shape.has_evidence)}", "cell_id, metric"
        ),
        "results": _results(shape),
        "scores": SCORES,
        "all_scores": ALL_SCORES,
    }
    of_values["profiles"] = PROFILES
    of_values["training"] = TRAINING
    return {**of_cells, **(of_values if shape.has_values else {})}


def _rows_where(shape: TablesShape, columns: str, condition: str) -> str:
    kept = f"select {columns} from _rows where {condition} {_not_moved(shape)}"
    loose = f"select {columns} from _loose where {condition}"
    return _union([kept] * shape.has_snapshot + [loose] * (shape.has_loose or not shape.has_snapshot))


def _not_moved(shape: TablesShape) -> str:
    return "and cell_id not in (select cell_id from _moved)" if shape.has_moved else ""


def _union(branches: list[str]) -> str:
    return "\nunion all\n".join(branches)


# Columns of rows of evidence (`matchers.evidence`) are joined to the value that the evidence is for.
MEASUREMENTS = f"select cell_id, {MEASURED}, {EVIDENCE}, {NETWORKS}, matcher, params, seed, shard from _values"

# A metric that the sweep does not ask for, but that is stored because another one needs it, is only in `measurements`.
JOINED = f"""
select {", ".join(f"c.{name}" for name in NAMED.split(", "))},
       {", ".join(f"v.{name}" for name in f"{MEASURED}, {EVIDENCE}".split(", "))}
from {{cells}} as c
join {{values}} as v on v.cell_id = c.cell_id and list_contains(c.metrics, v.metric)
"""


def _results(shape: TablesShape) -> str:
    ready = f"select {NAMED}, {MEASURED}, {EVIDENCE} from _ready_results where true {_not_moved(shape)}"
    fresh = JOINED.format(cells="_ready_cells", values=f"(from _loose where {IS_VALUE})")
    others = JOINED.format(cells="_cells", values="_values")
    rows = _union(
        [ready] * shape.has_ready
        + [fresh] * (shape.has_ready and shape.has_loose)
        + [others] * (shape.has_others or not shape.has_ready)
    )
    return _with_evidence(shape, rows, "sweep, cell_id, metric")


def _with_evidence(shape: TablesShape, rows: str, key: str) -> str:
    """Return the SQL of the rows of values, each with its stored evidence: that with most groups, and most shuffles.

    A value and its evidence have the same values in the columns of `key`.
    """
    if not shape.has_evidence:
        return rows
    names = key.removesuffix(", metric")
    return f"""
with stored as ({rows}),
intervals as (
    select {names}, regexp_replace(metric, '{IS_EVIDENCE}', '') as metric,
           arg_max({{'low': low, 'high': high, 'replicates': replicates}}, len(replicates)) as found
    from stored where regexp_matches(metric, '@groups=[0-9]+$') group by all
),
nulls as (
    select {names}, regexp_replace(metric, '{IS_EVIDENCE}', '') as metric, arg_max("null", len("null")) as "null"
    from stored where regexp_matches(metric, '@shuffles=[0-9]+$') group by all
)
select stored.* replace (found.low as low, found.high as high, found.replicates as replicates, nulls."null" as "null")
from stored
left join intervals using ({key})
left join nulls using ({key})
{NO_EVIDENCE}
"""


def _cells(shape: TablesShape) -> str:
    ready = READY if not shape.has_loose else READY_AND_LOOSE
    states = _union([ready] * shape.has_ready + [OTHERS] * (shape.has_others or not shape.has_ready))
    status = "if(status = 'pending' and r.shard is not null, 'running', status)" if shape.has_running else "status"
    join = "left join _running as r on r.sweep = c.sweep and r.shard = c.shard" if shape.has_running else ""
    return f"""
with states as ({states})
select c.sweep, c.cell_id, {LAYER_PAIR}, matcher, params, seed, metrics, c.shard,
       {status} as status,
       case when status in ('failed', 'quarantined') then latest_error end as error,
       coalesce(a.attempts, 0) as attempts
from states as c
{join}
left join _attempts as a on a.sweep = c.sweep and a.shard = c.shard
"""


# An error counts until a later value is stored.
PLANNED = f"sweep, cell_id, {LAYER_PAIR}, matcher, params, seed, metrics, shard"
READY = f"select {PLANNED}, status, failed_with as latest_error from _ready_cells"
READY_AND_LOOSE = f"""
select {PLANNED},
       case when l.cell_id is null then c.status
            when list_has_all(l.stored, c.metrics) then 'done'
            when l.failed_at is not null and (l.last_at is null or l.last_at <= l.failed_at) then l.failed_as
            else 'pending' end as status,
       if(l.cell_id is null, c.failed_with, l.failed_with) as latest_error
from _ready_cells as c
left join _loose_cells as l using (cell_id)
"""
OTHERS = f"""
select {PLANNED},
       case when list_has_all(s.stored, c.metrics) then 'done'
            when e.latest is not null and (s.last_at is null or s.last_at <= e.latest.at) then e.latest.status
            else 'pending' end as status,
       e.latest.error as latest_error
from _cells as c
left join (select cell_id, list(metric) as stored, max(created_at) as last_at from _values group by cell_id) as s
    using (cell_id)
left join (
    select cell_id, max({{'at': created_at, 'status': status, 'error': error}}) as latest from _errors group by cell_id
) as e using (cell_id)
"""

MODELS = """
select sweep, model, entry, architecture, args, weights_digest, network_id, preprocess, num_parameters, num_classes,
       num_cuts, flops, accuracy, loss, num_eval, head, is_untrained, chance, is_at_chance, problem, remarks,
       regexp_replace(model, '@[0-9]+$', '') as run, try_cast(regexp_extract(model, '@([0-9]+)$', 1) as bigint) as step
from _models
"""

LAYERS = """
select sweep, model, layer, node, layer_index, depth, kind, shape, width, num_prefix, flops from _layers
"""

PROBES = """
select sweep, model, layer, layer_index, layer_depth, rank, accuracy, loss, fit_accuracy, C, max_iter, num_fit,
       num_eval, num_iter, converged, flags, error
from _probes
"""

MATCHERS = "select * from _matchers"

# Images of the split that `samples` of a job counts: indices have fit images only to decide a rank.
SAMPLES = "if(m.family = 'index', num_eval, coalesce(num_fit, num_eval))"

# One number per layer pair and matcher, averaged over seeds; `similarity` is the score turned so that more is better.
# A cell whose training diverged is no claim: it is not among the `scores`, from which layers are ranked.
SCORES_WHERE = f"""
select sweep, {LAYER_PAIR}, matcher, params,
       {SAMPLES} as samples, m.score_metric as metric,
       avg(value) filter (where metric = m.score_metric) as score,
       avg(if(m.higher_is_similar, value, -value)) filter (where metric = m.score_metric) as similarity,
       avg(value) filter (where metric = 'accuracy') as accuracy,
       avg(value) filter (where metric = 'residual') as residual,
       count(*) filter (where metric = m.score_metric) as num_cells
from results
join matchers as m using (matcher)
where value is not null and not isnan(value) and metric in (m.score_metric, 'accuracy', 'residual')
      and {{condition}}
group by sweep, {LAYER_PAIR}, matcher, params, num_fit, num_eval, m.family, m.score_metric
having score is not null
"""
SCORES = SCORES_WHERE.format(condition="not list_contains(flags, 'diverged')")
ALL_SCORES = SCORES_WHERE.format(condition="true")

# How far a stitched network is from its target at later layers of the target. Networks may share names of layers.
PROFILES = f"""
select r.sweep, {", ".join(f"r.{name}" for name in LAYER_PAIR.split(", "))}, r.matcher, r.params, r.seed, r.cell_id,
       l.layer, l.layer_index, l.depth as layer_depth, r.value as residual, r.flags
from results as r
join layers as l on l.sweep = r.sweep and l.model = r.target_model and r.metric = 'residual_at:' || l.layer
"""

# Cells of networks that are checkpoints of one training, `NAME@STEP`, with the step of each.
TRAINING = """
select r.*, f.run as source_run, f.step as source_step, g.run as target_run, g.step as target_step
from results as r
join models as f on f.sweep = r.sweep and f.model = r.source_model
join models as g on g.sweep = r.sweep and g.model = r.target_model
where f.step is not null or g.step is not null
"""

VIEWS = (
    "results",
    "measurements",
    "cells",
    "models",
    "layers",
    "probes",
    "matchers",
    "scores",
    "all_scores",
    "answers",
    "all_answers",
    "pairs",
    "profiles",
    "training",
)
