"""Labels of the matchers of a sweep: the kind, and the parameters in which matchers of that kind differ."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

Entry = tuple[Any, ...]  # kind, parameters, number of images; seed


def matcher_labels(variants: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return a label for each (kind, parameters): the kind, and the parameters in which matchers of that kind differ.

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


def labels_of(entries: Iterable[Entry]) -> dict[Entry, str]:
    """Return a label for each matcher of a sweep, by its kind, parameters, number of images and, if any, seed.

    >>> list(labels_of([("direct", "{}", 9), ("direct", "{}", 5), ("cka", "{}", 5)]).values())
    ['direct (samples 9)', 'direct (samples 5)', 'cka']
    """
    found = list(dict.fromkeys(entries))
    variants = []
    for kind, params, *numbers in found:
        told = dict(zip(("samples", "seed"), numbers, strict=False))
        if told.get("seed", 0) is None:
            del told["seed"]
        variants.append((kind, parameters(params) | told))
    return dict(zip(found, matcher_labels(variants), strict=True))


def parameters(params: str) -> dict[str, Any]:
    """Return a matcher's parameters as a dictionary; a text that is not a JSON object becomes {"params": text}."""
    try:
        values = json.loads(params)
    except (ValueError, RecursionError):
        values = params
    return values if isinstance(values, dict) else {"params": values}
