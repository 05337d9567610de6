-- What failed, and why?
-- Cells that have an error and no value stored after it, by reason; attempts is the highest number of times that a
-- worker began a cell's shard. example_* is one of the cells.
-- param sweep = ''  one sweep; '' is all of them
-- columns: sweep, status, error, num_cells, matchers, attempts, example_source, example_target, example_cell_id
select
    sweep, status, error, count(*) as num_cells, list(distinct matcher order by matcher) as matchers,
    max(attempts) as attempts,
    arg_min(source_model || ' ' || source_layer, cell_id) as example_source,
    arg_min(target_model || ' ' || target_layer, cell_id) as example_target,
    min(cell_id) as example_cell_id
from cells
where status in ('failed', 'quarantined') and $sweep in ('', sweep)
group by sweep, status, error
order by sweep, num_cells desc, status, error
