-- Are stitched representations like those that the target itself produces?
-- Cells that were scored, by matcher, detector and relation of the two layers: self (one layer with itself), within
-- (two layers of one network), corresponding (the same layer of two networks of one architecture, both trained or both
-- not), across (any others). A detector's AUROC is 0.5 where stitched and own rows cannot be distinguished: in is an
-- AUROC within tolerance of 0.5, left one above (out of the distribution), collapsed one below (nearer to the centre
-- than the target's own rows, as shrunken rows are). num_cells - num_scored have no AUROC. Accuracies are those of the
-- stitched networks. Untrained twins are controls and not counted.
-- param sweep = ''  one sweep; '' is all of them
-- param tolerance = 0.1  distance from 0.5 up to which rows are in the distribution
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, detector, relation, num_cells, num_scored, num_in, num_left, num_collapsed, mean_auroc
-- columns: mean_fpr95, mean_accuracy, params, samples
with measured as (
    select
        sweep, source_model, source_layer, target_model, target_layer, matcher, params, seed, cell_id,
        max(num_fit) as samples,
        max(value) filter (where metric = 'accuracy') as accuracy,
        max(value) filter (where metric = 'ood_mahalanobis_auroc') as mahalanobis_auroc,
        max(value) filter (where metric = 'ood_mahalanobis_fpr95') as mahalanobis_fpr95,
        bool_or(metric = 'ood_mahalanobis_auroc') as has_mahalanobis,
        max(value) filter (where metric = 'ood_energy_auroc') as energy_auroc,
        max(value) filter (where metric = 'ood_energy_fpr95') as energy_fpr95,
        bool_or(metric = 'ood_energy_auroc') as has_energy
    from (select * replace (if(isnan(value), null, value) as value) from results)
    where
        $sweep in ('', sweep) and ($diverged or not list_contains(flags, 'diverged'))
        and not suffix(source_model, '@untrained')
        and (metric = 'accuracy' or metric in (
            'ood_mahalanobis_auroc', 'ood_mahalanobis_fpr95', 'ood_energy_auroc', 'ood_energy_fpr95'
        ))
    group by all
),
scored as (
    select *, 'mahalanobis' as detector, mahalanobis_auroc as auroc, mahalanobis_fpr95 as fpr95
    from measured
    where has_mahalanobis
    union all
    select *, 'energy' as detector, energy_auroc as auroc, energy_fpr95 as fpr95
    from measured
    where has_energy
),
related as (
    select
        s.*,
        case
            when source_model = target_model and source_layer = target_layer then 'self'
            when source_model = target_model then 'within'
            when
                f.architecture = g.architecture and f.args = g.args and source_layer = target_layer
                and f.is_untrained is not distinct from g.is_untrained
                then 'corresponding'
            else 'across'
        end as relation
    from scored as s
    join models as f on f.sweep = s.sweep and f.model = s.source_model
    join models as g on g.sweep = s.sweep and g.model = s.target_model
)
select
    sweep, matcher, detector, relation,
    count(*) as num_cells,
    count(auroc) as num_scored,
    count(*) filter (where abs(auroc - 0.5) <= $tolerance) as num_in,
    count(*) filter (where auroc - 0.5 > $tolerance) as num_left,
    count(*) filter (where 0.5 - auroc > $tolerance) as num_collapsed,
    avg(auroc) as mean_auroc, avg(fpr95) as mean_fpr95, avg(accuracy) as mean_accuracy, params, samples
from related
group by sweep, matcher, detector, relation, params, samples
order by
    sweep, matcher, params, samples, detector desc,
    list_position(['self', 'within', 'corresponding', 'across'], relation)
