"""The rules that judge the best source layer of a target layer, and the SQL of the view `answers`.

A matcher that is trained with several seeds has one answer for each seed. A distance of one block is one step among the
selected layers of a network.
"""

from functools import lru_cache
from importlib.resources import files
from string import Template

from stitchgrid.catalog.views import SAMPLES
from stitchgrid.records import TWIN

CHECKS = (
    "trained",
    "above_chance",
    "localised",
    "above_untrained",
    "above_shuffled",
    "others_agree",
    "in_distribution",
    "not_collapsed",
    "undenied",
    "sound",
)
NEEDED = ("trained", "above_chance", "localised", "above_untrained", "above_shuffled")  # for the verdict "supported"
VERDICTS = ("supported", "weak", "not supported")
IS_TWIN = f"is_untrained and suffix(model, '{TWIN}')"  # condition on rows of `models`
SOUND = "not list_contains(s.flags, 'diverged')"  # condition on cells that can be the best source
FEWEST_DRAWS = 20  # draws of shuffled images: with fewer, no p is below 0.05
_UNSOUND = ("diverged", "energy_unsound", "saturated", "underdetermined", "unsound")  # flags
_RULES = {
    "twin": TWIN,
    "samples": SAMPLES,
    "tie": "1e-6",  # scores that differ by at most this are equal; of equal best ones, the target layer itself wins
    "near": "1",  # steps of one block, among the selected layers
    "significant": "0.05",  # p of shuffled images
    "fewest_draws": str(FEWEST_DRAWS),
    "most_auroc": "0.6",
    "shrunken_auroc": "0.4",
    "least_variance_ratio": "0.25",
    "most_residual": "0.25",  # direct matching denies a trained stitch if its residual is this or more
    "unsound": ", ".join(f"'{flag}'" for flag in _UNSOUND),
    "checks": ", ".join(f"{{'name': '{name}', 'passed': {name}, 'detail': of_{name}}}" for name in CHECKS),
}


def answers_sql(*, with_diverged: bool = False, where: str = "") -> str:
    """Return the statement of the view `answers`; `with_diverged`: of `all_answers`, where diverged cells can win.

    Args:
        with_diverged: Let diverged cells be the best source.
        where: Condition on the rows of `results` and `cells`, by columns that both have, such as `target_model`; the
            answers are those of a store with these rows alone.
    """
    tables = {name: f"(select * from {name} where {where})" if where else name for name in ("results", "cells")}
    return _template().substitute(_RULES | tables, condition="true" if with_diverged else SOUND)


@lru_cache(maxsize=1)
def _template() -> Template:
    return Template(files("stitchgrid.catalog").joinpath("answers.sql").read_text("utf-8"))
