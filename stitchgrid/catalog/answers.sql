-- The view `answers`: for each target layer, source network, matcher and seed, the best source layer and its evidence.
-- `verdict_rules.py` fills in the words after a dollar, `results` and `cells` as tables or subqueries.
-- `found` has the rows of all metrics that the checks use.
-- `placed` has the row of the score of every cell; a twin has the same `place` as its network.
-- A difference is positive where the best source is better.
with twins as (
    select t.sweep, t.model, o.model as original
    from models as t
    join models as o on o.sweep = t.sweep and t.model = o.model || '$twin'
    where t.is_untrained
),
found as materialized (
    select
        r.*, m.score_metric, m.family, m.trained as is_trained, if(m.higher_is_similar, 1, -1) as sign,
        $samples as samples
    from $results as r
    join matchers as m using (matcher)
    where
        value is not null and not isnan(value)
        and (
            metric = m.score_metric
            or metric in ('r2', 'variance_ratio', 'ood_mahalanobis_auroc', 'ood_energy_auroc')
        )
),
watched as (
    select
        sweep, cell_id,
        max(value) filter (where metric = 'r2') as r2,
        max(value) filter (where metric = 'variance_ratio') as variance_ratio,
        max(value) filter (where metric = 'ood_mahalanobis_auroc') as mahalanobis,
        max(value) filter (where metric = 'ood_energy_auroc') as energy,
        list_sort(list_distinct(flatten(list(list_intersect(flags, [$unsound]))))) as warnings
    from found
    group by sweep, cell_id
),
placed as materialized (
    select
        s.*, s.sign * s.value as similarity, t.original is not null as is_twin,
        coalesce(t.original, s.source_model) as network, coalesce(s.params ->> 'rank', '') as source_rank,
        dense_rank() over (
            order by
                s.sweep, s.target_model, s.target_layer, coalesce(t.original, s.source_model), s.matcher, s.params,
                s.samples, s.seed
        ) as place
    from found as s
    left join twins as t on t.sweep = s.sweep and t.model = s.source_model
    where s.metric = s.score_metric and $condition
),
tied as (
    select
        *,
        similarity >= max(similarity) over (partition by place, is_twin) - $tie
        and source_model = target_model and source_layer = target_layer as wins_tie
    from placed
),
ranked as materialized (
    select
        *,
        row_number() over (
            partition by place, is_twin order by wins_tie desc, similarity desc, source_index, source_layer
        ) as position,
        count(*) over (partition by place, is_twin) as num_sources
    from tied
),
-- Why a planned cell may have no place among the source layers. Only values say on how many samples a cell was computed.
planned as (
    select
        c.sweep, c.target_model, c.target_layer, coalesce(t.original, c.source_model) as network,
        t.original is not null as is_twin, c.matcher, c.params, c.seed, c.source_layer, f.samples,
        case
            when f.has_diverged then 'diverged'
            when f.cell_id is null and c.status in ('failed', 'quarantined') then 'failed'
            when f.cell_id is null and c.status <> 'done' then 'pending'
        end as reason
    from $cells as c
    left join twins as t on t.sweep = c.sweep and t.model = c.source_model
    left join (
        select
            r.sweep, r.cell_id, list_contains(r.flags, 'diverged') as has_diverged,
            $samples as samples
        from $results as r
        join matchers as m on m.matcher = r.matcher and m.score_metric = r.metric
    ) as f on f.sweep = c.sweep and f.cell_id = c.cell_id
),
left_out as (
    select
        p.place,
        count(distinct q.source_layer) filter (where not q.is_twin and reason = 'diverged') as num_diverged,
        count(distinct q.source_layer) filter (where not q.is_twin and reason = 'failed') as num_failed,
        count(distinct q.source_layer) filter (where not q.is_twin and reason = 'pending') as num_pending,
        count(distinct q.source_layer) filter (where q.is_twin and reason = 'diverged') as num_twin_diverged,
        count(distinct q.source_layer) filter (where q.is_twin and reason = 'failed') as num_twin_failed,
        count(distinct q.source_layer) filter (where q.is_twin and reason = 'pending') as num_twin_pending
    from (
        select distinct place, sweep, target_model, target_layer, network, matcher, params, samples, seed from placed
    ) as p
    join planned as q
        on q.sweep = p.sweep and q.target_model = p.target_model and q.target_layer = p.target_layer
        and q.network = p.network and q.matcher = p.matcher and q.params = p.params
        and q.seed is not distinct from p.seed
    anti join ranked as r on r.place = p.place and r.is_twin = q.is_twin and r.source_layer = q.source_layer
    where q.reason is not null and coalesce(q.samples = p.samples, q.samples is null)
    group by p.place
),
best as materialized (
    select * from ranked where position = 1 and not is_twin
),
differences as (
    select
        r.place, r.is_twin, r.position, r.source_layer, r.source_index, r.value,
        b.similarity - r.similarity as difference,
        if(
            len(b.replicates) = len(r.replicates) and len(r.replicates) >= 2
            and list_count(b.replicates) = len(b.replicates) and list_count(r.replicates) = len(r.replicates),
            list_transform(list_zip(b.replicates, r.replicates), lambda x: x[1]::double - x[2]::double),
            null
        ) as replicates
    from ranked as r
    join best as b on b.place = r.place
    where (r.is_twin and r.position = 1) or (not r.is_twin and r.position > 1)
),
deviations as (
    select
        * exclude (replicates), len(replicates) as num,
        list_sum(list_transform(replicates, lambda x: pow(x - mean, 2))) as squares
    from (select *, list_avg(replicates) as mean from differences)
),
widths as (
    select d.*, q.quantile * sqrt((d.num - 1) / d.num * d.squares) as width
    from deviations as d
    left join _quantiles as q on q.degrees = d.num - 1
),
intervals as (
    select
        *,
        if(isfinite(width) and isfinite(difference), difference - width, null) as low,
        if(isfinite(width) and isfinite(difference), difference + width, null) as high
    from widths
),
rivals as (
    select
        place,
        count(*) filter (where not is_twin) as num_rivals,
        count(low) filter (where not is_twin) as num_known,
        list({'index': source_index, 'layer': source_layer}) filter (where not is_twin and low <= $tie) as as_good,
        max(source_layer) filter (where not is_twin and position = 2) as runner_up,
        max(difference) filter (where not is_twin and position = 2 and isfinite(difference)) as margin,
        max(low) filter (where not is_twin and position = 2) as margin_low,
        max(high) filter (where not is_twin and position = 2) as margin_high,
        max(source_layer) filter (where is_twin) as twin_layer,
        max(value) filter (where is_twin) as untrained_value,
        max(difference) filter (where is_twin) as twin_difference,
        max(low) filter (where is_twin) as twin_low,
        max(high) filter (where is_twin) as twin_high
    from intervals
    group by place
),
-- The best of each draw: p is never the smallest of the p of single layers.
drawn as (
    select place, num_sources, sign, unnest("null") as value, generate_subscripts("null", 1) as draw
    from ranked
    where not is_twin
),
draws as (
    select
        place, draw, max(sign * value) as most,
        count(value) = any_value(num_sources) and coalesce(bool_and(isfinite(value)), false) as is_whole
    from drawn
    group by place, draw
),
shuffled as (
    select
        b.place, count(*) as num_draws,
        count(*) filter (where d.most >= coalesce(try_cast(b.similarity as float), b.similarity)) as num_reaching,
        if(bool_and(d.is_whole), (1 + num_reaching) / (1 + num_draws), null) as p
    from best as b
    join draws as d on d.place = b.place
    group by b.place
),
agreement as (
    select
        b.place, count(*) as num_judges,
        count(*) filter (where abs(j.source_index - b.source_index) <= $near) as num_agreeing,
        list_sort(list_distinct(list(j.matcher || ' has ' || j.source_layer) filter (
            where abs(j.source_index - b.source_index) > $near
        ))) as dissent
    from best as b
    join best as j
        on j.sweep = b.sweep and j.target_model = b.target_model and j.target_layer = b.target_layer
        and j.network = b.network and j.source_rank = b.source_rank and j.matcher <> b.matcher and not j.is_trained
    group by b.place
),
direct as (
    select
        sweep, source_model, source_layer, target_model, target_layer, source_rank, min(value) as direct_residual
    from placed
    where matcher = 'direct'
    group by all
),
networks as (
    select
        *,
        not (coalesce(head in ('regression', 'embedding'), false) or (accuracy is null and num_eval is not null))
            as has_classes
    from models
),
known as (
    select
        b.*, n.* exclude (place), s.* exclude (place), a.* exclude (place),
        w.r2, w.variance_ratio, w.mahalanobis, w.energy, w.warnings, d.direct_residual,
        coalesce(o.num_diverged, 0) as num_diverged, coalesce(o.num_failed, 0) as num_failed,
        coalesce(o.num_pending, 0) as num_pending,
        concat_ws(
            ', ', nullif(num_diverged, 0) || ' diverged', nullif(num_failed, 0) || ' failed',
            nullif(num_pending, 0) || ' not computed yet'
        ) as omitted,
        concat_ws(
            ', ', nullif(o.num_twin_diverged, 0) || ' diverged', nullif(o.num_twin_failed, 0) || ' failed',
            nullif(o.num_twin_pending, 0) || ' not computed yet'
        ) as twin_omitted,
        exists (from twins as t where t.sweep = b.sweep and t.original = b.source_model) as has_twin,
        {'name': f.model, 'is_untrained': f.is_untrained, 'has_classes': f.has_classes, 'accuracy': f.accuracy,
         'chance': f.chance, 'is_at_chance': f.is_at_chance} as f,
        {'name': g.model, 'is_untrained': g.is_untrained, 'has_classes': g.has_classes, 'accuracy': g.accuracy,
         'chance': g.chance, 'is_at_chance': g.is_at_chance} as g,
        if(
            if(
                n.num_rivals > 0, n.num_known = n.num_rivals,
                len(b.replicates) >= 2 and list_count(list_filter(b.replicates, lambda x: isfinite(x)))
                = len(b.replicates)
            ),
            list_sort(list_append(coalesce(n.as_good, []), {'index': b.source_index, 'layer': b.source_layer})),
            null
        ) as near_best
    from best as b
    join watched as w on w.sweep = b.sweep and w.cell_id = b.cell_id
    left join rivals as n on n.place = b.place
    left join left_out as o on o.place = b.place
    left join shuffled as s on s.place = b.place
    left join agreement as a on a.place = b.place
    left join direct as d
        on d.sweep = b.sweep and d.source_model = b.source_model and d.source_layer = b.source_layer
        and d.target_model = b.target_model and d.target_layer = b.target_layer and d.source_rank = b.source_rank
    left join networks as f on f.sweep = b.sweep and f.model = b.source_model
    left join networks as g on g.sweep = b.sweep and g.model = b.target_model
),
judged as (
    select
        *,
        list_transform(near_best, lambda x: x.layer) as candidates,
        not (f.is_untrained or g.is_untrained or list_contains(flags, 'untrained')) as trained,
        not (coalesce(f.has_classes, true) or coalesce(g.has_classes, true)) as is_classless,
        if(
            is_classless, null,
            if(coalesce(f.has_classes, true), not f.is_at_chance, true)
            and if(coalesce(g.has_classes, true), not g.is_at_chance, true)
        ) as above_chance,
        list_bool_and(list_transform(near_best, lambda x: abs(x.index - source_index) <= $near)) as localised,
        if(twin_difference <= $tie, false, twin_low > $tie) as above_untrained,
        p < $significant as above_shuffled,
        2 * num_agreeing >= num_judges as others_agree,
        greatest(mahalanobis, energy) <= $most_auroc as in_distribution,
        variance_ratio >= $least_variance_ratio as not_collapsed,
        if(is_trained, direct_residual < $most_residual, null) as undenied,
        len(warnings) = 0 and omitted = '' as sound
    from known
),
told as (
    select
        *,
        case
            when trained then 'Both networks are trained.'
            when not trained
                then concat_ws(
                    ' and ', if(f.is_untrained, f.name, null), if(g.is_untrained and g.name <> f.name, g.name, null),
                    if(f.is_untrained or g.is_untrained, null, 'One of the networks')
                ) || ': random weights.'
            else 'Not known: the store does not say whether the networks are trained.'
        end as of_trained,
        case
            when is_classless then 'Does not apply: neither network has classes of these images.'
            when above_chance is null then 'Not computed: the store does not hold accuracies and chance levels.'
            else array_to_string(
                list_transform(
                    list_filter(if(f.name = g.name, [f], [f, g]), lambda x: x.has_classes),
                    lambda x: x.name || ' has an accuracy of ' || coalesce(format('{:.3g}', x.accuracy), 'unknown size')
                        || coalesce(' (chance ' || format('{:.3g}', x.chance) || ')', '')
                        || if(x.is_at_chance, ', which may be chance', '')
                ), ', '
            ) || '.'
        end as of_above_chance,
        case
            when localised and len(candidates) = 1 then 'No other layer is as good at 95 %.'
            when localised
                then 'As good at 95 %: ' || array_to_string(candidates, ', ') || ', all within one block of the best.'
            when not localised
                then 'As good at 95 %, some further than one block from the best: '
                    || array_to_string(candidates, ', ') || '.'
            else 'Not computed: it needs the interval of the difference to every other source layer.'
        end as of_localised,
        case
            when untrained_value is null and twin_omitted <> ''
                then 'Not computed: of the cells of the untrained twin, ' || twin_omitted || '.'
            when untrained_value is null and has_twin then 'Not computed: no cell of the untrained twin has a value.'
            when untrained_value is null then 'Not computed: there is no untrained twin.'
            else 'The untrained twin reaches ' || format('{:.3g}', untrained_value) || ' (' || twin_layer
                || '), a difference of ' || format('{:.3g}', twin_difference) || coalesce(
                    ', 95 % interval ' || format('{:.3g}', twin_low) || ' to ' || format('{:.3g}', twin_high),
                    ' without an interval'
                ) || if(twin_omitted = '', '', '; of its other source layers, ' || twin_omitted) || '.'
        end as of_above_untrained,
        case
            when is_trained then 'Not computed: maps are not trained again on shuffled images.'
            when p is not null
                then 'With shuffled images the best layer is as similar in ' || num_reaching || ' of ' || num_draws
                    || ' draws: p = ' || format('{:.3g}', p) || '.'
                    || if(num_draws < $fewest_draws, ' A p below $significant needs $fewest_draws draws.', '')
            when num_draws is not null then 'Not computed: draws of some source layers are missing or undefined.'
            else 'Not computed: no images were shuffled.'
        end as of_above_shuffled,
        case
            when num_judges is null then 'Not computed: there is no other closed-form stitcher or index.'
            else num_agreeing || ' of ' || num_judges || ' other matchers have their best source within one block'
                || coalesce('; ' || array_to_string(dissent, ', '), '') || '.'
        end as of_others_agree,
        case
            when in_distribution is not null
                then 'A detector separates stitched rows from the target''s own rows with an AUROC of ' || concat_ws(
                    ', ', format('{:.3g}', mahalanobis) || ' (mahalanobis)', format('{:.3g}', energy) || ' (energy)'
                ) || '; at most $most_auroc is wanted.' || if(
                    least(mahalanobis, energy) < $shrunken_auroc,
                    ' Below $shrunken_auroc the stitched rows are shrunken: least squares shrinks what it cannot match.', ''
                )
            when family = 'index' then 'Does not apply: an index has no stitched network.'
            else 'Not computed: no detector looked at the stitched rows.'
        end as of_in_distribution,
        case
            when not_collapsed is not null
                then 'Stitched rows have ' || format('{:.3g}', variance_ratio)
                    || ' of the variance of the target''s own; at least $least_variance_ratio is wanted.'
            when family = 'index' then 'Does not apply: an index has no stitched network.'
            else 'Not computed: there is no variance_ratio.'
        end as of_not_collapsed,
        case
            when not is_trained then 'Does not apply: only trained matchers are checked by direct matching.'
            when undenied is null then 'Not computed: there is no direct matching of the same layers.'
            else 'Direct matching leaves a residual of ' || format('{:.3g}', direct_residual)
                || ' between the same layers; below $most_residual is wanted.'
        end as of_undenied,
        concat_ws(
            ' ', if(sound, 'Nothing is flagged.', null),
            if(len(warnings) > 0, 'Flagged: ' || array_to_string(warnings, ', ') || '.', null),
            if(
                omitted = '', null,
                'Best of ' || num_sources || ' of ' || (num_sources + num_diverged + num_failed + num_pending)
                    || ' source layers: of the others, ' || omitted || '.'
            )
        ) as of_sound
    from judged
)
select
    sweep, target_model, target_layer, target_index, source_model, source_layer, source_index, matcher, params, samples,
    seed, metric, value, low, high, runner_up, margin, margin_low, margin_high, candidates, p, untrained_value,
    case
        when not trained or not above_chance or not above_untrained or not above_shuffled then 'not supported'
        when
            trained and (above_chance or is_classless) and above_untrained and above_shuffled and localised
            and coalesce(others_agree, true) and coalesce(in_distribution, true) and coalesce(not_collapsed, true)
            and coalesce(undenied, true) and sound
            then 'supported'
        else 'weak'
    end as verdict,
    [$checks] as checks,
    num_sources, higher_is_similar, num_diverged, num_failed, num_pending, has_twin,
    r2
from told
