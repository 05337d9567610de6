"""What to add to a job so that all checks of its answers are computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stitchgrid.catalog.answers import Answer
from stitchgrid.catalog.catalog import Catalog
from stitchgrid.catalog.verdict_rules import FEWEST_DRAWS, IS_TWIN
from stitchgrid.live_networks import live_name
from stitchgrid.printable import in_one_line

PLANNED = """
select matcher, any_value(m.trained) as is_trained,
       bool_or(len(list_filter(metrics, lambda x: starts_with(x, 'ood_'))) > 0) as has_ood
from cells join matchers as m using (matcher) where sweep = $sweep group by matcher
"""
ARCHITECTURES = "select distinct architecture from models where sweep = $sweep"
TWINS = f"select count(*) as num from models where sweep = $sweep and {IS_TWIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Something to add to a job, so that more checks are computed."""

    what: str  # text to write into the job, or what to run
    why: str
    argument: str = ""  # the same as an argument of `stitchgrid.compare`


UNTRAINED = Addition(
    what="[controls] untrained = true",
    why="compares with untrained twins: does architecture alone give the match?",
    argument="untrained=True",
)
SHUFFLED = Addition(
    what="[controls] shuffled = 40",
    why="compares with shuffled images: does chance give the match?",
    argument="shuffled=40",
)
MORE_DRAWS = replace(SHUFFLED, why=f"with fewer than {FEWEST_DRAWS} draws no p can be below 0.05")
GROUPS = Addition(
    what="[intervals] groups = 20",
    why="gives intervals: which layers are as good as the best?",
    argument="groups=20",
)
OOD = Addition(
    what='[diagnostics] ood = ["mahalanobis"]', why="tells whether stitched rows stay in the target's distribution"
)
DIRECT = Addition(
    what='[[matchers]] kind = "direct"',
    why="checks the trained matchers, which alone prove nothing",
    argument='matchers=[..., "direct"]',
)
OTHERS = Addition(
    what='[[matchers]] kind = "cka_unbiased"',
    why="is a second opinion that needs no training",
    argument='matchers=[..., "cka_unbiased"]',
)


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
    if is_live(catalog, sweep):
        found = [replace(one, what=one.argument) for one in found if one.argument]
    if any(is_missing and is_asked for is_missing, is_asked, _ in wanted):
        found.append(Addition(what=way_on(catalog, sweep), why="computes what was asked for and is missing"))
    return found


def in_short(answers: Sequence[Answer]) -> list[str]:
    """Return a sentence for each answer, below it why it is not supported, and at the end how to know more."""
    lines = [line for one in answers for line in (one.sentence, *([f"    {one.why}"] if one.why else []))]
    weak = [one for one in answers if one.verdict == "weak"]
    options = {
        GROUPS: any(one.low is None and {"localised", "above_untrained"} & {*one.missing} for one in weak),
        SHUFFLED: any(one.p is None and not one.is_trained for one in weak),
        UNTRAINED: any(not one.has_twin for one in weak),
    }
    wanted = ", ".join(what.argument for what, is_wanted in options.items() if is_wanted)
    if wanted:
        lines.append(f"Not known: compare(..., {wanted}) computes it; a job has [intervals] and [controls] for it.")
    return list(map(in_one_line, lines))


def is_live(catalog: Catalog, sweep: str) -> bool:
    """Return whether the networks of a sweep were given to `stitchgrid.compare`, so that no command can resume it."""
    rows = catalog.query(ARCHITECTURES, {"sweep": sweep}).to_pylist()
    return any(live_name(row["architecture"]) is not None for row in rows)


def way_on(catalog: Catalog, sweep: str) -> str:
    """Return what computes the cells of a sweep that are missing, a command or a call."""
    if is_live(catalog, sweep):
        return "stitchgrid.compare(...), called again with the same networks,"
    return f"stitchgrid resume {sweep}"
