-- Where do two matchers disagree most about a layer pair?
-- By default task loss against direct matching. difference is the first stitched network's accuracy minus the second's;
-- a rank is the place of the source layer among all sources of that target layer under the matcher's own score
-- (1 is best). Pairs are listed by the difference of accuracy, or of ranks where a matcher has no accuracy.
-- param sweep = ''  one sweep; '' is all of them
-- param first = 'task_loss'  a matcher
-- param second = 'direct'  another one
-- param top = 20  how many layer pairs to list
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, source_model, source_layer, target_model, target_layer, difference, first_accuracy, second_accuracy
-- columns: first_residual, second_residual, first_rank, second_rank, first_params, second_params
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
ranked as (
    select
        *,
        rank() over (
            partition by sweep, source_model, target_model, target_layer, matcher, params, samples
            order by similarity desc
        ) as place
    from kept
    where $sweep in ('', sweep)
)
select
    sweep, source_model, source_layer, target_model, target_layer, a.accuracy - b.accuracy as difference,
    a.accuracy as first_accuracy, b.accuracy as second_accuracy, a.residual as first_residual,
    b.residual as second_residual, a.place as first_rank, b.place as second_rank, a.params as first_params,
    b.params as second_params
from ranked as a
join ranked as b using (sweep, source_model, source_layer, target_model, target_layer)
where a.matcher = $first and b.matcher = $second
order by
    abs(a.accuracy - b.accuracy) desc nulls last, abs(a.place - b.place) desc, sweep, source_model, target_model,
    a.target_index, a.source_index
limit $top
