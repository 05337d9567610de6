-- Does a matcher see it when a layer loses the directions that carry the labels?
-- One row for a layer's approximation of lower rank, matched with the whole layer (Ding, Denain & Steinhardt 2021, as
-- Balogh & Jelasity 2025 use it). accuracy_loss is what a linear probe of the layer loses by the same approximation;
-- dissimilarity is the score with its sign changed where needed, so that higher is less similar. A sensitive matcher
-- orders dissimilarities as the losses: `stitchgrid report` adds Spearman's and Kendall's rank correlation. Only ranks
-- below the layer's width, where the sweep has probes of the same rank; params are the matcher's, without its rank.
-- param sweep = ''  one sweep; '' is all of them
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, metric, model, layer, rank, width, score, dissimilarity, accuracy_loss, full_accuracy
-- columns: params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
reduced as (
    select
        sweep, matcher, metric, target_model as model, target_layer as layer, target_index as layer_index, score,
        -similarity as dissimilarity, try_cast(params ->> 'rank' as bigint) as rank,
        json_merge_patch(params, '{"rank": null}')::varchar as params, samples
    from kept
    where
        source_model = target_model and source_layer = target_layer and $sweep in ('', sweep)
        and try_cast(params ->> 'rank' as bigint) is not null
)
select
    sweep, matcher, metric, r.model, r.layer, r.rank, l.width, score, dissimilarity,
    whole.accuracy - low.accuracy as accuracy_loss, whole.accuracy as full_accuracy, params, samples
from reduced as r
join layers as l using (sweep, model, layer)
join probes as whole using (sweep, model, layer)
join probes as low using (sweep, model, layer)
where
    whole.rank is null and low.rank = r.rank and r.rank < l.width and low.c = whole.c
    and whole.accuracy is not null and low.accuracy is not null
order by sweep, matcher, params, samples, r.model, r.layer_index, r.rank desc
