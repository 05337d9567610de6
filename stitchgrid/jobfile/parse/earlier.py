"""Translates jobs that earlier versions stored into what they mean now."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.registry import MATCHERS


def as_understood_now(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored job with the values that version 0.1.0 took for missing keys.

    In that version, trained kinds and detectors took the whole fit split, even if `fit` had fewer `samples`.
    """
    stored = deepcopy(dict(table))
    try:
        return _with_samples(stored)
    except (AttributeError, KeyError, TypeError):  # not a job: the reader reports why
        return dict(table)


def _with_samples(stored: dict[str, Any]) -> dict[str, Any]:
    if stored["data"].get("fit", {}).get("samples") is None:
        return stored
    for item in stored["matchers"]:
        if item["kind"] in MATCHERS and MATCHERS[item["kind"]].is_trained:
            item.setdefault("samples", "all")
    metrics = {metric for item in stored["matchers"] for metric in item["metrics"]}
    if not metrics.isdisjoint(OOD_METRICS["energy"]):
        stored.setdefault("diagnostics", {}).setdefault("energy", {}).setdefault("samples", "all")
    return stored
