"""Grids -> one HTML page that needs nothing else: page.html, page.css and page.js beside this file, and the data."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from string import Template
from typing import Any

from stitchgrid import __version__
from stitchgrid.atlas.grids import Choice, Floats, Panel, Positions, SweepGrids
from stitchgrid.catalog.misled import misleading_rule


def render_page(grids: Sequence[SweepGrids]) -> str:
    """Return the page about these sweeps."""
    style, script = asset("page.css"), asset("page.js")
    content = {"version": __version__, "misleadingRule": misleading_rule(), "sweeps": [_sweep(grid) for grid in grids]}
    return Template(asset("page.html")).substitute(
        title=html.escape(" · ".join([*(grid.sweep for grid in grids), "similarity atlas"])),
        style=style,
        style_hash=source_hash(style),
        script=script,
        script_hash=source_hash(script),
        data=embed(content),
    )


def embed(content: Any) -> str:
    """Return JSON that can stand inside a script element, whatever the strings in it.

    >>> embed({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """Return a file that ships beside this one."""
    return files("stitchgrid.atlas").joinpath(name).read_text("utf-8")


def source_hash(text: str) -> str:
    """Return how a content security policy names an inline element: nothing but our own code can run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _sweep(grid: SweepGrids) -> dict[str, Any]:
    return {
        "name": grid.sweep,
        "computed": grid.computed,
        "numEval": grid.num_eval,
        "numFit": grid.num_fit,
        "cells": grid.num_by_status,
        "networks": [asdict(network) for network in grid.networks],
        "blocks": grid.blocks,
        "judgements": [asdict(judgement) for judgement in grid.judgements],
        "claims": [asdict(claims) for claims in grid.claims],
        "notes": [_without_empty(asdict(note)) for note in grid.notes],
        "choices": [_choice(choice) for choice in grid.choices],
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "label": choice.label,
        "params": choice.params,
        "seed": choice.seed,
        "metric": choice.metric,
        "isScore": choice.is_score,
        "higherIsSimilar": choice.higher_is_similar,
        "direction": choice.direction,
        "scale": asdict(choice.scale),
        "panels": [_panel(panel, choice.higher_is_similar) for panel in choice.panels],
    }


def _panel(panel: Panel, higher_is_similar: bool | None) -> dict[str, Any]:
    """Return a panel row by row: values (null where there is none), notes (one if all are equal), best squares."""
    return {
        "source": panel.source,
        "target": panel.target,
        "values": _numbers(panel.values_ST),
        "notes": _shortest(panel.notes_ST),
        "best": panel.best(higher_is_similar).ravel().nonzero()[0].tolist(),
    }


def _numbers(values: Floats) -> list[float | str | None]:
    """Return values as JSON can hold them: NaN as null, infinite ones as the words that JavaScript reads as such."""
    return [
        value if math.isfinite(value) else None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        for value in values.ravel().tolist()
    ]


def _shortest(notes: Positions) -> list[int] | int:
    codes: list[int] = notes.ravel().tolist()
    return codes[0] if len(set(codes)) == 1 else codes


def _without_empty(note: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in note.items() if value not in (None, "")}
