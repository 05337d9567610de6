"""Files of a store that stop like a machine that goes down, before or after any change; and stores to try it on."""

import hashlib
import shutil
from pathlib import Path
from random import Random

from stitchgrid.store.files import LocalFiles


class StoppedError(Exception):
    """The machine went down."""


class StoppingFiles(LocalFiles):
    """Stops before or after its n-th change; 0: never, and `count` says how many there were."""

    def __init__(self, root, at, *, before=True):
        super().__init__(Path(root))
        self.at, self.before, self.count = at, before, 0

    def _change(self, call, *arguments):
        if arguments[0].endswith("heartbeat.json"):  # of a thread of its own
            return None if self.at and self.count >= self.at else call(*arguments)
        self.count += 1
        if self.at and self.count + self.before > self.at:  # what comes after it is not written either
            raise StoppedError
        result = call(*arguments)
        if self.count == self.at:
            raise StoppedError
        return result

    def write_once(self, name, data):
        return self._change(super().write_once, name, data)

    def replace(self, name, data):
        return self._change(super().replace, name, data)

    def move(self, name, to):
        return self._change(super().move, name, to)

    def delete(self, name):
        return self._change(super().delete, name)


def stopped_everywhere(tmp_path, origin, act, look, *, every=1):
    """Run `act(files)` on copies of a store, stopped at every change; call `look(folder)` after each.

    It stops before each change and after the last: after any other, the store is as it is before the next. `every` is
    2 for every second of these, and so on, from a drawn one on.
    """
    shutil.copytree(origin, tmp_path / "counted")
    counting = StoppingFiles(tmp_path / "counted", 0)
    act(counting)
    shutil.rmtree(tmp_path / "counted")
    assert counting.count
    for at in range(1 + Random(0).randrange(every), counting.count + 2, every):
        folder = tmp_path / f"stopped-{at}"
        shutil.copytree(origin, folder)
        try:
            act(StoppingFiles(folder, min(at, counting.count), before=at <= counting.count))
        except StoppedError:
            look(folder)
        else:
            raise AssertionError(f"it was not stopped at change {at}")
        shutil.rmtree(folder)
    return counting.count


def content_of(folder):
    """Return the digest of every file below a folder."""
    folder = Path(folder)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
