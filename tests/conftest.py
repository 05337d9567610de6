"""What holds for all tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory) -> Iterator[None]:
    """Leave the user's own cache alone, in processes that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STITCHGRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
