"""What hostile files, names, statements and surroundings try, and what becomes of it."""

import ast
import html
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_store import SWEEP, make_row, make_synthetic_store, plan_tables, planned_cells
from hypothesis import example, given
from hypothesis import strategies as st

import stitchgrid
from stitchgrid.cli import cli
from stitchgrid.cluster.connection import Connection
from stitchgrid.errors import InputError, JobFileError, StoreError
from stitchgrid.jobfile import parse_job
from stitchgrid.models.weights import load_checkpoint
from stitchgrid.paths import check_path
from stitchgrid.printable import printable
from stitchgrid.store import Store
from stitchgrid.store.files import LocalFiles
from stitchgrid.store.snapshots import Snapshots
from stitchgrid.store.tiers import Snapshot, Tier

SOURCES = sorted(Path(stitchgrid.__file__).parent.rglob("*.py"))
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # of terminals and of reading order
NET = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))\n"
JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { split = "train", samples = 40 }
eval = { split = "test", samples = 20 }
[[models]]
name = "net"
architecture = "nets.py:make"
weights = "random"
layers = ["all"]
[[matchers]]
kind = "cka"
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    assert not STEERING.search(result.output)
    return result


# No code from data ----------------------------------------------------------------------------------------------------


def forbidden_calls(source):
    """Yield what a file calls or imports that could run code from a file, a name or a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(one.name for one in node.names)]
            yield from {"joblib", "dill", "shelve", "marshal", "commands", "pty"} & set(names)
        if not isinstance(node, ast.Call):
            continue
        word, keywords = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
        if word in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"} or word.startswith("os.exec"):
            yield word
        if re.fullmatch(r"pickle\.(load|loads|Unpickler)|joblib\..*|subprocess\.get(status)?output", word):
            yield word
        if word == "torch.load" and keywords.get("weights_only") != "True":
            yield word
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
            yield f"{word}({keywords})"


def test_nothing_in_the_package_unpickles_evaluates_or_asks_a_shell():
    found = {path.name: calls for path in SOURCES if (calls := [*forbidden_calls(path.read_text())])}
    scripts = {"hook_script.py", "pytorch_cka_script.py"}  # which `bench` gives what it has just written itself
    assert found == {name: ["torch.load"] for name in scripts}
    assert len(SOURCES) > 100


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "import joblib",
        "from joblib import load",
        "os.system('x')",
        "subprocess.run('x', shell=True)",
        "eval('1')",
        "exec('1')",
    ],
)
def test_the_scan_finds_what_it_looks_for(source):
    assert [*forbidden_calls(source)]


class Bomb:
    """Runs a shell command where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def bomb(tmp_path):
    marker = tmp_path / "it-ran"
    yield pickle.dumps({"weight": Bomb(marker)})
    assert not marker.exists()


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".safetensors", ""])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, bomb, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(bomb)
    reason = "damaged, truncated or no" if suffix == ".safetensors" else "reading it could run code, so it is not read"
    with pytest.raises(InputError, match=reason):
        load_checkpoint(path)


def test_bombs_in_a_store_do_not_go_off(tmp_path, bomb):
    store = make_synthetic_store(tmp_path / "grid").store
    store.compact()
    root, digest, number = tmp_path / "grid", "0" * 32, 0
    for path in [one for one in root.rglob("*") if one.is_file() and one.name != "store.json"]:
        path.write_bytes(bomb)
        number += 1
    places = f"parts/v1/s-{digest}-1.parquet", f"artefacts/network/{digest}-{digest}.safetensors", "parts/v1/x.pkl"
    for place in (*places, f"artefacts/network/{digest}.manifest", f"artefacts/evaluation/{digest}.manifest"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(bomb)
    with pytest.raises(StoreError):
        store.read_artefact("network", digest)
    for command in (["status"], ["query", "best_source"], ["sql", "from results"], ["compact"]):
        CliRunner().invoke(cli, [*command, "--store", str(root)])
    report = json.loads(run("check", "--format", "json", "--store", root, code=1).stdout)
    assert len(report["findings"]) > number / 2


# Names ----------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../evil",
    "/tmp/evil",
    "..",
    "nul\0byte",
    "bell\x07",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; drop table results; --",
    "$(touch evil) `touch evil`",
    "x" * 10_000,
    "\u202egnp.exe",
    "🦆e\u0301",
    "line\nError: forged",
    "C:\\evil",
    "~nobody-of-that-name/x",
    "a b",
]
PLACES = [
    "name",
    "models.net.name",
    "models.net.layers",
    "models.net.weights",
    "models.net.architecture",
    "models.net.args",
    "data.root",
    "data.fit.split",
    "matchers.cka.kind",
    "matchers.cka.samples",
    "grid.pairs",
]


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def job(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "nets.py").write_text(NET)
    return tmp_path / "job.toml"


def put(place, bad):
    """Return the options that put a string at a place of the job."""
    shown = json.dumps(bad)
    values = {
        "models.net.layers": f"[{shown}]",
        "models.net.architecture": json.dumps(f"{bad}.py:make"),
        "models.net.args": f"{{{shown} = {shown}}}",
    }
    kind = ["--set", 'data={dataset="imagefolder"}'] if place == "data.root" else []
    return [*kind, "--set", f"{place}={values.get(place, shown)}"]


@pytest.mark.parametrize("place", PLACES)
def test_hostile_strings_in_a_job_are_refused_in_words_and_write_nothing(job, place):
    before = files_in(job.parent)
    for bad in HOSTILE:
        arguments = "launch", job, "--dry-run", "--store", job.parent / "grid", *put(place, bad)
        found = CliRunner().invoke(cli, [str(one) for one in arguments])
        # A long name is only long, and a glob beside others may match nothing.
        harmless = found.exit_code == 0 and (len(bad) > 1_000 or place == "models.net.layers")
        assert harmless or (found.exit_code == 2 and re.search(r"^Error: ", found.stderr, re.MULTILINE)), bad
        assert not STEERING.search(found.output)
    assert files_in(job.parent) == before


def test_names_that_no_folder_of_a_store_can_have_are_refused_at_once(job):
    for bad in (".hidden", "x" * 151):
        said = run("launch", job, "--store", job.parent / "grid", "--set", f"name={bad}", code=2).stderr
        assert "a sweep is a folder in the store: no dot in front, at most 150 letters, got" in said
    assert not (job.parent / "grid").exists()


def test_keys_of_a_job_can_forge_no_line(job):
    job.write_text(JOB + '\n["recipes"."x\\n  - forged\\u001b"]\nepochs = 1\n["a\\nb"]\n')
    said = run("plan", job, code=2).stderr.splitlines()
    assert len(said) == 3
    assert said[0].endswith("2 problems in this job file")


@given(st.text(max_size=40), st.sampled_from(["name", "model", "recipe", "root", "weights"]))
@example("..", "name")
@example("a\n", "name")
@example("a\0b", "root")
@example("\ud800", "root")
def test_whatever_a_name_is_the_job_is_parsed_or_refused(text, place):
    model = {"name": "net", "architecture": "stitchgrid:resnet20", "weights": "random"}
    table = {"name": "tiny", "data": {"dataset": "digits"}, "models": [model], "matchers": [{"kind": "cka"}]}
    if place == "recipe":
        table["recipes"] = {text: {"epochs": 1}}
    elif place == "name":
        table["name"] = text
    elif place == "root":
        table["data"]["root"] = text
    else:
        model[{"model": "name"}.get(place, place)] = text
    try:
        found = parse_job(table, title="job", base=Path("/nowhere"))
    except JobFileError:
        return
    found.data_spec(), found.network_specs()
    assert place in ("root", "weights") or re.fullmatch(r"[A-Za-z0-9._-]+", text)
    assert place != "name" or Path("/grid/sweeps", text).parent == Path("/grid/sweeps")
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", r"a path has no control characters, got 'a\\x00b'"),
        ("x" * 256, "too long for a path: 'xxx"),
        ("x/" * 2048, "too long for a path: 'x/x"),
        ("~nobody-of-that-name/x", "no user has the home that '~nobody-of-that-name/x' starts with"),
    ],
)
def test_what_cannot_be_a_path_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        check_path(path)


@pytest.mark.parametrize("bad", HOSTILE)
def test_hostile_words_on_the_command_line_end_in_words(tmp_path, bad):
    store = "--store", make_synthetic_store(tmp_path / "grid").store.uri
    before = files_in(tmp_path)
    for command in (
        ["status", bad, *store],
        ["logs", bad, *store],
        ["logs", SWEEP, bad, *store],
        ["resume", bad, "--address", "none", *store],
        ["atlas", bad, "--out", tmp_path / "atlas.html", *store],
        ["report", bad, "--out", tmp_path / "report.html", *store],
        ["answer", bad, *store],
        ["answer", "--target", bad, "--source", bad, "--matcher", bad, *store],
        ["query", bad, *store],
        ["query", f"{bad}.sql", *store],
        ["query", "best_source", "--param", f"sweep={bad}", *store],
        ["sql", bad, *store],
        ["launch", bad, "--dry-run"],
        ["layers", f"{bad}.py:make"],
        ["check", "--store", bad],
    ):
        result = CliRunner().invoke(cli, [str(one) for one in command])
        assert isinstance(result.exception, SystemExit), command
        assert result.exit_code in (1, 2), command
        assert not STEERING.search(result.output), command
    assert files_in(tmp_path) == before


@given(st.text())
def test_printable_text_keeps_its_length_and_steers_nothing(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert not STEERING.search(shown)
    assert printable(shown) == shown
    shown.encode()


@pytest.fixture
def hostile_store(tmp_path):
    """Make a store in which every name and text that a user's code can choose is hostile."""
    names = {"net/0": HOSTILE[7], "net/1": HOSTILE[8], "conv1": HOSTILE[5], "block1": HOSTILE[9], "block2": HOSTILE[12]}
    fields = {"source_model", "target_model", "model", "entry", "source_layer", "target_layer", "layer", "node"}
    tables = plan_tables()
    for name, table in tables.items():
        rows = [{k: names.get(v, v) if k in fields else v for k, v in row.items()} for row in table.to_pylist()]
        tables[name] = type(table).from_pylist(rows, schema=table.schema)
    store = Store.open(tmp_path / "grid", create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **tables, info={})
    texts = ["".join(HOSTILE[5:10]), *HOSTILE[5:]]
    rows = [
        replace(make_row(cell, None, None), status="failed", error=f"ValueError: {texts[number % len(texts)]}")
        if cell.matcher == "cka"
        else make_row(cell, cell.metrics[0], 0.5)
        for number, cell in enumerate(planned_cells())
    ]
    store.write_part("shard", rows)
    store.write_log(SWEEP, "shard", texts[0])
    beat = {"at": "2999-01-01T00:00:00+00:00", "stage": texts[0], "host": texts[0], "num_total": 1, "seconds": 1}
    store.write_heartbeat(SWEEP, {**beat, "noun": texts[0], "running": []})
    return store.uri


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--format", "json"],
        ["logs", SWEEP],
        ["logs", SWEEP, "shard"],
        ["query", "failures"],
        ["query", "best_source", "--format", "markdown"],
        ["query", "misleading"],
        ["report", "--format", "markdown"],
        ["answer"],
        ["answer", "--format", "markdown"],
        ["query", "best_source", "--param", f"sweep={SWEEP}"],
        ["sql", "select distinct source_model, source_layer, error from cells"],
        ["sql", "select distinct {'error': error} as it from cells", "--format", "markdown"],
        ["sql", 'select 1 as "\x1b[31m"', "--format", "markdown"],
        ["sql", "select \x1b from"],
    ],
)
def test_what_a_store_holds_cannot_steer_the_terminal(hostile_store, command):
    result = CliRunner().invoke(cli, [*command, "--store", hostile_store])
    assert isinstance(result.exception, SystemExit | None)
    assert result.output
    assert not STEERING.search(result.output)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_formats_for_programs_lose_nothing_unless_a_terminal_reads_them(hostile_store, form, monkeypatch):
    statement = "select distinct source_layer from cells where source_layer like '%red%'"
    command = ["sql", statement, "--format", form, "--store", hostile_store]
    read = CliRunner().invoke(cli, command).stdout
    assert HOSTILE[5] in (json.loads(read)[0]["source_layer"] if form == "json" else read)
    monkeypatch.setattr("stitchgrid.cli.files_out.is_terminal", lambda: True)
    assert not STEERING.search(CliRunner().invoke(cli, command).stdout)


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, sorted(dict(attrs).items() - {("id", "x")})))


@pytest.mark.usefixtures("quick_fonts")
def test_names_add_no_element_and_no_attribute_to_the_page(hostile_store, tmp_path):
    plain = make_synthetic_store(tmp_path / "plain").store.uri
    pages = []
    for number, store in enumerate((plain, hostile_store)):
        out = tmp_path / f"{number}.html"
        run("atlas", "--out", out, "--figures", tmp_path / f"figures{number}", "--store", store)
        pages.append(out.read_text())
    ours, theirs = (Elements(page).found for page in pages)
    assert theirs == ours
    assert not any(name.startswith("on") for _, attributes in theirs for name, _ in attributes)
    assert html.unescape(pages[1]).count("<script>alert") == 0
    assert [path.name for path in (tmp_path / "figures0").iterdir()] != []
    assert not (tmp_path / "evil").exists()


# SQL ------------------------------------------------------------------------------------------------------------------

REFUSED = [
    "copy results to '{outside}/made.csv'",
    "copy (select 1) to '{outside}/made.parquet' (format parquet)",
    "copy results from '{outside}/secret.csv'",
    "explain analyze copy (select 1) to '{outside}/made.csv'",
    "export database '{outside}/made'",
    "import database '{outside}'",
    "attach '{outside}/made.db' as other",
    "install httpfs",
    "load httpfs",
    "select * from '{outside}/secret.csv'",
    'select * from "{outside}/secret.csv"',
    "from read_csv('{outside}/secret.csv')",
    "from read_csv_auto('{outside}/secret.csv')",
    "from read_text('{outside}/*')",
    "from read_blob('{outside}/secret.csv')",
    "from read_json('{outside}/secret.csv')",
    "from read_parquet('{outside}/*.parquet')",
    "from parquet_metadata('{outside}/x.parquet')",
    "from glob('{outside}/*')",
    "from sniff_csv('{outside}/secret.csv')",
    "from query('from read_text(''{outside}/secret.csv'')')",
    "from query_table('{outside}/secret.csv')",
    "from json_execute_serialized_sql(json_serialize_sql('from read_text(''{outside}/secret.csv'')'))",
    "from from_substrait_json('x')",
    "describe select * from '{outside}/secret.csv'",
    "summarize '{outside}/secret.csv'",
    "explain analyze select * from read_text('{outside}/secret.csv')",
    "with x as (from read_text('{outside}/secret.csv')) from x",
    "with x as (insert into results values (1) returning *) select * from x",
    "set enable_external_access = true",
    "set global allowed_directories = ['{outside}']",
    "set file_search_path = '{outside}'",
    "set temp_directory = '{outside}'",
    "set variable x = 1",
    "reset lock_configuration",
    "pragma database_list",
    "select getenv('CANARY')",
    "create function f(a) as a",
    "create macro f(a) as table from read_text(a)",
    "create secret s (type s3, key_id 'x', secret 'y')",
    "prepare p as select 1",
    "execute p",
    "deallocate p",
    "select 1; copy (select 1) to '{outside}/made.csv'",
    "select * from SOURCES",
    "select * from SWEEP",
    "call pragma_version(); select 1",
    "force checkpoint",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_synthetic_store(tmp_path_factory.mktemp("sound") / "grid").store


@pytest.mark.parametrize("statement", REFUSED)
def test_sql_reaches_no_file_and_no_setting(sound, tmp_path, monkeypatch, statement):
    monkeypatch.setenv("CANARY", "canary-of-the-environment")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.csv").write_text("a,b\n1,canary-of-the-file\n")
    written = statement.format(outside=outside)
    (tmp_path / "asked.sql").write_text(f"-- Question?\n{written}\n")
    monkeypatch.chdir(outside)
    before = files_in(tmp_path)
    for command in (["sql", written], ["query", tmp_path / "asked.sql"]):
        said = run(*command, "--store", sound.uri, code=2).output
        assert "canary" not in said.replace(written, "")
        assert files_in(tmp_path) == before


def test_the_commands_that_a_launch_of_a_dashed_name_proposes_can_be_pasted(job, monkeypatch):
    monkeypatch.chdir(job.parent)
    said = run("launch", job, "--store", "here", "--address", "none", "--set", "name=-rf").stdout
    [line] = [line.strip() for line in said.splitlines() if line.strip().startswith("stitchgrid atlas")]
    run(*shlex.split(line)[1:])
    assert "-rf" in Path("atlas.html").read_text()


# A store that names files elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "parts/../../x", ".."])
def test_no_name_leads_out_of_a_store(tmp_path, name):
    with pytest.raises(StoreError, match="is no file of the store"):
        LocalFiles(tmp_path).read(name)


def test_a_snapshot_that_names_files_elsewhere_neither_moves_nor_deletes_them(tmp_path):
    victim = tmp_path / f"000001-{'0' * 32}-1.parquet"
    victim.write_text("mine")
    store = make_synthetic_store(tmp_path / "grid").store
    tier = Tier(file=f"../{victim.name}", num_rows=1, ids="")
    evil = Snapshot(number=1, tiers=(tier,), replaces=frozenset({f"../../../{victim.name}"}))
    assert Snapshots(store.files).publish(evil)
    for command, code in ((["status"], 0), (["check"], 1), (["check", "--repair"], 0), (["compact"], 0)):
        run(*command, "--store", store.uri, code=code)
    assert victim.read_text() == "mine"


# Code named in a job --------------------------------------------------------------------------------------------------

LOUD_NET = NET + "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\n"


@pytest.fixture
def launched(job):
    """Launch a job with an own file; return its folder, without the marker that running the file leaves."""
    (job.parent / "nets.py").write_text(LOUD_NET)
    run("launch", job, "--store", job.parent / "grid", "--address", "none")
    (job.parent / "it-ran").unlink()
    return job.parent


def test_commands_that_ask_never_run_code_of_the_job(launched):
    before = set(sys.modules)
    store = "--store", launched / "grid"
    (launched / "nets.py").write_text(LOUD_NET + "# changed, so that no module of it is known\n")
    for command in (
        ["status"],
        ["query", "best_source"],
        ["answer"],
        ["sql", "from models"],
        ["atlas", "--out", launched / "atlas.html"],
        ["check"],
        ["compact"],
        ["logs", "tiny"],
    ):
        run(*command, *store)
    assert not (launched / "it-ran").exists()
    assert not [name for name in set(sys.modules) - before if name.startswith("stitchgrid_own")]
    run("plan", launched / "job.toml", *store)
    assert (launched / "it-ran").exists()  # the marker works


def test_a_module_that_changed_since_is_refused_by_resume_without_running_its_package(job, monkeypatch):
    package = job.parent / "own_package_that_changes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(NET)
    monkeypatch.syspath_prepend(job.parent)
    words = ["--set", "models.net.architecture=own_package_that_changes.nets:make"]
    run("launch", job, "--store", job.parent / "grid", "--address", "none", *words)
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]
    (package / "__init__.py").write_text("raise SystemExit('it ran')\n")
    (package / "nets.py").write_text(NET + "# changed\n")
    said = run("resume", "tiny", "--store", job.parent / "grid", "--address", "none", code=2).stderr
    assert "own_package_that_changes.nets:make" in said


def test_code_that_changed_since_is_refused_by_resume(launched):
    before = files_in(launched / "grid" / "parts")
    (launched / "nets.py").write_text(LOUD_NET + "# changed\n")
    said = run("resume", "tiny", "--store", launched / "grid", "--address", "none", code=2).stderr
    assert "code of sweep 'tiny' has changed since it was planned, and was not run" in said
    assert "nets.py:" in said
    assert not (launched / "it-ran").exists()
    assert files_in(launched / "grid" / "parts") == before


# Secrets --------------------------------------------------------------------------------------------------------------

CANARY = "canary7f3a91"
SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "GITHUB_TOKEN")


def test_secrets_of_the_environment_are_in_no_file_and_no_output(job):
    folder = job.parent
    secrets = dict.fromkeys(SECRET_VARIABLES, CANARY)
    environment = {**os.environ, **secrets, "STITCHGRID_LOG": "debug", "PYTHONPATH": str(SOURCES[0].parents[1])}
    command = [sys.executable, "-m", "stitchgrid.cli"]

    def said(*arguments):
        done = subprocess.run(
            [*command, *map(str, arguments)], env=environment, cwd=folder, capture_output=True, check=True
        )
        return done.stdout + done.stderr

    output = said("launch", job, "--address", "none") + said("atlas")
    assert b"cells are there" in output
    assert CANARY.encode() not in output
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".parquet", ".json", ".log", ".html"}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("uri", ["s3://me:{}@bucket/grid", "s3://bucket/grid?secret_key={}"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(job, uri):
    said = run("launch", job, "--store", uri.format(CANARY), "--address", "none", code=1).output
    assert "credentials in a store's URI would end in logs" in said
    assert CANARY not in said


# Clusters and archives ------------------------------------------------------------------------------------------------


def test_the_tests_of_local_clusters_look_at_who_may_connect():
    """Starting one takes long: tests/cluster/test_cluster.py does; here, that it goes on looking."""
    text = (Path(__file__).parents[1] / "cluster" / "test_cluster.py").read_text()
    assert 'host == "127.0.0.1"' in text
    assert "RAY_AUTH_TOKEN" in text
    assert Connection


def add(tar, name, *, kind=tarfile.REGTYPE, link="", data=b"not an image"):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    tar.addfile(member, BytesIO(data) if kind == tarfile.REGTYPE else None)


def test_an_archive_reaches_and_makes_no_file_outside(job):
    folder = job.parent
    (folder / "secret.png").write_bytes(b"canary-of-the-file")
    with tarfile.open(folder / "images.tar", "w") as tar:
        for split in ("train", "test"):
            add(tar, f"{split}/cat/../../../evil.png")
            add(tar, f"/{folder}/evil/cat/x.png")
            add(tar, f"../../{split}/evil/x.png")
            add(tar, f"{split}/cat/link.png", kind=tarfile.SYMTYPE, link=str(folder / "secret.png"))
            add(tar, f"{split}/cat/hard.png", kind=tarfile.LNKTYPE, link="../../secret.png")
            add(tar, f"{split}/cat/pipe.png", kind=tarfile.FIFOTYPE)
            add(tar, f"{split}/cat/\x1b[31m.png")
    before = files_in(folder)
    data = 'data={dataset="imagefolder",root="images.tar"}'
    said = run("launch", job, "--store", folder / "grid", "--address", "none", "--set", data, code=2).output
    assert "cannot be read, or is a link" in said
    assert "evil" not in said
    assert "canary" not in said
    made = set(files_in(folder)) - set(before)
    assert all(path.is_relative_to(folder / "grid") for path in made)
