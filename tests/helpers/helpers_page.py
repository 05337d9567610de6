"""Pages in a browser: their addresses, and waiting for what is drawn."""

from urllib.parse import quote

from helpers_store import SWEEP


def is_own(url, path):
    return url.split("#")[0].startswith(path.as_uri()) or url.startswith("blob:")


def ready(page):
    page.wait_for_selector('body[data-ready="true"]', state="attached", timeout=20_000)
    settle(page)


def settle(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hash_of(metric, pair, pin=None, sweep=SWEEP):
    words = {"sweep": [sweep], "metric": [metric], "pair": pair, **({"pin": pin} if pin else {})}
    return "#" + "&".join(f"{key}={','.join(quote(word, safe='') for word in found)}" for key, found in words.items())


def hash_parts(page):
    text = page.evaluate("decodeURIComponent(location.hash.slice(1))")
    return dict(part.split("=", 1) for part in text.split("&"))
