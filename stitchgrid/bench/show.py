"""The figures of a bench as text and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from io import StringIO
from math import isfinite

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from stitchgrid.bench.measure import Bench

COLUMNS = (
    *("part", "cells", "engine", "reference", "ratio", "overhead", "over arithmetic"),
    *("images/s", "GFLOP/s", "peak memory"),
)


def bench_text(bench: Bench) -> str:
    """Return a table with a line per part, then remarks on the machine and on differences in value."""
    target = StringIO()
    Console(file=target, width=120, color_system=None, force_terminal=False).print(_table(bench))
    lines = [line.rstrip() for line in target.getvalue().splitlines()]
    return "\n".join([*lines, *_remarks(bench)])


def bench_json(bench: Bench) -> str:
    """Return all figures as JSON; undefined figures are null."""
    shown = asdict(bench)
    for part, figures in zip(shown["parts"], bench.parts, strict=True):
        part |= {"ratio": figures.ratio, "overhead": figures.overhead, "over_arithmetic": figures.over_arithmetic}
        for worst in part["differences"].values():
            worst |= {name: None for name in ("difference", "reference") if not isfinite(worst[name] or 0.0)}
    return json.dumps(shown, indent=2, allow_nan=False)


def _table(bench: Bench) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    for part in bench.parts:
        table.add_row(
            part.name,
            str(part.num_cells),
            f"{part.engine_seconds:.2f} s",
            f"{part.reference_seconds:.1f} s",
            f"{part.ratio:.1f}",
            f"{part.overhead:.2f}",
            f"{part.over_arithmetic:.2f}",
            f"{part.images_per_second:,.0f}",
            f"{part.flops_per_second / 1e9:,.1f}",
            decimal(part.peak_bytes),
        )
    return table


def _remarks(bench: Bench) -> Iterator[str]:
    yield "machine: " + ", ".join(f"{name} {value}" for name, value in bench.machine.items())
    yield "chosen: " + ", ".join(bench.settings)
    yield "plain networks: " + ", ".join(
        f"{name} {speed / 1e9:,.1f} GFLOP/s" for name, speed in bench.plain_flops_per_second.items()
    )
    yield "matrix products: " + ", ".join(
        f"{name} {speed / 1e9:,.1f} GFLOP/s" for name, speed in bench.product_flops_per_second.items()
    )
    for part in bench.parts:
        if part.errors:
            yield f"{part.name}: {part.errors} cells failed"
        yield f"{part.name}: reference measured on {part.num_reference_pairs} of {part.num_pairs} layer pairs"
        for metric, worst in part.differences.items():
            yield (
                f"  {metric}: largest difference {worst.difference:.1e} "
                f"({worst.engine} and {worst.reference}, {worst.source} -> {worst.target})"
            )
