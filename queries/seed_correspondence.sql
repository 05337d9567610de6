-- Between two networks of one architecture, is the corresponding layer the best source?
-- Counted per ordered pair of networks (other seeds, other training; not an untrained one with one that is not) and
-- matcher; a tie that includes the corresponding layer is no violation. violations says which layers, each with the
-- source preferred to it.
-- param sweep = ''  one sweep; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, source_model, target_model, matcher, num_judged, num_violations, violations, params, samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
judged as (
    select
        s.sweep, s.source_model, s.target_model, s.matcher, s.params, s.samples, s.target_layer, s.target_index,
        max(s.similarity) as best,
        max(s.similarity) filter (where s.source_layer = s.target_layer) as own,
        arg_max(s.source_layer, (s.similarity, -s.source_index)) as best_layer
    from kept as s
    join models as f on f.sweep = s.sweep and f.model = s.source_model
    join models as g on g.sweep = s.sweep and g.model = s.target_model
    where
        $sweep in ('', s.sweep) and f.model <> g.model and f.architecture = g.architecture and f.args = g.args
        and f.is_untrained is not distinct from g.is_untrained
    group by all
)
select
    sweep, source_model, target_model, matcher,
    count(own) as num_judged,
    count(*) filter (where best - own > $tolerance) as num_violations,
    coalesce(
        list(target_layer || ' <- ' || best_layer order by target_index) filter (where best - own > $tolerance), []
    ) as violations,
    params, samples
from judged
group by sweep, source_model, target_model, matcher, params, samples
order by sweep, source_model, target_model, matcher, params, samples
