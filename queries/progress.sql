-- How far is each sweep, in all and per matcher?
-- running counts the cells without result of the shards that a launch which is alive has given to its workers.
-- param sweep = ''  one sweep; '' is all of them
-- columns: sweep, matcher, num_cells, done, failed, quarantined, running, pending, percent_done
select
    sweep, coalesce(matcher, '(all)') as matcher, count(*) as num_cells,
    count(*) filter (where status = 'done') as done,
    count(*) filter (where status = 'failed') as failed,
    count(*) filter (where status = 'quarantined') as quarantined,
    count(*) filter (where status = 'running') as running,
    count(*) filter (where status = 'pending') as pending,
    round(100 * count(*) filter (where status = 'done') / count(*), 1) as percent_done
from cells
where $sweep in ('', sweep)
group by grouping sets ((sweep), (sweep, matcher))
order by sweep, cells.matcher nulls first
