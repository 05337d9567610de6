"""Rules by which the best source layer of a target layer is judged, and the SQL of the view `answers`.

A matcher that is trained from several seeds has one answer for each seed. One block is one step among the selected
layers of a network.
"""

from functools import lru_cache
from importlib.resources import files
from string import Template

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
NEEDED = ("trained", "above_chance", "localised", "above_untrained", "above_shuffled")  # to be supported
VERDICTS = ("supported", "weak", "not supported")
IS_TWIN = f"is_untrained and suffix(model, '{TWIN}')"  # of rows of `models`
SOUND = "not list_contains(s.flags, 'diverged')"  # of cells that can be the best source
FEWEST_DRAWS = 20  # of shuffled images: with fewer, no p is below 0.05
_UNSOUND = ("diverged", "energy_unsound", "saturated", "underdetermined", "unsound")  # flags
_RULES = {
    "twin": TWIN,
    "tie": "1e-6",  # scores nearer than this are a tie: none is better, and the target layer itself is the best
    "near": "1",  # selected layers between two of one block
    "significant": "0.05",  # p of shuffled images
    "fewest_draws": str(FEWEST_DRAWS),
    "most_auroc": "0.6",
    "shrunken_auroc": "0.4",
    "least_variance_ratio": "0.25",
    "most_residual": "0.25",  # of direct matching, from which on it denies a trained stitch
    "unsound": ", ".join(f"'{flag}'" for flag in _UNSOUND),
    "checks": ", ".join(f"{{'name': '{name}', 'passed': {name}, 'detail': of_{name}}}" for name in CHECKS),
}


def answers_sql(*, with_diverged: bool = False) -> str:
    """Return the statement behind the view, or behind the one in which diverged cells can be the best, too."""
    return _template().substitute(_RULES, condition="true" if with_diverged else SOUND)


@lru_cache(maxsize=1)
def _template() -> Template:
    return Template(files("stitchgrid.catalog").joinpath("answers.sql").read_text("utf-8"))
