-- Which pairs of networks are most alike, under each matcher?
-- mean_best averages, over the target's layers, the score of its best source layer; mean_all averages all layer pairs.
-- place 1 is the most similar pair. A network with itself is the upper control.
-- param sweep = ''  one sweep; '' is all of them
-- param within = true  list a network with itself too
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, place, source_model, target_model, metric, mean_best, mean_all, num_target_layers
-- columns: num_layer_pairs, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
targets as (
    select
        sweep, matcher, params, samples, source_model, target_model, target_layer, metric,
        max(similarity) as best,
        arg_max(score, similarity) as best_score,
        sum(score) as sum_score,
        count(*) as num_sources
    from kept
    where $sweep in ('', sweep) and ($within or source_model <> target_model)
    group by all
),
pairs as (
    select
        sweep, matcher, params, samples, source_model, target_model, metric,
        avg(best) as similarity,
        avg(best_score) as mean_best,
        sum(sum_score) / sum(num_sources) as mean_all,
        count(*) as num_target_layers,
        sum(num_sources)::bigint as num_layer_pairs
    from targets
    group by all
)
select
    sweep, matcher,
    rank() over (partition by sweep, matcher, params, samples order by round(similarity, 9) desc) as place,
    source_model, target_model, metric, mean_best, mean_all, num_target_layers, num_layer_pairs, params, samples
from pairs
order by sweep, matcher, params, samples, place, source_model, target_model
