-- Where does a trained stitch claim that two layers are alike, while direct matching and the distribution deny it?
-- A trained stitch claims similarity from relative_accuracy on (share of the target's own accuracy kept). Direct
-- denies it from residual on: direct_residual is direct matching's for the same layer pair, the lowest if there are
-- several. A detector denies it when its AUROC is further than ood from 0.5: the stitched rows have left the target's
-- distribution, or collapsed in it. misleading: claimed, and denied by all of the three that were computed, NULL when
-- none was. What was not computed is NULL. A cell whose training diverged claims nothing, nor does an untrained twin.
-- param sweep = ''  one sweep; '' is all of them
-- param claim = 0.8  relative accuracy from which a stitch claims similarity
-- param residual = 0.25  direct matching's residual from which it denies
-- param ood = 0.1  distance of the AUROC from 0.5 above which a detector denies
-- param all = false  list every trained cell that has an accuracy, misleading or not
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, source_model, source_layer, target_model, target_layer, matcher, seed, relative_accuracy, accuracy
-- columns: stitch_residual, direct_residual, ood_mahalanobis_auroc, ood_energy_auroc, denied_by_direct
-- columns: denied_by_mahalanobis, denied_by_energy, claims, misleading, params, samples
with measured as (
    select
        sweep, source_model, source_layer, source_index, target_model, target_layer, target_index, matcher, params,
        seed, cell_id,
        max(num_fit) as samples,
        max(value) filter (where metric = 'accuracy') as accuracy,
        max(value) filter (where metric = 'relative_accuracy') as relative_accuracy,
        max(value) filter (where metric = 'residual') as stitch_residual,
        max(value) filter (where metric = 'ood_mahalanobis_auroc') as ood_mahalanobis_auroc,
        max(value) filter (where metric = 'ood_energy_auroc') as ood_energy_auroc
    from results
    where
        $sweep in ('', sweep) and not isnan(value) and ($diverged or not list_contains(flags, 'diverged'))
        and metric in ('accuracy', 'relative_accuracy', 'residual', 'ood_mahalanobis_auroc', 'ood_energy_auroc')
        and not suffix(source_model, '@untrained')
    group by all
),
direct as (
    select
        sweep, source_model, source_layer, target_model, target_layer,
        coalesce(params ->> 'rank', 'full') as source_rank,
        min(stitch_residual) as direct_residual
    from measured
    where matcher = 'direct'
    group by all
),
judged as (
    select
        m.* replace (coalesce(m.relative_accuracy, m.accuracy / nullif(g.accuracy, 0)) as relative_accuracy),
        d.direct_residual,
        d.direct_residual >= $residual as denied_by_direct,
        abs(m.ood_mahalanobis_auroc - 0.5) > $ood as denied_by_mahalanobis,
        abs(m.ood_energy_auroc - 0.5) > $ood as denied_by_energy
    from measured as m
    join matchers as k on k.matcher = m.matcher and k.trained
    join models as g on g.sweep = m.sweep and g.model = m.target_model
    left join direct as d
        on d.sweep = m.sweep and d.source_model = m.source_model and d.source_layer = m.source_layer
        and d.target_model = m.target_model and d.target_layer = m.target_layer
        and d.source_rank = coalesce(m.params ->> 'rank', 'full')
),
found as (
    select
        *,
        relative_accuracy >= $claim as claims,
        case
            when relative_accuracy < $claim then false
            when coalesce(denied_by_direct, denied_by_mahalanobis, denied_by_energy) is null then null
            else coalesce(denied_by_direct, true) and coalesce(denied_by_mahalanobis, true)
                and coalesce(denied_by_energy, true)
        end as misleading
    from judged
    where relative_accuracy is not null
)
select
    sweep, source_model, source_layer, target_model, target_layer, matcher, seed, relative_accuracy, accuracy,
    stitch_residual, direct_residual, ood_mahalanobis_auroc, ood_energy_auroc, denied_by_direct, denied_by_mahalanobis,
    denied_by_energy, claims, misleading, params, samples
from found
where $all or misleading
order by
    sweep, misleading desc nulls last, direct_residual desc nulls last, source_model, target_model, target_index,
    source_index, matcher, params, samples, seed
