-- Does a matcher find near layers of a network more alike than far ones?
-- Of three layers i < j < k in order of execution, i and k must not be more alike than i and j, nor than j and k
-- (layer monotonicity; Klabunde et al. 2025, ReSi). num_violations counts triples in which one of the two fails;
-- conformity is the share of all comparisons, two a triple, that hold. forward: the earlier layer is the source,
-- backward: the later one; triples are judged where all three scores are there. A tie is no violation. The model (all)
-- stands for all of them. Sources of reduced rank are left out.
-- param sweep = ''  one sweep; '' is all of them
-- param tolerance = 1e-6  scores nearer than this are a tie
-- param diverged = false  count cells whose training diverged, too
-- columns: sweep, matcher, metric, direction, model, num_triples, num_violations, violation_share, conformity, params
-- columns: samples
with kept as (
    from scores where not $diverged union all by name from all_scores where $diverged
),
pairs as (
    select
        sweep, matcher, params, samples, metric, source_model as model, similarity,
        if(source_index < target_index, 'forward', 'backward') as direction,
        least(source_index, target_index) as first, greatest(source_index, target_index) as last
    from kept
    where
        source_model = target_model and source_index <> target_index and $sweep in ('', sweep)
        and try_cast(params ->> 'rank' as bigint) is null
),
triples as (
    select
        sweep, matcher, params, samples, metric, direction, model,
        (ik.similarity > ij.similarity + $tolerance)::int as ij_fails,
        (ik.similarity > jk.similarity + $tolerance)::int as jk_fails
    from pairs as ik
    join pairs as ij using (sweep, matcher, params, samples, metric, direction, model, first)
    join pairs as jk using (sweep, matcher, params, samples, metric, direction, model)
    where jk.first = ij.last and jk.last = ik.last
)
select
    sweep, matcher, metric, direction, coalesce(model, '(all)') as model,
    count(*) as num_triples,
    sum(greatest(ij_fails, jk_fails))::bigint as num_violations,
    avg(greatest(ij_fails, jk_fails)) as violation_share,
    1 - avg(ij_fails + jk_fails) / 2 as conformity, params, samples
from triples
group by grouping sets (
    (sweep, matcher, metric, params, samples, direction),
    (sweep, matcher, metric, params, samples, direction, model)
)
order by sweep, matcher, params, samples, direction desc, triples.model nulls first
