"""A job by the engine and by the textbook procedure, or by something else, side by side: `run_bench`, `run_against`."""

from stitchgrid.bench.against import Against, against_json, against_text, run_against
from stitchgrid.bench.measure import Bench, PartFigures, run_bench
from stitchgrid.bench.show import bench_json, bench_text

__all__ = [
    "Against",
    "Bench",
    "PartFigures",
    "against_json",
    "against_text",
    "bench_json",
    "bench_text",
    "run_against",
    "run_bench",
]
