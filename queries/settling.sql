-- When, in training, does each layer become what it is at the end?
-- Of networks that are checkpoints of one training (`steps` in a job): how similar each layer is to itself at the last
-- step. reached is how far the layer has come: 0 as at the first step, 1 as at the last. settled_step is the first step
-- from which on it stays at `share` or above. Seeds of matchers are averaged.
-- param sweep = ''  one sweep; '' is all of them
-- param matcher = ''  one matcher; '' is all of them
-- param share = 0.9  of the way, from which on a layer counts as settled
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, run, layer, depth, step, last_step, score, reached, settled_step, metric, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
lasts as (
    select sweep, run, min(step) as first_step, max(step) as last_step from models where step is not null group by all
),
steps as (
    select
        s.sweep, s.matcher, f.run, s.source_layer as layer, s.source_depth as depth, s.source_index, f.step,
        l.first_step, l.last_step, s.score, s.similarity, s.metric, s.params, s.samples
    from kept as s
    join models as f on f.sweep = s.sweep and f.model = s.source_model
    join models as g on g.sweep = s.sweep and g.model = s.target_model
    join lasts as l on l.sweep = s.sweep and l.run = f.run and g.run = f.run and g.step = l.last_step
    where $sweep in ('', s.sweep) and $matcher in ('', s.matcher) and s.source_layer = s.target_layer
),
ends as (
    select
        *,
        max(similarity) filter (where step = first_step) over of_layer as at_first,
        max(similarity) filter (where step = last_step) over of_layer as at_last
    from steps
    window of_layer as (partition by sweep, matcher, params, samples, run, layer)
),
ways as (
    select *, (similarity - at_first) / nullif(at_last - at_first, 0) as reached from ends
),
settled as (
    select *, bool_and(reached >= $share) over later as stays
    from ways
    window later as (
        partition by sweep, matcher, params, samples, run, layer order by step
        rows between current row and unbounded following
    )
)
select
    sweep, matcher, run, layer, depth, step, last_step, score, reached,
    min(step) filter (where stays) over (partition by sweep, matcher, params, samples, run, layer) as settled_step,
    metric, params, samples
from settled
order by sweep, matcher, params, samples, run, source_index, step
