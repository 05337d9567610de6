"""The served atlas: to whom it answers, and that what is done appears on the page."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers_page import hash_of, hash_parts, settle
from helpers_store import SWEEP, find_cell, make_synthetic_store, plan_tables, planned_cells, rows_of

from stitchgrid.atlas.serve import HEADERS, HOST, AtlasServer, LivePage
from stitchgrid.catalog import Catalog
from stitchgrid.errors import InputError, QueryError
from stitchgrid.store import Store

SHARDS = sorted({cell.shard for cell in planned_cells()})


@pytest.fixture
def store(tmp_path):
    return make_synthetic_store(tmp_path / "grid").store


@pytest.fixture
def growing(tmp_path):
    """Return a store with a planned sweep of which nothing is computed."""
    store = Store.open(tmp_path / "growing", create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {"job": {"name": SWEEP}}), **plan_tables(), info={"num_shards": 4})
    return store


@pytest.fixture
def served():
    servers = []

    def serve(store, *sweeps):
        server = AtlasServer(LivePage(store, sweeps))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def get(server, path, **headers):
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


def exchange(server, request):
    """Return what the server answers to these bytes, until it closes the connection."""
    with socket.create_connection((HOST, server.server_port), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while data := connection.recv(10_000):
                answer += data
        except ConnectionError:
            pass
        return answer.decode()


def test_the_page_is_that_of_the_store_and_may_ask_its_server_alone(store, served):
    server = served(store)
    status, page, headers = get(server, f"/{server.token}/")
    assert status == 200
    assert SWEEP in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; connect-src 'self'; style-src 'sha256-")
    assert "fetch(" in page
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers


def test_nobody_without_the_secret_gets_an_answer(store, served):
    server = served(store)
    wrong = "x" * len(server.token)
    paths = ("/", "/data", f"/{wrong}/", f"/{wrong}/data", f"/{server.token}/other", f"/{server.token}/../data", "//")
    for path in paths:
        status, body, _ = get(server, path)
        assert (status, body) == (404, "no page at this address.\n"), path
    assert served(store).token != server.token


def test_a_name_of_another_site_that_leads_here_is_refused(store, served):
    server = served(store)
    status, body, _ = get(server, f"/{server.token}/", Host="evil.example")
    assert status == 421
    assert "stitchgrid atlas --serve" in body
    assert get(server, f"/{server.token}/", Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize("sent", [b"POST / HTTP/1.1\r\n\r\n", b"nothing of HTTP\r\n\r\n", b"GET /" + b"a" * 70_000])
def test_what_is_no_request_for_the_page_gets_an_error_with_the_same_headers(store, served, sent):
    answer = exchange(served(store), sent)
    assert re.match(r"HTTP/1.1 (501|400|414) ", answer)
    for name, value in HEADERS.items():
        assert answer.count(f"{name}: {value}\r\n") == 1


def test_connections_beyond_a_number_are_closed_and_the_others_are_answered(store, served, monkeypatch):
    monkeypatch.setattr("stitchgrid.atlas.serve.MOST", 2)
    server = served(store)
    held = [socket.create_connection((HOST, server.server_port), timeout=20) for _ in range(2)]
    try:
        assert exchange(server, b"") == ""
        held[0].sendall(f"GET /{server.token}/data HTTP/1.1\r\nHost: {HOST}:{server.server_port}\r\n\r\n".encode())
        assert held[0].recv(15) == b"HTTP/1.1 200 OK"
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 20
    while (answer := exchange(server, b"nothing of HTTP\r\n\r\n")) == "" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer.startswith("HTTP/1.1 400 "), "a place that is free again is taken"


def test_a_request_that_arrives_bit_by_bit_is_given_up_after_a_while(store, served, monkeypatch):
    monkeypatch.setattr("stitchgrid.atlas.serve.ASKING", 0.5)
    server = served(store)
    address = HOST, server.server_port
    with socket.create_connection(address, timeout=20) as slow, pytest.raises(OSError, match=r"Broken pipe|reset"):
        trickle(slow)
    assert get(server, f"/{server.token}/")[0] == 200


def trickle(connection):
    for _ in range(400):  # 20 seconds
        connection.sendall(b"G")
        time.sleep(0.05)


def test_an_answer_that_takes_long_is_waited_for(store, served, monkeypatch):
    monkeypatch.setattr("stitchgrid.atlas.serve.ASKING", 0.2)
    server = served(store)
    look = server.following.look

    def slowly():
        time.sleep(1.0)
        return look()

    monkeypatch.setattr(server.following, "look", slowly)
    assert get(server, f"/{server.token}/data")[0] == 200


def test_it_listens_on_the_loopback_device_alone(store, served):
    assert served(store).server_address[0] == "127.0.0.1"


def test_only_what_is_new_is_sent(growing, served):
    server = served(growing)
    _, page, _ = get(server, f"/{server.token}/")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    version = data["live"]["version"]
    assert get(server, f"/{server.token}/data", **{"If-None-Match": f'"{version}"'})[0] == 304

    fill(growing, *SHARDS[:1])
    server.following._next = 0
    status, body, headers = get(server, f"/{server.token}/data", **{"If-None-Match": f'"{version}"'})
    assert status == 200
    assert headers["ETag"] != f'"{version}"'
    assert json.loads(body)["sweeps"][0]["cells"]["done"] > 0


def test_a_store_is_not_read_more_often_than_reading_allows(store, monkeypatch):
    clock, reads = [100.0], []

    def read(_):
        reads.append(clock[0])
        clock[0] += 2  # seconds that reading takes

    monkeypatch.setattr(LivePage, "_read", read)
    monkeypatch.setattr("stitchgrid.atlas.serve.time.monotonic", lambda: clock[0])
    following = LivePage(store)
    for now in (100, 102, 109.9, 110, 111.9):
        clock[0] = now
        following.look()
    assert reads == [100, 110]


def test_what_cannot_be_served_is_said(store, served):
    with pytest.raises(QueryError, match="no planned sweep 'gird'"):
        LivePage(store, ("gird",)).look()
    taken = served(store).server_port
    with pytest.raises(InputError, match=f"cannot listen on port {taken} of 127.0.0.1"):
        AtlasServer(LivePage(store), taken)


def test_a_store_that_goes_away_is_said_to_the_page(store, served, tmp_path):
    server = served(store)
    assert get(server, f"/{server.token}/data")[0] == 200
    (tmp_path / "grid").rename(tmp_path / "elsewhere")
    server.following._next = 0
    status, body, _ = get(server, f"/{server.token}/data")
    assert status == 503
    assert "grid" in body


def test_what_is_done_appears_while_the_reader_goes_on_looking(growing, served, visit):
    fill(growing, *SHARDS[:1])
    server = served(growing)
    page = visit(Address(server.url), hash_of("cka.cka", ["net/1", "net/0"], ["conv1", "conv1"]))
    cell = find_cell(("net/1", "conv1", "net/0", "conv1"), "cka")
    before = hash_parts(page)
    assert page.locator("#lede").inner_text().count("to come")

    fill(growing, *SHARDS)
    server.following._next = 0
    page.get_by_text("214 cells done").wait_for(timeout=30_000)
    settle(page)
    assert hash_parts(page) == before
    assert "net/1" in page.locator("#sheet").inner_text() or page.locator("#tip").inner_text()
    with Catalog(growing) as catalog:
        value = catalog.query(
            "select value from results where cell_id = $id and metric = 'cka'", {"id": cell.cell_id}
        ).to_pylist()[0]["value"]
    assert f"{value:g} cka" in page.locator("#sheet").inner_text()
    assert "last update" in page.locator("#live-note").inner_text()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_command_shows_an_address_and_ends_at_ctrl_c(store):
    # Whoever runs the tests in the background may have Ctrl-C ignored, which is handed on.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [
        sys.executable,
        "-c",
        f"{heard}; from stitchgrid.cli import main; main()",
        "atlas",
        "--serve",
        "--store",
        store.uri,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", url)
        port = int(url.split(":")[2].split("/")[0])
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        connection.request("GET", f"/{url.split('/')[3]}/")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 0
        assert told == "The server has stopped.\n"
    finally:
        process.kill()


class Address(str):
    """An address in place of a file, for `visit`."""

    def as_uri(self):
        return str(self)


def fill(store, *shards):
    """Compute these shards of the synthetic sweep."""
    for shard in shards:
        store.write_part(shard, [row for cell in planned_cells() if cell.shard == shard for row in rows_of(cell)])
