-- For how many layers of a network is the best source within that network not the layer itself?
-- Counted per network and matcher; a tie that includes the layer itself is no violation. A layer is judged when its
-- match with itself has a score; num_missing counts the scores that are missing so far. violations lists the layers,
-- each with the source that is preferred to it.
-- param sweep = ''  one sweep; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, model, matcher, num_layers, num_judged, num_violations, num_missing, violations, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
planned as (
    select sweep, source_model as model, matcher, params, count(distinct target_layer) as num_layers
    from cells
    where source_model = target_model and $sweep in ('', sweep)
    group by all
),
judged as (
    select
        sweep, target_model as model, matcher, params, samples, target_layer, target_index,
        max(similarity) as best,
        max(similarity) filter (where source_layer = target_layer) as own,
        arg_max(source_layer, (similarity, -source_index)) as best_layer,
        count(*) as num_scores
    from kept
    where source_model = target_model
    group by all
),
counted as (
    select
        sweep, model, matcher, params, samples,
        count(own) as num_judged,
        count(*) filter (where best - own > $tolerance) as num_violations,
        sum(num_scores)::bigint as num_scores,
        list(target_layer || ' <- ' || best_layer order by target_index)
            filter (where best - own > $tolerance) as violations
    from judged
    group by all
)
select
    sweep, model, matcher, num_layers, coalesce(num_judged, 0) as num_judged,
    coalesce(num_violations, 0) as num_violations, num_layers * num_layers - coalesce(num_scores, 0) as num_missing,
    coalesce(violations, []) as violations, params, samples
from planned
left join counted using (sweep, model, matcher, params)
order by sweep, model, matcher, params, samples
