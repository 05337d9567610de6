-- Which source layer matches each target layer best, under each matcher?
-- Best is the highest accuracy for trained stitchers, the lowest residual for least-squares ones, and by its own
-- direction for an index; seeds are averaged. If num_tied layers share the best score, the target layer itself is
-- named if it is one of them. accuracy is the stitched network's, where there is one. Untrained twins come last; their
-- verdict is NULL.
-- The rest is from the view answers: margin is how much better the best is than the next, whatever the direction,
-- candidates are the layers that are as good at 95 %, p is that of shuffled images. With several seeds, the least
-- favourable counts: smallest margin, most candidates, largest p, worst verdict. NULL where seeds name other layers.
-- param sweep = ''  one sweep; '' is all of them
-- param matcher = ''  one matcher; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, source_model, target_model, matcher, target_layer, best_source_layer, verdict, score, margin
-- columns: margin_low, margin_high, candidates, p, metric, accuracy, num_tied, num_sources, params, samples
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
),
best as (
    select
        *, source_layer as best_source_layer, count(*) over tied as num_tied
    from judged
    where is_best
    window tied as (partition by sweep, source_model, target_model, target_layer, matcher, params, samples)
    qualify row_number() over (
        partition by sweep, source_model, target_model, target_layer, matcher, params, samples
        order by source_model = target_model and source_layer = target_layer desc, similarity desc, source_index
    ) = 1
),
answered as (
    from answers where not $diverged union all by name from all_answers where $diverged
),
sure as (
    select
        sweep, source_model, target_model, target_layer, matcher, params, samples, list(distinct source_layer) as layers,
        min({'margin': margin, 'low': margin_low, 'high': margin_high}) as least,
        arg_max(candidates, len(candidates)) as candidates, max(p) as p,
        arg_max(verdict, list_position(['supported', 'weak', 'not supported'], verdict)) as verdict
    from answered
    where $sweep in ('', sweep) and $matcher in ('', matcher)
    group by all
)
select
    b.sweep, b.source_model, b.target_model, b.matcher, b.target_layer, b.best_source_layer, s.verdict,
    b.score, s.least.margin as margin, s.least.low as margin_low, s.least.high as margin_high, s.candidates, s.p,
    b.metric, b.accuracy, b.num_tied, b.num_sources, b.params, b.samples
from best as b
left join sure as s
    on s.sweep = b.sweep and s.source_model = b.source_model and s.target_model = b.target_model
    and s.target_layer = b.target_layer and s.matcher = b.matcher and s.params = b.params
    and s.samples is not distinct from b.samples and s.layers = [b.best_source_layer]
order by b.sweep, suffix(b.source_model, '@untrained'), b.source_model, b.target_model, b.matcher, b.params, b.samples, b.target_index
