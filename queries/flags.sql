-- Which cells carry a warning, and of what kind?
-- underdetermined: too few rows for the map; saturated: the index is 1 whatever the data; subsampled: only some
-- positions of the source were read; undefined: there is no value; diverged: the training of the map ended no better
-- than a constant prediction; untrained: one of the networks has random weights. metrics lists those that carry the
-- flag.
-- param sweep = ''  one sweep; '' is all of them
-- param flag = ''  one flag; '' is all of them
-- columns: sweep, flag, matcher, source_model, source_layer, target_model, target_layer, seed, metrics, num_rows
-- columns: alignment, cell_id
with flagged as (
    select *, unnest(flags) as flag
    from results
    where $sweep in ('', sweep)
)
select
    sweep, flag, matcher, source_model, source_layer, target_model, target_layer, seed,
    list(metric order by metric) as metrics, max(num_rows) as num_rows, max(alignment) as alignment, cell_id
from flagged
where $flag in ('', flag)
group by
    sweep, flag, matcher, source_model, source_layer, source_index, target_model, target_layer, target_index, seed,
    cell_id
order by sweep, flag, matcher, source_model, target_model, target_index, source_index, seed, cell_id
