"""Commands run as a user would, and many things done at the same moment."""

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
