"""Time a job: the engine beside the textbook procedure, whole commands in turn, or one job at growing sizes."""

from stitchgrid.bench.against import Against, against_json, against_text, run_against
from stitchgrid.bench.growth import AXES, Growth, growth_json, growth_text, run_growth
from stitchgrid.bench.measure import Bench, PartFigures, run_bench
from stitchgrid.bench.show import bench_json, bench_text

__all__ = [
    "AXES",
    "Against",
    "Bench",
    "Growth",
    "PartFigures",
    "against_json",
    "against_text",
    "bench_json",
    "bench_text",
    "growth_json",
    "growth_text",
    "run_against",
    "run_bench",
    "run_growth",
]
