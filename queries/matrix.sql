-- What is the value of one metric for every layer pair, ready to be made a matrix?
-- By default direct matching's residual. One row per planned cell, so that missing ones show: value is NULL there, and
-- status says why. A matcher with several seeds or parameters has several rows per layer pair.
-- param sweep = ''  one sweep; '' is all of them
-- param matcher = 'direct'  a matcher
-- param metric = 'residual'  one of its metrics
-- columns: sweep, source_model, target_model, source_index, target_index, source_layer, target_layer, params, seed
-- columns: value, status
select
    c.sweep, c.source_model, c.target_model, c.source_index, c.target_index, c.source_layer, c.target_layer, c.params,
    c.seed, m.value, c.status
from cells as c
left join measurements as m on m.cell_id = c.cell_id and m.metric = $metric
where c.matcher = $matcher and $sweep in ('', c.sweep)
order by c.sweep, c.source_model, c.target_model, c.params, c.seed, c.source_index, c.target_index
