-- Does a matcher find layers of two seeds more alike, the nearer the accuracies of their linear probes?
-- One row for a layer pair of two networks that differ in their seed (Ding, Denain & Steinhardt 2021). accuracy_gap is
-- the absolute difference of these accuracies; dissimilarity is the score with its sign changed where needed, so that
-- higher is less similar. A matcher that is specific to what matters orders dissimilarities as the gaps:
-- `stitchgrid report` adds Spearman's and Kendall's rank correlation. Only where the sweep has probes; sources of
-- reduced rank are left out.
-- param sweep = ''  one sweep; '' is all of them
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, metric, source_model, source_layer, target_model, target_layer, score, dissimilarity
-- columns: accuracy_gap, source_accuracy, target_accuracy, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
)
select
    s.sweep, matcher, metric, source_model, source_layer, target_model, target_layer, score,
    -similarity as dissimilarity, abs(p.accuracy - q.accuracy) as accuracy_gap, p.accuracy as source_accuracy,
    q.accuracy as target_accuracy, params, samples
from kept as s
join models as f on f.sweep = s.sweep and f.model = s.source_model
join models as g on g.sweep = s.sweep and g.model = s.target_model
join probes as p on p.sweep = s.sweep and p.model = s.source_model and p.layer = s.source_layer
join probes as q on q.sweep = s.sweep and q.model = s.target_model and q.layer = s.target_layer
where
    f.model <> g.model and f.entry = g.entry and f.step is not distinct from g.step and p.rank is null and q.rank is null and p.c = q.c
    and p.accuracy is not null and q.accuracy is not null and $sweep in ('', s.sweep)
    and try_cast(params ->> 'rank' as bigint) is null
order by s.sweep, matcher, params, samples, source_model, target_model, target_index, source_index
