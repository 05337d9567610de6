"""What holds for all tests."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CORES = sorted(os.sched_getaffinity(0))
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ...


OF_THE_TESTS = ("STITCHGRID_FUZZ_", "STITCHGRID_TEST_", "STITCHGRID_DATA")  # what they are asked for by
OF_OTHERS = ("STITCHGRID_", "_STITCHGRID_", "RAY_", "AWS_")


def pytest_configure() -> None:
    """Forget what the user has set, and give each process that runs tests a core of its own.

    Threads of several processes wait for each other on the same cores.
    """
    for name in [name for name in os.environ if name.startswith(OF_OTHERS) and not name.startswith(OF_THE_TESTS)]:
        del os.environ[name]
    if WORKER:
        os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})
    gc.disable()  # until all is imported


def pytest_collection_finish() -> None:
    """Let the garbage collector look at nothing of what was imported, which is more than a million objects."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
def nothing_of_the_user(tmp_path_factory) -> Iterator[None]:
    """Leave the user's cache and temporary files alone, in processes that tests start, too."""
    tmp_path_factory.getbasetemp()  # where it would be without this
    folder = tempfile.mkdtemp(prefix="sg")  # names of Ray's sockets are short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STITCHGRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Let this process not wait until files are on the disk: nobody pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return the synthetic store of `helpers_store`, of which tests only read."""
    from helpers_store import make_synthetic_store

    return make_synthetic_store(tmp_path_factory.mktemp("grid")).store


@pytest.fixture
def quick_fonts(monkeypatch) -> None:
    """Leave tables of ligatures and the like out of the fonts of a PDF: to reduce them takes a second a figure."""
    from fontTools import subset

    class Without(subset.Options):
        def __init__(self, **options: object):
            super().__init__(**options)
            self.drop_tables = [*self.drop_tables, "GSUB", "GPOS", "GDEF"]

    monkeypatch.setattr(subset, "Options", Without)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return where a test may keep what it made of images and weights."""
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of small images: two splits, three classes."""
    from helpers_images import write_folder

    return write_folder(tmp_path / "images")


# Pages in a browser

READS = "getImageData"  # of which Chromium says that tests do it often
CLIPBOARD = """
window.copied = [];
Object.defineProperty(navigator, "clipboard", {value: {
  writeText: async (text) => { window.copied.push(text); },
  write: async ([item]) => {
    const blob = await item.getType("image/png");
    window.copied.push([...new Uint8Array(await blob.arrayBuffer())]);
  },
}});
"""


@pytest.fixture(scope="module")
def browser():
    """Return Chromium; tests that need it are skipped where it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a page; whatever it says, asks for or does wrong fails the test."""
    from helpers_page import is_own, ready

    contexts, problems = [], []

    def visit(path, hash_="", *, width=1440, height=1000, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(CLIPBOARD)
        page.on("console", lambda message: problems.append(message.text) if READS not in message.text else None)
        page.on("pageerror", lambda problem: problems.append(f"error: {problem}"))
        page.on("request", lambda request: problems.append(request.url) if not is_own(request.url, path) else None)
        page.goto(path.as_uri() + hash_)
        ready(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not problems
