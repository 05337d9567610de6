"""What to call the matchers of a sweep: the kind, and what tells it from others of that kind."""

import json
from collections.abc import Sequence
from typing import Any


def matcher_labels(variants: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return a label for each (kind, parameters): the kind, and the parameters in which those of its kind differ.

    >>> matcher_labels([("cka", {}), ("direct", {"k": 1, "samples": 9}), ("direct", {"k": 1, "samples": 5})])
    ['cka', 'direct (samples 9)', 'direct (samples 5)']
    """
    labels = []
    for kind, params in variants:
        peers = [other for name, other in variants if name == kind]
        differing = [key for key in params if any(other.get(key) != params[key] for other in peers)]
        told = ", ".join(f"{key} {params[key]}" for key in differing)
        labels.append(f"{kind} ({told})" if told else kind)
    return labels


def parameters(params: str) -> dict[str, Any]:
    """Return a matcher's parameters as a dictionary, whatever a store holds."""
    try:
        values = json.loads(params)
    except ValueError:
        values = params
    return values if isinstance(values, dict) else {"params": values}
