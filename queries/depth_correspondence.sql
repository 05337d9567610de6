-- Between two networks, does a layer find its best source at the same relative depth?
-- mean_depth_gap is the mean of the best source's depth minus the target's, mean_distance the mean of its absolute
-- value, both as shares of a network's depth. rank_correlation is Spearman's, over target layers, of a target's depth
-- with its best source's; NULL where all have the same depth. If sources tie, the nearest in depth counts.
-- chance_distance is the mean distance if every source layer were as likely. best_score is the mean of the best scores.
-- param sweep = ''  one sweep; '' is all of them
-- param matcher = ''  one matcher; '' is all of them
-- param within = false  list a network with itself too
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, source_model, target_model, mean_depth_gap, mean_distance, chance_distance, rank_correlation
-- columns: metric, best_score, num_target_layers, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
targets as (
    select
        sweep, matcher, params, samples, metric, source_model, target_model, target_layer, target_depth,
        arg_max(source_depth, (similarity, -abs(source_depth - target_depth), -source_depth)) as best_depth,
        arg_max(score, similarity) as score,
        avg(abs(source_depth - target_depth)) as chance
    from kept
    where
        $sweep in ('', sweep) and $matcher in ('', matcher)
        and ($within or source_model <> target_model)
    group by all
),
ranked as (
    select
        *,
        rank() over (of_pair order by target_depth) as target_rank,
        rank() over (of_pair order by best_depth) + (count(*) over (of_depth) - 1) / 2 as best_rank
    from targets
    window
        of_pair as (partition by sweep, matcher, params, samples, source_model, target_model),
        of_depth as (partition by sweep, matcher, params, samples, source_model, target_model, best_depth)
)
select
    sweep, matcher, source_model, target_model,
    avg(best_depth - target_depth) as mean_depth_gap,
    avg(abs(best_depth - target_depth)) as mean_distance,
    avg(chance) as chance_distance,
    if(count(distinct best_rank) > 1, corr(target_rank, best_rank), null) as rank_correlation,
    any_value(metric) as metric, avg(score) as best_score, count(*) as num_target_layers, params, samples
from ranked
group by sweep, matcher, params, samples, source_model, target_model
order by sweep, matcher, params, samples, mean_distance, source_model, target_model
