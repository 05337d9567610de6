-- Where did the time go?
-- Seconds of work per matcher and device; work that cells have in common is divided among them. A cell that two sweeps
-- share was computed once and counts in each.
-- param sweep = ''  one sweep; '' is all of them
-- columns: sweep, matcher, device, num_cells, total_seconds, seconds_per_cell, percent
with costs as (
    select sweep, matcher, device, cell_id, max(seconds) as seconds
    from results
    where $sweep in ('', sweep)
    group by all
)
select
    sweep, matcher, device, count(*) as num_cells, sum(seconds) as total_seconds, avg(seconds) as seconds_per_cell,
    round(100 * sum(seconds) / sum(sum(seconds)) over (partition by sweep), 1) as percent
from costs
group by sweep, matcher, device
order by sweep, total_seconds desc nulls last, matcher, device
