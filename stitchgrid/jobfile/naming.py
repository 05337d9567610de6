"""Names and files of the networks that one entry of a job file stands for: one for each seed and training step."""

import re
from collections.abc import Sequence

from stitchgrid.records import STEP

STEP_FIELD = re.compile(r"\{step(?::(0?[1-9][0-9]?)d?)?\}")  # {step}, or {step:06} for six digits with leading zeros


def named_networks(
    name: str, seeds: Sequence[int] | None, seed: int, steps: Sequence[int] | None
) -> list[tuple[str, int, int | None]]:
    """Return name, seed and step of every network of an entry.

    >>> named_networks("net", None, 0, [0, 100])
    [('net@0', 0, 0), ('net@100', 0, 100)]
    >>> named_networks("net", [1, 2], 0, None)
    [('net/1', 1, None), ('net/2', 2, None)]
    """
    by_seed = [(name, seed)] if seeds is None else [(f"{name}/{one}", one) for one in seeds]
    if steps is None:
        return [(word, one, None) for word, one in by_seed]
    return [(f"{word}{STEP}{step}", one, step) for word, one in by_seed for step in steps]


def filled(text: str, seed: int, step: int | None) -> str:
    """Return a text with `{seed}` and `{step}` replaced by their numbers.

    >>> filled("run{seed}/step{step:06}.pt", 1, 100)
    'run1/step000100.pt'
    """
    text = text.replace("{seed}", str(seed))
    return text if step is None else STEP_FIELD.sub(lambda found: f"{step:{found[1] or ''}}", text)
