"""The views that SQL sees, over the tables of `tables.py`. Columns are promises: add, never rename or narrow."""

LAYER_PAIR = (
    "source_model, source_layer, source_index, source_depth, target_model, target_layer, target_index, target_depth"
)

MEASUREMENTS = """
create view measurements as
select cell_id, metric, value, higher_is_similar, num_fit, num_eval, num_rows, seconds, device, precision, alignment,
       flags, source_network, source_layer, target_network, target_layer, matcher, params, seed, source_weights,
       target_weights, data, shard, version, created_at
from _values
"""

# A metric that the sweep does not ask for, stored for the sake of another one, is in `measurements` alone.
RESULTS = f"""
create view results as
select c.sweep, c.cell_id, {LAYER_PAIR.replace("source_", "c.source_").replace("target_", "c.target_")},
       c.matcher, c.params, c.seed, v.metric, v.value, v.higher_is_similar, v.num_fit, v.num_eval, v.num_rows,
       v.seconds, v.device, v.precision, v.alignment, v.flags, v.source_weights, v.target_weights, v.data, v.version,
       v.created_at
from _cells as c
join _values as v on v.cell_id = c.cell_id and list_contains(c.metrics, v.metric)
"""

# An error stands until a value is stored after it, as in `store.Outcomes`.
CELLS = f"""
create view cells as
with stored as (
    select cell_id, list(metric) as metrics, max(created_at) as last_at from _values group by cell_id
),
errors as (
    select cell_id, max({{'at': created_at, 'status': status, 'error': error}}) as latest
    from _errors group by cell_id
),
judged as (
    select c.*, coalesce(a.attempts, 0) as attempts, e.latest.error as latest_error,
           case
               when list_has_all(s.metrics, c.metrics) then 'done'
               when e.latest is not null and (s.last_at is null or s.last_at <= e.latest.at) then e.latest.status
               when r.shard is not null then 'running'
               else 'pending'
           end as status
    from _cells as c
    left join stored as s on s.cell_id = c.cell_id
    left join errors as e on e.cell_id = c.cell_id
    left join _running as r on r.sweep = c.sweep and r.shard = c.shard
    left join _attempts as a on a.sweep = c.sweep and a.shard = c.shard
)
select sweep, cell_id, {LAYER_PAIR}, matcher, params, seed, metrics, shard, status,
       case when status in ('failed', 'quarantined') then latest_error end as error, attempts
from judged
"""

MODELS = """
create view models as
select sweep, model, entry, architecture, args, weights_digest, network_id, preprocess, num_parameters, num_classes,
       num_cuts, flops, accuracy, loss, num_eval
from _models
"""

LAYERS = """
create view layers as
select sweep, model, layer, node, layer_index, depth, kind, shape, width, num_prefix, flops from _layers
"""

MATCHERS = "create view matchers as select * from _matchers"

# One number per layer pair and matcher, averaged over seeds; `similarity` is the score turned so that more is better.
SCORES = f"""
create view scores as
select sweep, {LAYER_PAIR}, matcher, params, coalesce(num_fit, num_eval) as samples, m.score_metric as metric,
       avg(value) filter (where metric = m.score_metric) as score,
       avg(if(m.higher_is_similar, value, -value)) filter (where metric = m.score_metric) as similarity,
       avg(value) filter (where metric = 'accuracy') as accuracy,
       avg(value) filter (where metric = 'residual') as residual,
       count(*) filter (where metric = m.score_metric) as num_cells
from results
join matchers as m using (matcher)
where value is not null and not isnan(value) and metric in (m.score_metric, 'accuracy', 'residual')
group by sweep, {LAYER_PAIR}, matcher, params, num_fit, num_eval, m.score_metric
having score is not null
"""

VIEWS = {
    "results": RESULTS,
    "measurements": MEASUREMENTS,
    "cells": CELLS,
    "models": MODELS,
    "layers": LAYERS,
    "matchers": MATCHERS,
    "scores": SCORES,
}
ORDER = ("measurements", "results", "cells", "models", "layers", "matchers", "scores")  # each after those it uses
