"""Kinds of matchers in words, for users, and as plain data, which stores keep to describe their own kinds."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from stitchgrid.matchers.metrics import Ends, Metric
from stitchgrid.matchers.protocol import About


def as_record(about: About) -> dict[str, Any]:
    """Return a kind as plain JSON.

    >>> from stitchgrid.matchers.registry import MATCHERS
    >>> as_record(MATCHERS["cka"])["score"]
    'cka'
    """
    return {
        "kind": about.kind,
        "family": about.family,
        "summary": about.summary,
        "source": about.source,
        "revision": about.revision,
        "score": about.score,
        "symmetric": about.symmetric,
        "invariances": {side: sorted(some) for side, some in zip(("source", "target"), about.invariances, strict=True)},
        "is_trained": about.is_trained,
        "needs_labels": about.needs_labels,
        "widths": about.widths,
        "most_features": about.most_features,
        "most_images": about.most_images,
        "fewest_images": about.fewest_images,
        "parameters": {name: _default(field.default) for name, field in about.params.model_fields.items()},
        "metrics": [_metric(metric) for metric in about.metrics],
    }


def _default(value: object) -> object:
    return None if value is PydanticUndefined else value


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "higher_is_similar": metric.higher_is_similar,
        "low": metric.bounds[0],
        "high": metric.bounds[1],
        "on_request": metric.on_request,
    }


def overview(kinds: Iterable[About]) -> Iterator[str]:
    """Yield a line for each kind: name, the metric that ranks layers with its direction, and what it is."""
    kinds = list(kinds)
    longest = max(len(about.kind) for about in kinds)
    scores = {about.kind: _score(about) for about in kinds}
    wide = max(map(len, scores.values()))
    for family in ("stitcher", "index"):
        for about in kinds:
            if about.family == family:
                yield f"{about.kind:{longest}}  {family:8}  {scores[about.kind]:{wide}}  {about.summary}"


def _score(about: About) -> str:
    metric = about.metric(about.score)
    return f"{metric.name} {metric.better} {range_in_words(metric.bounds)}".rstrip()


def range_in_words(ends: Ends) -> str:
    """Return the range of values in words; nothing if both ends are open.

    >>> range_in_words((0.0, 1.0)), range_in_words((None, 1.0))
    ('[0, 1]', '<= 1')
    """
    low, high = ends
    if low is None or high is None:
        return "" if low is high else f">= {low:g}" if high is None else f"<= {high:g}"
    return f"[{low:g}, {high:g}]"


def describe(about: About) -> Iterator[str]:
    """Yield the description of a kind, line by line."""
    yield f"{about.kind}: {about.summary}"
    yield f"bias: {about.bias}"
    yield f"not when: {about.not_when}"
    yield f"source: {about.source}"
    yield f"ranks layers by: {_score(about)}"
    yield f"order of the layers: {'does not matter' if about.symmetric else 'matters'}"
    for side, some in zip(("source", "target"), about.invariances, strict=True):
        yield f"does not change with the {side}'s: {', '.join(sorted(some)) or 'nothing is known'}"
    yield from needs(about)
    yield "parameters:" if about.params.model_fields else "parameters: none"
    for name, field in about.params.model_fields.items():
        yield f"  {name} = {_default(field.default)!r}"
    yield "metrics:"
    for metric in about.metrics:
        words = f"{metric.better} is more similar" if metric.better != "neither" else "neither end is more similar"
        yield f"  {metric.name}: {words} {range_in_words(metric.bounds)}".rstrip() + (
            " (on request)" * metric.on_request
        )


def needs(about: About) -> Iterator[str]:
    """Yield lines about what a kind needs of layers and images, if anything."""
    if about.is_trained:
        yield f"trained: by seeds, {'on labels' if about.needs_labels else 'without labels'}"
    if about.widths != "any":
        yield {
            "equal": "widths: those of both layers must be equal",
            "not narrower": "widths: the target must be as wide as the source at least",
        }[about.widths]
    if about.most_features is not None:
        yield f"features: up to {about.most_features:,} a layer"
    images = []
    if about.most_images is not None:
        images.append(f"{about.most_images:,} of the evaluation images unless `samples` says otherwise")
    if about.fewest_images > 2:
        images.append(f"{about.fewest_images} at least")
    if images:
        yield f"images: {'; '.join(images)}"
