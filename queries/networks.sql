-- Which networks took part, and how good are they by themselves?
-- param sweep = ''  one sweep; '' is all of them
-- columns: sweep, model, architecture, accuracy, loss, num_eval, num_layers, num_cuts, num_parameters, num_classes
-- columns: weights_digest, head, is_untrained, chance, is_at_chance, problem, remarks
select
    m.sweep, m.model, m.architecture, m.accuracy, m.loss, m.num_eval, count(l.layer) as num_layers, m.num_cuts,
    m.num_parameters, m.num_classes, m.weights_digest, m.head, m.is_untrained, m.chance, m.is_at_chance, m.problem,
    m.remarks
from models as m
left join layers as l on l.sweep = m.sweep and l.model = m.model
where $sweep in ('', m.sweep)
group by all
order by m.sweep, m.model
