#!/usr/bin/env bash
# All that is asked of a GPU, in one run of at most eight minutes: values against the CPU's, then speed.
#
#   tests/gpu/run.sh [OUT.json]
#
# It needs no network: packages that the machine lacks are taken from the folder $WHEELS (default: wheels), into a
# virtual environment that sees those which it has, torch above all. Where there is no GPU, it is rehearsed on the CPU
# with small numbers: STITCHGRID_REHEARSE=1 tests/gpu/run.sh.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-.}/gpu.json}
wheels=${WHEELS:-wheels}
needed="click duckdb matplotlib numpy prompt_toolkit pyarrow pydantic pygments ray rich safetensors scipy sklearn torch torchvision pytest timeout hypothesis"

missing() {
  "$1" - $needed <<'PYTHON'
import sys
from importlib.util import find_spec

modules = ["pytest_timeout" if name == "timeout" else name for name in sys.argv[1:]]
print(" ".join({"sklearn": "scikit-learn"}.get(name, name) for name in modules if find_spec(name) is None))
PYTHON
}

python=${PYTHON:-python3}
lacking=$(missing "$python")
if [ -n "$lacking" ]; then
  environment=$(mktemp -d)
  trap 'rm -rf "$environment"' EXIT
  "$python" -m venv --system-site-packages "$environment" || exit 1
  python=$environment/bin/python
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet --no-index --find-links "$wheels" $lacking || {
    echo "packages are missing: $lacking; put their wheels into $wheels" >&2
    exit 1
  }
fi

export PYTHONPATH=$PWD:$PWD/tests/helpers PYTHONUNBUFFERED=1
results=$(mktemp)
if [ -z "${STITCHGRID_REHEARSE:-}" ]; then
  timeout 150 "$python" -m pytest -o addopts= -q -m "gpu and not slow" --junitxml="$results" tests/gpu | tail -15
fi
minutes=${MINUTES:-5}  # after which no question is begun; one that is too long is cut off a minute later
timeout $((60 * minutes + 60)) "$python" tests/gpu/measure.py --out "$out" --tests "$results" --minutes "$minutes"
status=$?
rm -f "$results"
exit $status
