"""A job by the engine and by the textbook procedure, side by side. `run_bench` is the way in."""

from stitchgrid.bench.measure import Bench, PartFigures, run_bench
from stitchgrid.bench.show import bench_json, bench_text

__all__ = ["Bench", "PartFigures", "bench_json", "bench_text", "run_bench"]
