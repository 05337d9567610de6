"""A browser for the tests of pages; without Playwright or Chromium these tests are skipped."""

import shutil

import pytest
from helpers_page import is_own, ready

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
