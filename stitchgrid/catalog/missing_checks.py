"""What to add to a job so that all checks of its answers are computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from stitchgrid.catalog.answers import Answer
from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.verdict_rules import FEWEST_DRAWS, IS_TWIN

PLANNED = """
select matcher, any_value(m.trained) as is_trained,
       bool_or(len(list_filter(metrics, lambda x: starts_with(x, 'ood_'))) > 0) as has_ood
from cells join matchers as m using (matcher) where sweep = $sweep group by matcher
"""
TWINS = f"select count(*) as num from models where sweep = $sweep and {IS_TWIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Something to add to a job, so that more checks are computed."""

    what: str  # text to write into the job, or a command to run
    why: str


UNTRAINED = Addition(
    what="[controls] untrained = true", why="compares with untrained twins: does architecture alone give the match?"
)
SHUFFLED = Addition(what="[controls] shuffled = 40", why="compares with shuffled images: does chance give the match?")
MORE_DRAWS = Addition(
    what="[controls] shuffled = 40", why=f"with fewer than {FEWEST_DRAWS} draws no p can be below 0.05"
)
GROUPS = Addition(what="[intervals] groups = 20", why="gives intervals: which layers are as good as the best?")
OOD = Addition(
    what='[diagnostics] ood = ["mahalanobis"]', why="tells whether stitched rows stay in the target's distribution"
)
DIRECT = Addition(what='[[matchers]] kind = "direct"', why="checks the trained matchers, which alone prove nothing")
OTHERS = Addition(what='[[matchers]] kind = "cka_unbiased"', why="is a second opinion that needs no training")


def additions(catalog: Catalog, sweep: str, answers: Sequence[Answer]) -> list[Addition]:
    """Return what to add to the job of a sweep, each thing once, so that no check of these answers is missing."""
    if not answers:
        return []
    groups, shuffles = catalog.evidence_asked(sweep)
    [twins] = catalog.query(TWINS, {"sweep": sweep}).to_pylist()
    planned = {row["matcher"]: row for row in catalog.query(PLANNED, {"sweep": sweep}).to_pylist()}
    closed = [answer for answer in answers if not answer.is_trained]
    stitchers = [answer for answer in answers if answer.family == "stitcher"]
    judges = [name for name, row in planned.items() if not row["is_trained"]]
    wanted = (  # whether something is missing, whether the job asks for it already, and the addition that asks for it
        (any(answer.untrained_value is None for answer in answers), bool(twins["num"]), UNTRAINED),
        (any(answer.p is None for answer in closed), shuffles > 0, SHUFFLED),
        (0 < shuffles < FEWEST_DRAWS, False, MORE_DRAWS),
        (any(answer.candidates is None for answer in answers), groups > 0, GROUPS),
        (
            any(answer.passed("in_distribution") is None for answer in stitchers),
            any(planned[answer.matcher]["has_ood"] for answer in stitchers),
            OOD,
        ),
        (any(answer.is_trained for answer in answers) and "direct" not in planned, False, DIRECT),
        (
            any(answer.passed("others_agree") is None for answer in answers),
            len(judges) > 1,
            DIRECT if judges == ["cka_unbiased"] else OTHERS,
        ),
    )
    found = list(dict.fromkeys(what for is_missing, is_asked, what in wanted if is_missing and not is_asked))
    if any(is_missing and is_asked for is_missing, is_asked, _ in wanted):
        found.append(Addition(what=f"stitchgrid resume {sweep}", why="computes what the job asks for and is missing"))
    return found
