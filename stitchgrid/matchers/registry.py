"""The kinds of matchers that a job file can name. Imports no torch.

A new kind is one file in `indices/` or `stitchers/`, one oracle in `reference/`, and one line in `WHERE`.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from stitchgrid.live_networks import live_name
from stitchgrid.matchers.evidence import evidence_name
from stitchgrid.matchers.metrics import CLASS_METRICS, OOD_METRICS, OUTPUT_METRICS, RESIDUAL_AT, residual_at
from stitchgrid.matchers.protocol import About, Kind
from stitchgrid.records import Cell, Head, MatcherSpec, Network, Sweep

WHERE = (  # module:class of each kind, in the order in which they are listed for users
    "stitchers.direct:Direct",
    "stitchers.orthogonal:Orthogonal",
    "stitchers.ridge:Ridge",
    "stitchers.reduced_rank:ReducedRank",
    "stitchers.permutation:Permutation",
    "stitchers.task_loss:TaskLoss",
    "stitchers.soft_label:SoftLabel",
    "stitchers.final_feature:FinalFeature",
    "stitchers.functional_alignment:FunctionalAlignment",
    "indices.cka:CKA",
    "indices.cka_unbiased:CKAUnbiased",
    "indices.cka_rbf:CKARBF",
    "indices.pwcca:PWCCA",
    "indices.svcca:SVCCA",
    "indices.mean_cca:MeanCCA",
    "indices.procrustes:Procrustes",
    "indices.linear_regression:LinearRegression",
    "indices.soft_matching:SoftMatching",
    "indices.rsa:RSA",
    "indices.mutual_knn:MutualKNN",
    "indices.jaccard_knn:JaccardKNN",
)


def _load(where: str) -> type[Kind[Any]]:
    module, _, name = where.partition(":")
    kind: type[Kind[Any]] = getattr(import_module(f"stitchgrid.matchers.{module}"), name)
    return kind


KINDS = tuple(map(_load, WHERE))
_BY_NAME = {kind.about.kind: kind for kind in KINDS}
MATCHERS: dict[str, About] = {name: kind.about for name, kind in _BY_NAME.items()}


def kind_of(name: str) -> type[Kind[Any]]:
    """Return a kind by its name."""
    return _BY_NAME[name]


def implementation(spec: MatcherSpec) -> Kind[Any]:
    """Return a matcher's kind with its parameters."""
    return _BY_NAME[spec.kind](MATCHERS[spec.kind].params.of(spec))


def is_a(spec: MatcherSpec, what: type[Kind[Any]]) -> bool:
    """Return whether a matcher's kind is a subclass of `what`, such as `MomentIndex` or `Trained`."""
    return issubclass(_BY_NAME[spec.kind], what)


def images_used(spec: MatcherSpec, *, num_fit: int, num_fit_closed: int, num_eval: int) -> tuple[int, int]:
    """Return how many fit and evaluation images a matcher reads; they are the first ones of their split.

    Stitchers are fitted on `num_fit_closed` images (trained ones name that number, see `MatcherSpec`), indices on none.
    All are evaluated on every evaluation image, except kinds with n x n matrices. `samples` overrides the fit images of
    a stitcher, and the evaluation images of an index. A source of low rank is also reduced by fit images; for an index
    these are `num_fit_closed` images.
    """
    matcher = MATCHERS[spec.kind]
    whole = num_fit if matcher.family == "stitcher" else num_eval
    if isinstance(spec.samples, int):
        num = min(spec.samples, whole)
    elif spec.samples == "all":
        num = whole
    elif matcher.family == "stitcher":
        num = num_fit if matcher.is_trained else num_fit_closed
    else:
        num = min(matcher.most_images or num_eval, num_eval)
    if matcher.family == "stitcher":
        return num, num_eval
    return num_fit_closed if spec.rank else 0, num


def default_metrics(kind: str) -> tuple[str, ...]:
    """Return the metrics of a matcher whose job entry names none.

    >>> default_metrics("cka")
    ('cka',)
    """
    return tuple(metric.name for metric in MATCHERS[kind].metrics if not metric.on_request)


def metrics_into(spec: MatcherSpec, head: Head) -> tuple[str, ...]:
    """Return the metrics of a matcher's cells into a target with this head, in the kind's order.

    For a target without classes, metrics that compare outputs replace those that need classes.
    """
    if MATCHERS[spec.kind].family != "stitcher":
        return spec.metrics
    asked = set(spec.metrics)
    if not head.has_scores:
        return tuple(metric for metric in spec.metrics if needs_no_tail(spec.kind, metric))
    if head.has_classes:
        asked -= set(OUTPUT_METRICS)
    elif asked.intersection((*CLASS_METRICS, *OUTPUT_METRICS)):
        asked = asked.difference(CLASS_METRICS).union(OUTPUT_METRICS)
    return tuple(metric for metric in MATCHERS[spec.kind].metric_names if metric in asked)


def needs_no_tail(kind: str, metric: str) -> bool:
    """Return whether a metric is computed without running anything behind the target layer.

    >>> needs_no_tail("direct", "residual"), needs_no_tail("direct", "accuracy")
    (True, False)
    """
    return MATCHERS[kind].metric(metric).made_of in ("statistics", "mahalanobis")


def metrics_of(sweep: Sweep, cell: Cell) -> tuple[str, ...]:
    """Return the metrics that a cell asks for."""
    return metrics_at(sweep.matchers[cell.matcher], sweep.networks[cell.target], cell.target_layer)


def metrics_at(spec: MatcherSpec, target: Network, layer: int) -> tuple[str, ...]:
    """Return the metrics of a matcher's cells into a layer of a network, with a `residual_at` for each later layer."""
    found = metrics_into(spec, target.head)
    if RESIDUAL_AT not in found:
        return found
    later = (residual_at(one.name) for one in target.layers[layer + 1 :])
    return (*(name for name in found if name != RESIDUAL_AT), *later)


def stored_metrics_of(sweep: Sweep, cell: Cell) -> tuple[str, ...]:
    """Return the names of all rows that a cell asks for: its metrics, and the evidence for them."""
    return stored_metrics(sweep, cell.matcher, sweep.networks[cell.target], cell.target_layer)


def stored_metrics(sweep: Sweep, matcher: int, target: Network, layer: int) -> tuple[str, ...]:
    """Return the names of all rows of a matcher's cells into a layer of a network."""
    spec = sweep.matchers[matcher]
    names = metrics_at(spec, target, layer)
    return (*names, *(row for name in names for row in evidence_for(sweep, spec, name)))


def evidence_for(sweep: Sweep, spec: MatcherSpec, metric: str) -> Iterator[str]:
    """Yield the names of the evidence that a sweep asks for of a matcher's metric."""
    kind = MATCHERS[spec.kind]
    if sweep.groups and kind.metric(metric).has_replicates:
        yield evidence_name(metric, "groups", sweep.groups)
    if sweep.shuffles and has_null(spec, metric):
        yield evidence_name(metric, "shuffles", sweep.shuffles)


def has_null(spec: MatcherSpec, metric: str) -> bool:
    """Return whether a matcher's metric is also computed with shuffled images, without a run or training."""
    found = MATCHERS[spec.kind].metric(metric)
    return found.has_null and found.made_of == "statistics" and not MATCHERS[spec.kind].is_trained


def is_shuffled(sweep: Sweep, spec: MatcherSpec) -> bool:
    """Return whether a sweep also measures a matcher with shuffled images."""
    return bool(sweep.shuffles) and any(has_null(spec, metric) for metric in spec.metrics)


def asks_ood(spec: MatcherSpec, detector: str) -> bool:
    """Return whether a matcher asks for the metrics of a detector, which separates T(A) from B."""
    return not set(OOD_METRICS[detector]).isdisjoint(spec.metrics)


def proves_halves(sweep: Sweep, network: Network) -> bool:
    """Return whether a network's proof includes that its halves give the scores of the whole network.

    It does not for a live network that only indices read: no half is run, and no later sweep of another process relies
    on the proof. Features have no halves.
    """
    if not network.head.has_scores:
        return False
    is_live = live_name(network.spec.architecture) is not None
    return not is_live or any(MATCHERS[spec.kind].family == "stitcher" for spec in sweep.matchers)


def higher_is_similar(kind: str, metric: str) -> bool | None:
    """Return whether a higher value of the metric means more similar; None if neither direction does.

    >>> higher_is_similar("direct", "residual")
    False
    """
    return MATCHERS[kind].metric(metric).higher_is_similar
