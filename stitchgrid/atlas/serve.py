"""Serve the page of a store to browsers on this machine only; results of a running launch appear on it.

The server, from the standard library, listens on 127.0.0.1. Every address begins with a secret token, so neither other
users of the machine nor pages of other sites in the same browser get an answer.
"""

import gzip
import hashlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stitchgrid.atlas.page import page_content, render_content, to_json
from stitchgrid.atlas.reading import read_sweep
from stitchgrid.catalog import Catalog
from stitchgrid.errors import InputError, StitchgridError
from stitchgrid.store import Store

HOST = "127.0.0.1"
EVERY = 5.0  # seconds between two requests of a page for new data
IDLE = 15.0  # seconds after which a connection on which nothing arrives is closed
ASKING = 30.0  # seconds that a request may take to arrive, bit by bit
MOST = 64  # connections at a time; further ones are closed at once
SHARE = 4.0  # after reading the store for t seconds, it is read again no earlier than SHARE * t seconds later
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LivePage:
    """The data of the page, read from the store when requested, but not too often (see `SHARE`)."""

    def __init__(self, store: Store, sweeps: Sequence[str] = ()):
        self._store, self._sweeps = store, tuple(sweeps)
        self._lock = threading.Lock()
        self._next = -float("inf")
        self._content: dict[str, Any] = {}
        self._version, self._json = "", b""

    def look(self) -> tuple[str, bytes]:
        """Return a digest of the page's data, and the data as JSON.

        Raises:
            StitchgridError: If the store cannot be read.
        """
        with self._lock:
            began = time.monotonic()
            if began >= self._next:
                self._read()
                self._next = time.monotonic() + SHARE * (time.monotonic() - began)
            return self._version, self._json

    def page(self) -> bytes:
        """Return the page with the present data of the store.

        Raises:
            StitchgridError: If the store cannot be read.
        """
        version, _ = self.look()
        return render_content(self._content, live={"version": version, "seconds": EVERY}).encode()

    def _read(self) -> None:
        with Catalog(Store.open(self._store.uri)) as catalog:  # opened again, so that a removed store is an error
            for sweep in self._sweeps:
                catalog.require_sweep(sweep)
            names = self._sweeps or catalog.sweeps
            grids = catalog.reading(lambda: [read_sweep(catalog, name) for name in dict.fromkeys(names)])
        self._content = page_content(grids)
        self._json = to_json(self._content).encode()
        self._version = hashlib.sha256(self._json).hexdigest()[:32]


class AtlasServer(ThreadingHTTPServer):
    """Serves the page at `url`, from the call of `serve_forever` until it is stopped."""

    daemon_threads = True

    def __init__(self, following: LivePage, port: int = 0):
        self.following, self.token = following, secrets.token_urlsafe(24)
        self._free = threading.BoundedSemaphore(MOST)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as problem:
            raise InputError(
                f"cannot listen on port {port} of {HOST} ({problem.strerror}); give another --port, or leave it out."
            ) from problem

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection if there are `MOST` others."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the requests of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing if a browser closes its connection before it has the answer."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: AtlasServer
    protocol_version = default_request_version = "HTTP/1.1"  # not 0.9, which has no headers
    server_version, sys_version = "stitchgrid", ""
    timeout = IDLE

    def handle_one_request(self) -> None:
        """Answer a request; close the connection if it has not arrived after `ASKING` seconds."""
        self._patience = threading.Timer(ASKING, self._give_up)
        self._patience.daemon = True
        self._patience.start()
        try:
            super().handle_one_request()
        finally:
            self._patience.cancel()

    def _give_up(self) -> None:
        with suppress(OSError):  # it is closed already
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self._patience.cancel()
        # Against DNS rebinding: a name of another site that resolves to 127.0.0.1 arrives in the Host header.
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"wanted the address that `stitchgrid atlas --serve` shows.\n")
            return
        token, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or name not in ("", "data"):
            self._answer(HTTPStatus.NOT_FOUND, b"no page at this address.\n")
            return
        try:
            if name == "":
                self._answer(HTTPStatus.OK, self.server.following.page(), "text/html; charset=utf-8")
            else:
                self._answer_data()
        except StitchgridError as problem:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{problem}\n".encode())

    def _answer_data(self) -> None:
        version, found = self.server.following.look()
        if self.headers.get("If-None-Match") == f'"{version}"':
            self._answer(HTTPStatus.NOT_MODIFIED, b"")
            return
        self._answer(HTTPStatus.OK, found, "application/json", ETag=f'"{version}"')

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", **headers: str) -> None:
        if len(body) > 10_000 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body, headers = gzip.compress(body, 1), {**headers, "Content-Encoding": "gzip"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        """Add the headers of every answer, also of errors that the standard library answers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing, because a logged address holds the secret token."""
