-- How does each layer of a network match itself, and which other layer of that network matches it better?
-- own is the score of the layer with itself, best that of its best source; a tie that includes the layer itself is no
-- violation. Accuracies are those of the stitched networks. violation is NULL where the match with itself is missing.
-- param sweep = ''  one sweep; '' is all of them
-- param matcher = ''  one matcher; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, model, matcher, target_layer, metric, own_score, best_source_layer, best_score, own_accuracy
-- columns: best_accuracy, own_rank, num_sources, violation, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
ranked as (
    select *, rank() over (
        partition by sweep, source_model, target_layer, matcher, params, samples order by similarity desc
    ) as place
    from kept
    where source_model = target_model and $sweep in ('', sweep) and $matcher in ('', matcher)
),
judged as (
    select
        sweep, target_model as model, matcher, params, samples, target_layer, target_index, metric,
        arg_min(source_layer, (place, source_layer <> target_layer, source_index)) as best_source_layer,
        arg_min(score, (place, source_layer <> target_layer, source_index)) as best_score,
        arg_min(accuracy, (place, source_layer <> target_layer, source_index)) as best_accuracy,
        max(similarity) as best,
        max(similarity) filter (where source_layer = target_layer) as own,
        max(score) filter (where source_layer = target_layer) as own_score,
        max(accuracy) filter (where source_layer = target_layer) as own_accuracy,
        max(place) filter (where source_layer = target_layer) as own_rank,
        count(*) as num_sources
    from ranked
    group by all
)
select
    sweep, model, matcher, target_layer, metric, own_score,
    if(best - own <= $tolerance, target_layer, best_source_layer) as best_source_layer,
    if(best - own <= $tolerance, own_score, best_score) as best_score,
    own_accuracy,
    if(best - own <= $tolerance, own_accuracy, best_accuracy) as best_accuracy,
    own_rank, num_sources, best - own > $tolerance as violation, params, samples
from judged
order by sweep, model, matcher, params, samples, target_index
