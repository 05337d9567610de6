"""Time a job: the engine beside the textbook procedure (`run_bench`), or whole commands in turn (`run_against`)."""

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
