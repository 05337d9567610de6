"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest

CORES = sorted(os.sched_getaffinity(0))
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ...


def pytest_configure() -> None:
    """Give each process that runs tests a core of its own: threads of several wait for each other on the same ones."""
    if WORKER:
        os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})


@pytest.fixture(autouse=True)
def cores(request) -> Iterator[None]:
    """Let what starts workers of its own have all cores meanwhile."""
    if not WORKER or request.node.get_closest_marker("ray") is None:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    yield
    os.sched_setaffinity(0, own)


@pytest.fixture(scope="session", autouse=True)
def short_looks() -> Iterator[None]:
    """Let claims of other machines be looked at for a moment instead of a minute, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stitchgrid.store.lease.SILENCE_S", 0.3)
        patch.setattr("stitchgrid.store.lease.SECOND_LOOK_S", 0.3)
        patch.setattr("stitchgrid.store.lease.LOOK_S", 0.05)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory) -> Iterator[None]:
    """Leave the user's own cache alone, in processes that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STITCHGRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
