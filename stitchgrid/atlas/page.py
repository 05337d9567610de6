"""Make one self-contained HTML page: page.html, the styles and scripts beside this file, and the data."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from stitchgrid import __version__
from stitchgrid.atlas.content import sweep_content
from stitchgrid.atlas.grids import SweepGrids
from stitchgrid.catalog.misleading import misleading_limits, misleading_rule

#: The modules of the page in the order in which they are joined: arithmetic, then the sweep, its views, the page.
ARITHMETIC = ("numbers", "decode", "colours", "counting", "eigen", "distances", "clusters")
MODULES = (
    *ARITHMETIC,
    "elements",
    "pens",
    "sweep",
    "state",
    "canvas",
    "tip",
    "answers",
    "overview",
    "heatmap",
    "pair",
    "profile",
    "scatter",
    "thresholds",
    "map",
    "tree",
    "tables",
    "provenance",
    "copying",
    "keys",
    "start",
)
SERVED = (*MODULES[:-1], "live", MODULES[-1])  # modules of a page that asks its server for new data


def render_page(grids: Sequence[SweepGrids]) -> str:
    """Return the page about these sweeps; it loads no other file."""
    return render_content(page_content(grids))


def page_content(grids: Sequence[SweepGrids]) -> dict[str, Any]:
    """Return the data of the page about these sweeps."""
    return {
        "version": __version__,
        "misleadingRule": misleading_rule(),
        "misleadingLimits": {key: value for key, value in misleading_limits().items() if isinstance(value, float)},
        "sweeps": [sweep_content(grid) for grid in grids],
    }


def render_content(content: Mapping[str, Any], *, live: Mapping[str, Any] | None = None) -> str:
    """Return the page that holds this content.

    `live` is for a page from a server: the `version` of the content, and the `seconds` after which the page asks for a
    newer one.
    """
    style, script = asset("page.css") + asset("views.css"), join_modules(MODULES if live is None else SERVED)
    return Template(asset("page.html")).substitute(
        title=html.escape(" · ".join([*(sweep["name"] for sweep in content["sweeps"]), "similarity atlas"])),
        connect="connect-src 'self'; " if live is not None else "",
        style=style,
        style_hash=source_hash(style),
        script=script,
        script_hash=source_hash(script),
        data=embed({**content, "live": live}),
    )


def join_modules(names: Sequence[str] = MODULES) -> str:
    """Return modules of the page as one script; they share one scope, that of a function around them."""
    return "\n".join(['"use strict";\n(() => {', *(asset(f"page/{name}.js") for name in names), "})();\n"])


def embed(content: Any) -> str:
    """Return JSON that is safe inside a script element, whatever strings it holds.

    >>> embed({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    return to_json(content).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def to_json(content: Any) -> str:
    """Return JSON of the data of a page."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def asset(name: str) -> str:
    """Return a file that ships beside this one."""
    return files("stitchgrid.atlas").joinpath(name).read_text("utf-8")


def source_hash(text: str) -> str:
    """Return the hash by which a content security policy allows an inline element; other code cannot run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
