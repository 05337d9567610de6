"""Commands run as a user would, and many things done at the same moment."""

import json
import subprocess
import sys
import threading

from click.testing import CliRunner

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.store import Store

#: A job of seconds: one small network, two of its layers, one index, four cells.
TINY_JOB = """
name = "s"
[data]
dataset = "digits"
fit = { samples = 32 }
eval = { samples = 32 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
layers = ["layer1.0", "layer2.0"]
[[matchers]]
kind = "cka"
"""


def run(*arguments, code=0):
    """Run a command in this process; its exit code is as expected."""
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result


IN_A_PROCESS = """
import json, sys, time
from click.testing import CliRunner
from stitchgrid.cli import cli
for words in json.loads(sys.argv[1]):
    start = time.monotonic()
    done = CliRunner().invoke(cli, words)
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    print(json.dumps([done.exit_code, done.output, time.monotonic() - start]), flush=True)
"""


def in_a_process(store, commands, *, first="", timeout=120):
    """Run commands on a store in one process of their own, which they may end or take the memory of.

    Args:
        store: Where it is.
        commands: Words of each.
        first: Statements that come before.
        timeout: Seconds for all.

    Returns:
        Of each command the exit code, what it said and how many seconds it took.
    """
    words = json.dumps([[*command, "--store", str(store)] for command in commands])
    line = [sys.executable, "-c", first + IN_A_PROCESS, words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, (commands, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    said = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(said) == len(commands)
    return said


def values(store):
    """Return the value of every (cell, metric) that the view `results` shows."""
    with Catalog(Store.open(store)) as catalog:
        rows = catalog.query("select cell_id, metric, value from results order by all").to_pylist()
    return {(row["cell_id"], row["metric"]): row["value"] for row in rows}


def at_once(count, act):
    """Call `act` with the numbers below `count`, each in a thread of its own, all of them at the same moment."""
    start = threading.Barrier(count)

    def wait_and_act(number):
        start.wait()
        act(number)

    threads = [threading.Thread(target=wait_and_act, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
