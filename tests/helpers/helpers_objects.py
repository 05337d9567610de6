"""An object store for tests: moto's server in a process of its own, and a proxy before it that can be told to fail."""

import http.client
import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEYS = {"AWS_ACCESS_KEY_ID": "for-tests", "AWS_SECRET_ACCESS_KEY": "for-tests", "AWS_EC2_METADATA_DISABLED": "true"}
NOT_INHERITED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")


def free_port():
    """Return a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def moto_server():
    """Yield the endpoint of a fresh server, and set credentials in the environment meanwhile."""
    before = dict(os.environ)
    os.environ.update(KEYS)
    for name in (*NOT_INHERITED, "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_it_listens(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        os.environ.clear()
        os.environ.update(before)


def wait_until_it_listens(port):
    """Return when somebody accepts connections at the port."""
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"no server at port {port}")


def make_bucket(endpoint):
    """Return the name of a new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return name


def store_uri(endpoint, bucket, prefix="grid"):
    """Return the URI of a store at a test server."""
    return f"s3://{bucket}/{prefix}?endpoint_override={endpoint}&region=us-east-1"


@dataclass
class Fault:
    """What a proxy does to requests instead of passing them on, as often as `times` says."""

    status: int = 503
    code: str = "SlowDown"
    times: int = 10**9
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    names: str = ""  # only requests whose path holds this
    is_late: bool = False  # the request does its work, only its answer is lost
    seconds: float = 0.0  # before anything else
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def applies(self, method, path):
        if method not in self.methods or self.names not in path or len(self.seen) >= self.times:
            return False
        self.seen.append(f"{method} {path}")
        return True


class Proxy(ThreadingHTTPServer):
    """A proxy before a server; `faults` may be changed at any time, `requests` is what came."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.faults, self.requests = target, [], []
        self.lock, self.connections = threading.Lock(), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def get_request(self):
        request, address = super().get_request()
        self.connections.append(request)
        return request, address

    def end(self):
        """Stop listening, and break every connection."""
        self.shutdown()
        self.server_close()
        for one in self.connections:
            with suppress(OSError):  # it is closed already
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Say nothing of clients that went away."""

    def fault(self, method, path):
        with self.lock:
            self.requests.append(f"{method} {path}")
            return next((one for one in self.faults if one.applies(method, path)), None)


class Handler(BaseHTTPRequestHandler):
    """One request to a proxy."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def pass_on(self):
        body = self.body()
        fault = self.server.fault(self.command, self.path)
        if fault is not None:
            time.sleep(fault.seconds)
        if fault is None or fault.is_late or not fault.status:
            status, headers, content = self.ask(body)
        if fault is not None and fault.status:
            content = b"" if self.command == "HEAD" else error_body(fault.code)
            headers = [("Content-Type", "application/xml"), ("Content-Length", len(content)), *fault.headers.items()]
            status = fault.status
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            """Trailers say nothing that is needed."""
        return b"".join(pieces)

    def ask(self, body):
        """Return status, headers and content of the server's answer."""
        connection = http.client.HTTPConnection(self.server.target.removeprefix("http://"))
        left_out = {"expect", "transfer-encoding", "content-length", "connection"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        headers["Content-Length"] = str(len(body))
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        kept = [one for one in answer.getheaders() if one[0].lower() not in ("transfer-encoding", "connection")]
        if self.command != "HEAD" and answer.getheader("Content-Length") is None and answer.status != 204:
            kept.append(("Content-Length", str(len(content))))
        return answer.status, kept, content


def error_body(code):
    return f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()


@contextmanager
def proxy(target):
    """Yield a proxy before a server."""
    server = Proxy(target)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def black_hole(limit=1_000_000):
    """Yield the endpoint of a server that reads up to a limit and never answers, and a list of what it has read."""
    received, is_over = [], threading.Event()

    def listen():
        connections = [taken]
        while not is_over.is_set():
            for ready in select.select(connections if sum(map(len, received)) < limit else [], [], [], 0.05)[0]:
                if ready is taken:
                    connections.append(taken.accept()[0])
                    continue
                data = ready.recv(65536)
                received.append(data)
                if not data:
                    connections.remove(ready)
                    ready.close()
        for one in connections[1:]:
            one.close()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}", received
        finally:
            is_over.set()
            thread.join()
