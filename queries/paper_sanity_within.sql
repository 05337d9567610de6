-- Under each matcher, how often is a layer's best source within its network another layer, and which way does it lie?
-- Over all networks that were compared with themselves; diagonal_violations counts each by itself. Best is the highest
-- accuracy for trained stitchers, the lowest residual for least-squares ones, and by its own direction for an index;
-- seeds are averaged; a tie that includes the layer itself is no violation. num_later and num_earlier: the preferred
-- source lies nearer to the output, or to the input, than the layer. chance_share is the share that a random choice
-- would violate. Scores and accuracies are means over judged layers, own with the layer itself. Sources of reduced rank
-- are left out.
-- param sweep = ''  one sweep; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, metric, num_networks, num_judged, num_violations, violation_share, chance_share, num_later
-- columns: num_earlier, own_score, best_score, own_accuracy, best_accuracy, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
judged as (
    select
        sweep, matcher, params, samples, metric, target_model, target_index,
        max(similarity) as best,
        max(similarity) filter (where source_layer = target_layer) as own,
        arg_max(source_index, (similarity, -source_index)) as best_index,
        max(score) filter (where source_layer = target_layer) as own_score,
        arg_max(score, (similarity, -source_index)) as best_score,
        max(accuracy) filter (where source_layer = target_layer) as own_accuracy,
        arg_max(accuracy, (similarity, -source_index)) as best_accuracy,
        count(*) as num_sources
    from kept
    where
        source_model = target_model and $sweep in ('', sweep) and try_cast(params ->> 'rank' as bigint) is null
    group by sweep, matcher, params, samples, metric, target_model, target_layer, target_index
),
violated as (
    select *, best > own + $tolerance as violation
    from judged
    where own is not null
)
select
    sweep, matcher, metric,
    count(distinct target_model) as num_networks,
    count(*) as num_judged,
    count(*) filter (where violation) as num_violations,
    avg(violation::int) as violation_share,
    avg(1 - 1 / num_sources) as chance_share,
    count(*) filter (where violation and best_index > target_index) as num_later,
    count(*) filter (where violation and best_index < target_index) as num_earlier,
    avg(own_score) as own_score,
    avg(if(violation, best_score, own_score)) as best_score,
    avg(own_accuracy) as own_accuracy,
    avg(if(violation, best_accuracy, own_accuracy)) as best_accuracy,
    params, samples
from violated
group by sweep, matcher, metric, params, samples
order by sweep, matcher, params, samples
