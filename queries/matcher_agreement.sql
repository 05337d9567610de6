-- Do two matchers order the layer pairs alike?
-- Spearman's rank correlation of their scores over all layer pairs that both have, with signs changed so that higher is
-- more similar; ties (to nine digits) share their mean rank. NULL where one of them gives every pair the same score.
-- param sweep = ''  one sweep; '' is all of them
-- param pairs = 'all'  all layer pairs, or only those 'within' one network or 'across' two
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, first_matcher, second_matcher, spearman, num_layer_pairs, first_metric, second_metric
-- columns: first_params, second_params, first_samples, second_samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
paired as (
    select
        sweep, a.matcher as first_matcher, b.matcher as second_matcher, a.metric as first_metric,
        b.metric as second_metric, a.params as first_params, b.params as second_params, a.samples as first_samples,
        b.samples as second_samples, round(a.similarity, 9) as x, round(b.similarity, 9) as y,
        (sweep, a.matcher, a.params, a.samples, b.matcher, b.params, b.samples) as variants
    from kept as a
    join kept as b using (sweep, source_model, source_layer, target_model, target_layer)
    where
        $sweep in ('', sweep)
        and (a.matcher, a.params, a.samples) < (b.matcher, b.params, b.samples)
        and ($pairs = 'all' or ($pairs = 'within') = (source_model = target_model))
),
ranked as (
    select
        *,
        rank() over (partition by variants order by x) + (count(*) over (partition by variants, x) - 1) / 2 as x_rank,
        rank() over (partition by variants order by y) + (count(*) over (partition by variants, y) - 1) / 2 as y_rank
    from paired
),
correlated as (
    select
        sweep, first_matcher, second_matcher, corr(x_rank, y_rank) as spearman, count(*) as num_layer_pairs,
        first_metric, second_metric, first_params, second_params, first_samples, second_samples
    from ranked
    group by all
)
select * replace (if(isnan(spearman), null, round(spearman, 9)) as spearman)
from correlated
order by sweep, first_matcher, second_matcher, first_params, second_params, first_samples, second_samples
