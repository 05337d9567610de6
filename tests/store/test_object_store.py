"""Stores in a bucket: addresses, secrets, and what users see when the other side fails."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from helpers_objects import Fault, black_hole, free_port, make_bucket, moto_server, proxy, store_uri
from helpers_store import make_synthetic_store, plan_tables
from hypothesis import given
from hypothesis import strategies as st

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import NoStoreError, StoreError
from stitchgrid.store import Store, object_clients, object_files, object_problems
from stitchgrid.store.object_address import ObjectAddress, parse_address
from stitchgrid.store.object_problems import explain, pauses

ROOT = Path(__file__).parents[2]
SECRET = "hush-hush"
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@pytest.fixture(scope="module")
def endpoint():
    with moto_server() as found:
        yield found


@pytest.fixture
def bucket(endpoint):
    return make_bucket(endpoint)


@pytest.fixture
def between(endpoint):
    with proxy(endpoint) as found:
        yield found


@pytest.fixture
def store(between, bucket):
    return Store.open(store_uri(between.endpoint, bucket), create=True)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(object_problems, "BUSY_SECONDS", 0.5)
    monkeypatch.setattr(object_problems, "ABSENT_SECONDS", 0.5)
    monkeypatch.setattr(object_clients, "SILENCE_SECONDS", 1)


@pytest.fixture
def no_naps(monkeypatch):
    naps = []
    monkeypatch.setattr(object_files, "sleep", naps.append)
    return naps


# Addresses ------------------------------------------------------------------------------------------------------------


@given(
    prefix=st.lists(NAMES, max_size=3).map("/".join),
    endpoint=st.sampled_from([None, "http://127.0.0.1:9000", "https://minio.example.org"]),
    region=st.sampled_from([None, "eu-west-1"]),
)
def test_a_uri_leads_back_to_the_same_address(prefix, endpoint, region):
    address = ObjectAddress(bucket="bucket", prefix=prefix, endpoint=endpoint, region=region)
    assert parse_address(address.uri, {}) == address
    elsewhere = {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": "http://other:1"}
    if endpoint and region:
        assert parse_address(address.uri, elsewhere) == address


def test_what_a_uri_leaves_open_comes_from_the_environment():
    environment = {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:2", "AWS_DEFAULT_REGION": "r2"}
    found = parse_address("s3://bucket/grid/", environment)
    assert found == ObjectAddress(bucket="bucket", prefix="grid", endpoint="http://s3:2", region="r2")
    assert parse_address("s3://bucket/grid", {**environment, "AWS_REGION": "r1"}).region == "r1"
    given_there = "s3://bucket/grid?endpoint_override=minio:9000&region=r3"
    assert (
        parse_address(given_there, environment).uri == "s3://bucket/grid?endpoint_override=https://minio:9000&region=r3"
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://", "wanted a store like s3://bucket/prefix"),
        ("s3:///grid", "wanted a store like s3://bucket/prefix"),
        ("s3://bucket/a//b", "wanted a store like s3://bucket/prefix"),
        ("s3://bucket/../b", "wanted a store like s3://bucket/prefix"),
        ("s3://bucket/a#b", "wanted a store like s3://bucket/prefix"),
        ("s3://bucket/a?regoin=x", "unknown parameter 'regoin'.*did you mean 'region'"),
        ("s3://bucket/a?endpoint_override=ftp://x", "wanted an endpoint like http://127.0.0.1:9000, got 'ftp://x'"),
        ("s3://bucket/a?endpoint_override=http://x/y", "wanted an endpoint like"),
    ],
)
def test_what_is_no_address_is_refused(uri, message):
    with pytest.raises(StoreError, match=message):
        parse_address(uri, {})


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://key:{SECRET}@bucket/grid",
        f"s3://bucket/grid?access_key=key&secret_key={SECRET}",
        f"s3://bucket/grid?session_token={SECRET}",
        f"s3://bucket/grid?endpoint_override=http://key:{SECRET}@host:1",
        f"s3://bucket/grid?endpoint_override=http://127.0.0.1:1/p?sig={SECRET}",
        f"s3://bucket/grid?endpoint_override=http://127.0.0.1:1?{SECRET}",
        f"s3://bucket/grid?endpoint_override=ftp://me:{SECRET}@host",
        f"s3://bucket/grid?region=eu&endpoint_override=http://host/p?a=1&b={SECRET}",
        f"s3://bucket/../grid?region=x&X-Amz-Signature={SECRET}",
        f"s3://bucket/a//b?region=x#{SECRET}",
        f"gs://key:{SECRET}@bucket/grid",
    ],
)
def test_secrets_in_a_uri_are_refused_and_never_shown(uri):
    result = CliRunner().invoke(cli, ["status", "--store", uri])
    assert result.exit_code == 1
    assert SECRET not in result.output
    if uri.startswith("s3") and ("key" in uri or "token" in uri):
        assert "holds credentials" in result.output
        assert "AWS_ACCESS_KEY_ID" in result.output


def test_errors_themselves_hold_no_secret():
    for uri in (f"s3://bucket/x?endpoint_override=http://127.0.0.1:1/p?sig={SECRET}", f"gs://me:{SECRET}@bucket/grid"):
        with pytest.raises(StoreError) as caught:
            parse_address(uri, {})
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("command", ["sql", "plan"])
def test_no_command_shows_a_secret(command):
    argument = "select 1" if command == "sql" else "quickstart"
    result = CliRunner().invoke(cli, [command, argument, "--store", f"s3://key:{SECRET}@bucket/grid"])
    assert result.exit_code == 1
    assert "holds credentials" in result.output
    assert SECRET not in result.output


def test_nothing_of_s3_is_loaded_for_a_folder(tmp_path):
    code = "import sys; from stitchgrid.store import Store; Store.open(sys.argv[1], create=True); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code, tmp_path], text=True, cwd=ROOT).split()
    assert not {"boto3", "botocore", "stitchgrid.store.object_files"} & set(loaded)


# Opening --------------------------------------------------------------------------------------------------------------


def test_a_store_in_a_bucket_is_made_once_and_opened_by_its_uri(endpoint, bucket):
    made = Store.open(store_uri(endpoint, bucket), create=True)
    made.write_job("s", {"x": 1})
    assert Store.open(made.uri).sweep_names() == ["s"]
    assert Store.open(made.uri, create=True).sweep_names() == ["s"]


def test_a_store_may_be_a_whole_bucket(endpoint, bucket):
    made = Store.open(store_uri(endpoint, bucket, ""), create=True)
    made.write_job("s", {"x": 1})
    assert Store.open(f"s3://{bucket}/?endpoint_override={endpoint}").read_job("s") == {"x": 1}


def test_a_store_is_reached_by_the_environment_alone(endpoint, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert Store.open(f"s3://{bucket}/grid", create=True).uri == f"s3://{bucket}/grid?endpoint_override={endpoint}"


@pytest.mark.parametrize("with_boto3", [True, False])
def test_a_bucket_that_is_not_there_is_named(endpoint, monkeypatch, with_boto3):
    if not with_boto3:
        monkeypatch.setitem(sys.modules, "boto3", None)
    uri = store_uri(endpoint, "no-such-bucket")
    with pytest.raises(
        NoStoreError, match=r"no store at s3://no-such-bucket/grid.*: there is no bucket 'no-such-bucket'"
    ):
        Store.open(uri)
    with pytest.raises(StoreError, match=r"cannot write .*: there is no bucket 'no-such-bucket'; make it, or name"):
        Store.open(uri, create=True)


def test_a_prefix_without_a_store_is_no_store(endpoint, bucket):
    with pytest.raises(NoStoreError, match=r"there is no store\.json below that prefix; .*stitchgrid launch"):
        Store.open(store_uri(endpoint, bucket))


def test_an_artefact_in_a_bucket_is_named_in_full(endpoint, bucket):
    store = Store.open(store_uri(endpoint, bucket), create=True)
    store.write_artefact("network", "k", b"weights")
    [data] = [name for name in store.files.names("artefacts/network") if name.endswith(".safetensors")]
    store.files.replace(f"artefacts/network/{data}", b"other")
    with pytest.raises(StoreError, match=rf"delete s3://{bucket}/grid/artefacts/network/k\.manifest and launch again"):
        store.read_artefact("network", "k")


def test_a_catalog_reads_a_bucket_as_it_reads_a_folder(endpoint, bucket, tmp_path):
    there = make_synthetic_store(store_uri(endpoint, bucket)).store
    here = make_synthetic_store(tmp_path).store
    question = "select * from {} order by all"
    for view in ("results", "cells", "models", "layers"):
        with Catalog(there) as one, Catalog(here) as other:
            assert one.query(question.format(view)).equals(other.query(question.format(view)))
    assert [one["unit"] for one in there.attempts("synthetic")] == [one["unit"] for one in here.attempts("synthetic")]


# Credentials ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


def test_missing_credentials_are_said_to_be_missing(endpoint, bucket, nobody):
    message = r"no usable credentials were found \(Unable to locate credentials\); set AWS_ACCESS_KEY_ID and"
    with pytest.raises(StoreError, match=message):
        Store.open(store_uri(endpoint, bucket))
    with pytest.raises(StoreError, match=message):
        Store.open(store_uri(endpoint, bucket), create=True)


def test_a_profile_that_is_not_there_is_named(endpoint, bucket, nobody, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"no usable credentials were found \(.*nobody"):
        Store.open(store_uri(endpoint, bucket))


def test_new_credentials_are_used_when_old_ones_end(endpoint, bucket, monkeypatch):
    files = Store.open(store_uri(endpoint, bucket), create=True).files
    first = files._clients.reading
    assert files._clients.reading is first
    session = files._clients._session
    monkeypatch.setattr(session.get_credentials(), "access_key", "another")
    assert files._clients.reading is not first
    assert files.read("store.json")


# Answers that are no answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", r"access to the bucket '.*' is denied .*; check the credentials, and that they may s3:"),
        (403, "InvalidAccessKeyId", "access to the bucket"),
        (400, "ExpiredToken", "ExpiredToken|HTTP status 400.*check the region, the endpoint and the credentials"),
        (301, "Elsewhere", r"is in another region; set AWS_REGION, or append \?region=REGION"),
        (501, "Unheard", "501|Unheard"),
    ],
)
def test_a_refusal_is_explained_and_not_repeated(store, between, status, code, message):
    headers = {"x-amz-bucket-region": "eu-west-1"} if status == 301 else {}
    between.faults = [Fault(status=status, code=code, headers=headers)]
    calls = [lambda: store.files.read("store.json"), lambda: store.files.names("parts"), lambda: Store.open(store.uri)]
    for call in [*calls, lambda: store.files.replace("x", b"1"), lambda: store.files.delete("x")]:
        before = len(between.requests)
        with pytest.raises(StoreError, match=message):
            call()
        assert len(between.requests) - before <= (1 if status != 301 else 2)  # boto3 tries the region that it is told


@pytest.mark.parametrize("with_boto3", [True, False])
def test_a_server_that_asks_to_slow_down_is_asked_again(between, bucket, no_naps, monkeypatch, with_boto3):
    if not with_boto3:
        monkeypatch.setitem(sys.modules, "boto3", None)
    files = Store.open(store_uri(between.endpoint, bucket), create=True).files
    calls = {
        "replace": (lambda: files.replace("a/x", b"1"), None),
        "write_once": (lambda: files.write_once("a/y", b"2"), True),
        "exists": (lambda: files.exists("a/x"), True),
        "read": (lambda: files.read("a/y"), b"2"),
        "names": (lambda: files.names("a"), ["x", "y"]),
        "delete": (lambda: files.delete("a/x"), None),
    }
    for call, answer in calls.values():
        between.faults = [Fault(times=3)]
        no_naps.clear()
        assert call() == answer
        assert len(no_naps) == 3
        assert between.faults[0].seen


def test_pauses_grow_up_to_ten_seconds():
    found = list(islice(pauses(Random(0)), 12))
    assert all(0.05 * 2**k <= pause <= 0.1 * 2**k for k, pause in enumerate(found[:7]))
    assert all(5 <= pause <= 10 for pause in found[7:])


def test_patience_ends_and_says_how_long_it_lasted(store, between, impatient):
    between.faults = [Fault()]
    calls = [lambda: store.files.read("x"), lambda: store.files.names("x"), lambda: store.files.replace("x", b"")]
    for call in calls:
        with pytest.raises(StoreError, match=r"the object store is overloaded \(.*, tried for [01] s; try again later"):
            call()
    assert 3 * 3 <= len(between.requests) < 60
    between.faults = []
    assert store.files.names("") == ["store.json"]  # and it can be used again


def test_a_write_whose_answer_was_lost_is_known_to_have_won(store, between, no_naps):
    between.faults = [Fault(times=1, methods=("PUT",), is_late=True)]
    assert store.files.write_once("x", b"mine")
    assert store.files.read("x") == b"mine"
    between.faults = [Fault(times=1, methods=("PUT",), is_late=True)]
    store.files.replace("x", b"new")
    assert store.files.read("x") == b"new"


def test_a_repeated_write_that_somebody_else_overtook_has_lost(store, between, no_naps, monkeypatch):
    other = Store.open(store.uri).files
    between.faults = [Fault(times=1, methods=("PUT",), status=503)]
    monkeypatch.setattr(object_files, "sleep", lambda _: other.write_once("x", b"theirs"))
    assert not store.files.write_once("x", b"mine")
    assert store.files.read("x") == b"theirs"


def test_two_conditional_writes_at_once_are_settled_by_asking_again(store, between, no_naps):
    between.faults = [Fault(times=2, methods=("PUT",), status=409, code="ConditionalRequestConflict")]
    assert store.files.write_once("x", b"mine")
    assert len(no_naps) == 2


def test_a_server_without_conditional_writes_is_named(store, between):
    between.faults = [Fault(methods=("PUT",), status=501, code="NotImplemented")]
    with pytest.raises(StoreError, match=r"cannot write on the condition .*newer version of it, or uninstall boto3"):
        store.files.write_once("x", b"1")


def test_a_slow_server_is_waited_for(store, between):
    between.faults = [Fault(times=4, status=0, seconds=0.3)]
    store.files.replace("x", b"1")
    assert store.files.read("x") == b"1"


def test_a_silent_server_is_given_up(impatient):
    with black_hole() as (silent, _):
        for create in (True, False):
            with pytest.raises(StoreError, match=r"does not answer in time \(.*, tried for \d+ s; check the network"):
                Store.open(store_uri(silent, "bucket"), create=create)


@pytest.mark.parametrize("with_boto3", [True, False])
def test_an_endpoint_at_which_nobody_listens_is_named(monkeypatch, impatient, with_boto3, endpoint):
    if not with_boto3:
        monkeypatch.setitem(sys.modules, "boto3", None)
    nowhere = f"http://127.0.0.1:{free_port()}"
    for create in (True, False):
        with pytest.raises(
            StoreError, match=rf"{nowhere} cannot be reached \(.*, tried for \d+ s; check the network, AWS_"
        ):
            Store.open(store_uri(nowhere, "bucket"), create=create)


@pytest.mark.parametrize("kind", [OSError, ConnectionError, ValueError])
def test_what_a_client_repeats_of_an_address_is_masked(kind):
    endpoint = f"http://me:{SECRET}@host:1/p?sig={SECRET}"
    for said in (f'Could not connect to the endpoint URL: "{endpoint}"', f"curlCode: 7, {endpoint}"):
        found = explain(kind(said), bucket="b", endpoint=endpoint)
        assert SECRET not in found.reason
        assert "http://***@host:1/p?sig=***" in found.reason


def test_patience_with_the_absent_is_short():
    absent = explain(OSError("AWS Error NETWORK_CONNECTION during X: curlCode: 7, no"), bucket="b", endpoint=None)
    assert absent.patience + object_clients.CONNECT_SECONDS < 15
    assert explain(OSError("what is this"), bucket="b", endpoint=None).patience == 0


def test_a_connection_lost_in_mid_run_is_an_error_and_what_was_written_stays(endpoint, bucket, impatient):
    with proxy(endpoint) as between:
        store = Store.open(store_uri(between.endpoint, bucket), create=True)
        store.write_job("s", {"x": 1})
    with pytest.raises(StoreError, match=r"cannot be reached|does not answer"):
        store.write_plan("s", 1, **plan_tables(), info={})
    again = Store.open(store_uri(endpoint, bucket))
    assert again.read_plan("s") is None
    again.write_plan("s", 1, **plan_tables(), info={})
    assert again.read_plan("s").revision == 1


@pytest.mark.parametrize("with_boto3", [True, False])
def test_a_process_killed_in_mid_write_leaves_nothing_to_see(endpoint, bucket, with_boto3):
    code = (
        f"import sys; sys.modules.update({{}} if {with_boto3} else {{'boto3': None}})\n"
        "from stitchgrid.store.object_address import parse_address\n"
        "from stitchgrid.store.object_files import ObjectFiles\n"
        "ObjectFiles(parse_address(sys.argv[1])).replace('parts/v1/x', bytes(9_000_000))\n"
    )
    with black_hole() as (silent, received):
        uri = store_uri(silent, bucket)
        writer = subprocess.Popen([sys.executable, "-c", code, uri], cwd=ROOT, stderr=subprocess.PIPE)
        while sum(map(len, received)) < 500_000 and writer.poll() is None:
            time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    sent = b"".join(received)
    assert writer.returncode == -signal.SIGKILL
    assert sent.startswith(b"PUT /")
    assert b"uploads" not in sent.split(b"\r\n", 1)[0]  # one PUT, which a server keeps only when it is whole
    assert len(sent) < 9_000_000
    assert Store.open(store_uri(endpoint, bucket), create=True).files.names("parts/v1") == []


def test_a_process_that_used_a_bucket_ends_well(endpoint, bucket):
    uri = make_synthetic_store(store_uri(endpoint, bucket)).store.uri
    code = "import sys; from stitchgrid.store import Store; print(len(Store.open(sys.argv[1]).cell_status().damaged))"
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in uri
