"""A worker that does what its units say, for the tests of executors; importable where actors run."""

import os
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from stitchgrid.errors import StoreError
from stitchgrid.records import Block, Shard, UnitReport

ROOT = Path(__file__).parents[2]


def python_path(test: str) -> str:
    """Return the PYTHONPATH with which actors import what the tests of a file hand them."""
    return os.pathsep.join(map(str, (Path(__file__).parent, Path(test).parent, ROOT)))


def make_unit(name, do="finish", *, flops=1.0, num_cells=1, networks=(0, 1)):
    """Return a unit whose id says what its worker is to do."""
    layers = tuple(range(num_cells))
    block = Block(source=networks[0], target=networks[1], source_layers=(0,), target_layers=layers)
    return Shard(unit_id=f"{name}:{do}", blocks=(block,), matchers=(0,), flops=flops, num_cells=num_cells)


def halve(unit):
    """Return the two halves of a unit; only the first cell of all is ever at fault."""
    name, do = unit.unit_id.split(":")
    layers = unit.blocks[0].target_layers
    parts = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    return tuple(
        replace(
            unit,
            unit_id=f"{name.split('/')[0]}/{part[0]}-{part[-1]}:{do if part[0] == 0 else 'finish'}",
            blocks=(replace(unit.blocks[0], target_layers=part),),
            num_cells=len(part),
        )
        for part in parts
    )


class SpeechlessError(Exception):
    """A user's own error whose message cannot be had."""

    def __str__(self):
        raise RuntimeError("no words")


@dataclass
class FakeWorker:
    """Notes what it did in a file per unit, if it has a folder, and then does what the unit says."""

    folder: str | None = None
    needs: str | None = None  # a path without which nothing can be done
    seen: list[str] = field(default_factory=list)
    neighbours: str = "1 1"  # on its machine, on its GPU
    num_made: ClassVar[int] = 0  # in this process

    def __post_init__(self):
        type(self).num_made += 1

    def check(self, context):
        needs = context["needs"] if isinstance(context, dict) else self.needs
        if needs is not None and not Path(os.path.expandvars(needs)).exists():
            raise FileNotFoundError(f"{needs} is not there")

    def set_num_workers(self, *, on_host, on_gpu):
        self.neighbours = f"{on_host} {on_gpu}"

    def run(self, unit, context):
        self.seen.append(unit.unit_id)
        do = unit.unit_id.split(":")[1]
        if self.folder is not None:
            with (Path(self.folder) / unit.unit_id.replace("/", "_")).open("a") as notes:
                print(os.getpid(), file=notes)
        if do == "raise":
            raise ValueError(f"{unit.unit_id} went wrong")
        if do == "choke":
            raise SpeechlessError
        if do == "exhaust":
            raise MemoryError("no room")
        if do == "unwritable":
            raise StoreError("cannot write")
        if do == "cuda":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if do == "ecc":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        if do == "crash":
            os._exit(3)
        if do == "exit":
            sys.exit(3)
        if do == "hang":
            time.sleep(600)
        if do == "nap":
            time.sleep(1.1)
        if do == "gpu":
            time.sleep(0.3)
            return UnitReport(unit_id=unit.unit_id, part=os.environ["CUDA_VISIBLE_DEVICES"])
        if do == "neighbours":
            return UnitReport(unit_id=unit.unit_id, part=self.neighbours)
        if do == "unsendable":
            return threading.Lock()
        if do == "print":
            os.write(1, b"noise of a worker\n")
        return UnitReport(unit_id=unit.unit_id, num_cells=unit.num_cells, part=f"{context}/{self.num_made}")

    def close(self):
        if self.folder is not None:
            (Path(self.folder) / f"closed-{os.getpid()}").touch()


def broken_factory():
    raise FileNotFoundError("no data here")
