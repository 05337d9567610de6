-- Which source layer matches each target layer best, under each matcher?
-- Best is the highest accuracy for trained stitchers, the lowest residual for least-squares ones, and by its own
-- direction for an index; seeds are averaged. Of num_tied layers that share the best score, the target layer itself
-- is named if it is among them. accuracy is the stitched network's, where there is one.
-- param sweep = ''  one sweep; '' is all of them
-- param matcher = ''  one matcher; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, source_model, target_model, matcher, target_layer, best_source_layer, metric, score, accuracy
-- columns: num_tied, num_sources, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
judged as (
    select
        *,
        similarity >= max(similarity) over sources - $tolerance as is_best,
        count(*) over sources as num_sources
    from kept
    where $sweep in ('', sweep) and $matcher in ('', matcher)
    window sources as (partition by sweep, source_model, target_model, target_layer, matcher, params, samples)
)
select
    sweep, source_model, target_model, matcher, target_layer, source_layer as best_source_layer, metric, score,
    accuracy, count(*) over tied as num_tied, num_sources, params, samples
from judged
where is_best
window tied as (partition by sweep, source_model, target_model, target_layer, matcher, params, samples)
qualify row_number() over (
    partition by sweep, source_model, target_model, target_layer, matcher, params, samples
    order by source_model = target_model and source_layer = target_layer desc, similarity desc, source_index
) = 1
order by sweep, source_model, target_model, matcher, params, samples, target_index
