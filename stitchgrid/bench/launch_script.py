"""Launches a job in this process, with one thread: `python -m stitchgrid.bench.launch_script JOB.json STORE`."""

import json
import sys
from pathlib import Path

from stitchgrid.display import Display
from stitchgrid.driver import Launch, Placement
from stitchgrid.jobfile import parse_job
from stitchgrid.store import Store

if __name__ == "__main__":
    job = parse_job(json.loads(Path(sys.argv[1]).read_text()), title=sys.argv[1])
    store = Store.open(sys.argv[2], create=True)
    where = Placement(address="none", cpus_per_worker=1)
    sys.exit(1 if Launch(job, store, where, Display()).run().failures else 0)
