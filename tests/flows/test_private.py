"""What lies about while a launch runs is this user's alone, and code that was compared is the code that runs."""

import getpass
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_cluster import FakeWorker
from helpers_images import spec_of, whole_digest, write_folder
from helpers_models import spec
from helpers_store import make_synthetic_store

from stitchgrid import cache, resolve
from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.cluster import connection, open_executor
from stitchgrid.datasets import open_images, user_dataset
from stitchgrid.datasets.user_dataset import as_planned_now
from stitchgrid.driver import revision
from stitchgrid.errors import ClusterError, InputError
from stitchgrid.jobfile import parse_job
from stitchgrid.models import architecture
from stitchgrid.models.build import make_network
from stitchgrid.models.user_code import staged
from stitchgrid.private_folder import private_folder, private_space, read_own
from stitchgrid.records import DataSpec
from stitchgrid.resolve import loading
from stitchgrid.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no owners and modes of files")
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
NOBODY = 65534


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a folder for temporary files, in which this user has none yet."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return folder


def mine(home):
    return home / f"stitchgrid-{os.geteuid()}"


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


# The private folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_private_folder_is_closed_to_others_whatever_the_umask(home, umask):
    before = os.umask(umask)
    try:
        assert private_folder() == mine(home)
    finally:
        os.umask(before)
    assert mode(mine(home)) == 0o700
    assert private_folder() == mine(home), "and taken again"


def taken_by_a_link(folder, elsewhere):
    folder.symlink_to(elsewhere)


def taken_by_a_dangling_link(folder, elsewhere):
    folder.symlink_to(elsewhere / "gone")


def taken_by_a_file(folder, elsewhere):
    folder.touch()


def open_to_others(folder, elsewhere):
    folder.mkdir(mode=0o700)
    folder.chmod(0o711)


def in_a_folder_that_all_may_write(folder, elsewhere):
    folder.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (taken_by_a_link, "is a link"),
        (taken_by_a_dangling_link, "is a link"),
        (taken_by_a_file, "is no folder"),
        (open_to_others, r"is open to others \(mode 0711, wanted 0700\)"),
        (
            in_a_folder_that_all_may_write,
            "can be replaced by others, .* may write it without a sticky bit",
        ),
    ],
)
def test_a_name_that_is_taken_is_refused_and_left_alone(home, tmp_path, take, message):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    take(mine(home), elsewhere)
    with pytest.raises(
        InputError, match=rf"stitchgrid-.* {message}, so that others might .*; remove it, or set TMPDIR"
    ):
        private_folder()
    assert not list(elsewhere.iterdir())


def test_a_folder_of_another_user_is_refused(home, monkeypatch):
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    mine(home).mkdir(mode=0o700)
    with pytest.raises(InputError, match=rf"belongs to another user \({user}, this is {user + 1}\)"):
        private_folder()


def test_a_folder_that_all_may_write_but_not_rename_in_is_good_enough(home):
    home.chmod(0o1777)
    assert mode(private_folder()) == 0o700


def test_no_room_for_it_is_said(home, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self/none")
    with pytest.raises(InputError, match=r"the private folder /proc/self/none/stitchgrid-\d+ cannot be made"):
        private_folder()


@is_root
def test_another_user_neither_sees_nor_changes_what_is_open_below_it(home):
    for folder in (home, *home.parents):
        if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    with private_space("ray") as space:
        inside = space / "session"
        inside.mkdir()
        for path in (space, inside):
            path.chmod(0o777)  # as Ray does
        (inside / "net.py").write_text("secret")
        (inside / "net.py").chmod(0o666)
        for command in (
            ["ls", space],
            ["cat", inside / "net.py"],
            ["mv", inside, space / "other"],
            ["ls", space.parent],
        ):
            done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False)
            assert done.returncode, command
    assert not space.exists()


def test_nothing_else_makes_temporary_files():
    """But the cache's drafts, Ray's home and compiled modules, which lie in the private folder or the cache."""
    package = Path(cache.__file__).parent
    word = re.compile(r"mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile|gettempdir|[\"']/tmp")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if word.search(path.read_text())}
    assert found == {"private_folder.py", "cache.py", "cluster/connection.py", "models/module_loader.py"}


# What lies below it ---------------------------------------------------------------------------------------------------


def test_own_code_is_staged_in_the_private_folder(home, tmp_path):
    (tmp_path / "nets.py").write_text("def make(): return None")
    with staged([spec("nets.py:make", base=tmp_path)]) as package:
        assert package.is_relative_to(mine(home))
    assert not list(mine(home).iterdir())


def test_sql_spills_where_nobody_else_can_read_it(home, tmp_path):
    store = make_synthetic_store(tmp_path / "grid").store
    sql = "select hash(a.range) as h from range(3000000) as a order by h desc"
    with Catalog(store) as catalog:
        found = catalog.query("select current_setting('temp_directory') as folder").to_pylist()[0]["folder"]
        assert Path(found).parent == mine(home)
        assert mode(mine(home)) == 0o700
        catalog.query(sql)
    assert not list(mine(home).iterdir())
    assert list(home.iterdir()) == [mine(home)]


def test_sql_does_not_spill_into_a_folder_of_somebody_elses(home, tmp_path):
    store = make_synthetic_store(tmp_path / "grid").store
    taken_by_a_link(mine(home), tmp_path)
    result = CliRunner().invoke(cli, ["sql", "select 1", "--store", store.uri])
    assert (result.exit_code, "is a link" in result.output) == (2, True)


@pytest.mark.parametrize("named", [None, "/elsewhere"])
def test_compiled_networks_are_kept_in_the_private_folder_unless_the_user_says_where(tmp_path, named):
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": named} if named else {}
    (tmp_path / f"torchinductor_{getpass.getuser()}").write_text("put here by somebody")  # torch's own name for it
    code = "import os, stitchgrid.models.registry as c; c.architecture_names('*'); "
    code += "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (named or str(mine(tmp_path) / "compiled"))
    assert len(list(tmp_path.iterdir())) == (1 if named else 2)


def test_the_cache_is_refused_where_a_group_or_others_can_write_it(tmp_path, monkeypatch):
    monkeypatch.delenv("STITCHGRID_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache.default_cache()
    folder.chmod(0o707)
    with pytest.raises(InputError, match="other users can write the cache"):
        cache.default_cache()
    folder.chmod(0o700)
    assert cache.default_cache() == folder
    folder.parent.chmod(0o777)
    with pytest.raises(InputError, match="or a folder around it"):
        cache.default_cache()
    if os.geteuid() == 0:
        folder.parent.chmod(0o755)
        os.chown(folder, 0, 12_345)
        folder.chmod(0o770)
        with pytest.raises(InputError, match="other users can write the cache"):
            cache.default_cache()


@pytest.mark.ray
def test_all_of_rays_lies_in_the_private_folder_which_stays_closed_while_it_runs(monkeypatch):
    home = Path(f"/tmp/sgp-{os.getpid()}")
    home.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(home))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")])
    )
    try:
        with open_executor("local", factory=partial(FakeWorker, None), workers=1):
            assert list(home.iterdir()) == [mine(home)]
            found = [path for path in mine(home).rglob("*") if path.is_dir() and mode(path) & 0o002]
            assert found, "Ray opens what it makes to everyone"
            assert mode(mine(home)) == 0o700
            if os.geteuid() == 0:
                for command in (["ls", found[0]], ["touch", found[0] / "planted"], ["mv", found[0], home / "stolen"]):
                    assert subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=False).returncode
        assert not list(mine(home).iterdir()), "gone with the cluster"
    finally:
        shutil.rmtree(home)


def test_where_rays_folder_can_be(home, monkeypatch):
    assert connection.session_home() == Path("/tmp"), "a test's folder is too deep"
    monkeypatch.setattr(tempfile, "tempdir", "/scratch")
    assert connection.session_home() == Path("/scratch")
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    assert connection.session_home() == Path("/var/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/no-such-folder")
    with pytest.raises(
        ClusterError, match="RAY_TMPDIR names /no-such-folder, which is not a folder that you can write"
    ):
        connection.session_home()
    monkeypatch.setenv("RAY_TMPDIR", "/a" * 30)
    with pytest.raises(
        ClusterError, match=r"Ray would keep its sockets in /a.*ray999, a path of \d+ bytes, but at most"
    ):
        connection.session_home()


def test_the_record_of_a_cluster_is_taken_from_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    record = tmp_path / "ray" / "ray_current_cluster"
    record.parent.mkdir()
    record.write_text("10.0.0.9:6379")
    assert connection.find_cluster("auto") == "10.0.0.9:6379"
    user = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: user + 1)
        patch.setattr(os, "fstat", lambda _: os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, user + 2, 0, 13, 0, 0, 0)))
        with pytest.raises(ClusterError, match=r"not a file of this user.*name it: --address HOST:PORT"):
            connection.find_cluster("auto")
    other = tmp_path / "other"
    record.rename(other)
    record.symlink_to(other)
    with pytest.raises(ClusterError, match="cannot be read as a file of one's own"):
        connection.find_cluster("auto")


def test_a_pipe_is_no_file_of_ones_own_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a file of this user"):
        read_own(tmp_path / "pipe")


# The cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def default_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("STITCHGRID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "stitchgrid"


def test_the_cache_that_nobody_named_is_made_for_its_user_alone(default_cache, home, monkeypatch):
    assert cache.default_cache() == default_cache
    assert mode(default_cache) == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    assert cache.default_cache() == mine(home) / "cache"


def test_a_cache_that_others_can_write_is_taken_only_where_it_is_named(default_cache, monkeypatch):
    default_cache.mkdir(parents=True)
    default_cache.chmod(0o777)
    with pytest.raises(InputError, match=r"other users can write the cache .*set STITCHGRID_CACHE to"):
        cache.default_cache()
    monkeypatch.setenv("STITCHGRID_CACHE", str(default_cache))
    assert cache.default_cache() == default_cache


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_changes_no_file_that_its_name_leads_to_and_waits_for_no_pipe(tmp_path, kind):
    other = tmp_path / "other"
    other.write_text("kept")
    if kind == "link":
        (tmp_path / "one.lock").symlink_to(other)
    else:
        os.mkfifo(tmp_path / "one.lock")
    with cache.lock(tmp_path, "one"):
        pass
    assert other.read_text() == "kept"


@pytest.fixture
def cached(tmp_path):
    """Return a folder of images and the digests of what it holds, decoded into a cache."""
    root = write_folder(tmp_path / "images")
    return root, whole_digest(open_images(spec_of(root), cache=tmp_path / "cache"))


def another_pixel(entry):
    content = bytearray((entry / "pixels.bin").read_bytes())
    content[7] ^= 1
    (entry / "pixels.bin").write_bytes(content)


def another_label(entry):
    with np.load(entry / "index.npz") as index:
        arrays = {**index, "labels": index["labels"][::-1].copy()}
    np.savez(entry / "index.npz", **arrays)


def another_place(entry):
    with np.load(entry / "index.npz") as index:
        arrays = {**index, "offsets": index["offsets"] + 10**9}
    np.savez(entry / "index.npz", **arrays)


def another_remark(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "remarks": ["forged"]}))


def deep_remarks(entry):
    (entry / "meta.json").write_text("[" * 100_000)


def no_digest(entry):
    meta = json.loads((entry / "meta.json").read_text())
    del meta["digest"]
    (entry / "meta.json").write_text(json.dumps(meta))


def half_an_index(entry):
    (entry / "index.npz").write_bytes((entry / "index.npz").read_bytes()[:300])


def a_list(entry):
    (entry / "meta.json").write_text("[]")


CHANGES = (
    another_pixel,
    another_label,
    another_place,
    another_remark,
    deep_remarks,
    no_digest,
    half_an_index,
    a_list,
)


@pytest.mark.parametrize("change", CHANGES)
def test_cached_images_that_are_not_what_was_written_are_decoded_again(cached, tmp_path, change):
    root, digests = cached
    for entry in (tmp_path / "cache" / "images").glob("*/meta.json"):
        change(entry.parent)
    found = open_images(spec_of(root), cache=tmp_path / "cache")
    assert whole_digest(found) == digests
    assert "forged" not in str(found.notices)


def test_cached_images_are_hashed_once_where_they_are_taken(cached, tmp_path, monkeypatch):
    images = open_images(spec_of(cached[0]), cache=tmp_path / "cache")
    monkeypatch.setattr(type(images.fit), "_gather", None)
    assert whole_digest(images) == cached[1]


# Code: compared, then run ---------------------------------------------------------------------------------------------

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 10))
"""
DATA = """
import numpy as np

def make(split):
    return [(np.full((8, 8), index, np.uint8), index % 2) for index in range(40)]
"""
JOB = {
    "name": "tiny",
    "data": {
        "dataset": "data.py:make",
        "fit": {"split": "train", "samples": 20},
        "eval": {"split": "test", "samples": 10},
    },
    "models": [{"name": "net", "architecture": "nets.py:make", "weights": "random", "layers": ["2"]}],
    "matchers": [{"kind": "cka"}],
}


@pytest.fixture
def job(tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "data.py").write_text(DATA)
    return parse_job({**JOB, "data": {**JOB["data"], "labels": "agreement"}}, title="", base=tmp_path)


def swap_after(monkeypatch, where, name, path):
    """Have a file replaced by hostile code as soon as a function has returned; return the file it would make."""
    plain, marker = getattr(where, name), path.parent / "it-ran"

    def call(*arguments, **keywords):
        found = plain(*arguments, **keywords)
        path.write_text(f"open({str(marker)!r}, 'w')\n{NET if path.name == 'nets.py' else DATA}")
        return found

    monkeypatch.setattr(where, name, call)
    return marker


@pytest.fixture
def planned(job, tmp_path):
    images = resolve.open_job_images(job, cache=tmp_path / "cache")
    return resolve.resolve(job, images, Store.open(tmp_path / "grid", create=True)).sweep


def test_a_worker_runs_the_bytes_it_has_compared_whatever_lies_there_by_then(planned, job, tmp_path, monkeypatch):
    marker = swap_after(monkeypatch, loading, "code_digest", tmp_path / "nets.py")
    load = partial(resolve.load_network, planned.networks[0], Store.open(tmp_path / "grid"), device=torch.device("cpu"))
    architecture._held.clear()
    load()
    assert "it-ran" in (tmp_path / "nets.py").read_text()
    with pytest.raises(InputError, match="is not what the sweep was planned with"):
        load()
    assert not marker.exists()


def test_a_worker_runs_no_data_set_that_is_not_what_was_planned(planned, tmp_path):
    (tmp_path / "data.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n{DATA}")
    with pytest.raises(InputError, match=r"data.py is not what the sweep was planned with .*, and was not run"):
        open_images(planned.data, need_fit=planned.need_fit)
    assert not (tmp_path / "it-ran").exists()


def test_outliers_of_own_code_are_compared_too(tmp_path):
    (tmp_path / "data.py").write_text(DATA)
    data = as_planned_now(DataSpec(dataset=f"{tmp_path}/data.py:make"))
    (tmp_path / "data.py").write_text(DATA + "\n")
    with pytest.raises(InputError, match="is not what the sweep was planned with"):
        user_dataset.load_function(data)


def run(*arguments):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


@pytest.fixture
def launched(job, tmp_path):
    (tmp_path / "job.toml").write_text(
        """
name = "tiny"
[data]
dataset = "data.py:make"
labels = "agreement"
fit = { split = "train", samples = 20 }
eval = { split = "test", samples = 10 }
[[models]]
name = "net"
architecture = "nets.py:make"
weights = "random"
layers = ["2"]
[[matchers]]
kind = "cka"
"""
    )
    result = run("launch", tmp_path / "job.toml", "--store", tmp_path / "grid", "--address", "none")
    assert result.exit_code == 0, result.output
    for part in (tmp_path / "grid").rglob("*.parquet"):
        if "parts" in part.parts:
            part.unlink()
    return tmp_path


@pytest.mark.parametrize("name", ["nets.py", "data.py"])
@pytest.mark.parametrize("command", ["resume", "launch"])
def test_code_that_is_replaced_once_it_was_compared_is_not_run(launched, monkeypatch, command, name):
    from stitchgrid.driver import launch

    where, when = (revision, "own_data") if command == "resume" else (launch.HeldCode, "__init__")
    marker = swap_after(monkeypatch, where, when, launched / name)
    word = "tiny" if command == "resume" else launched / "job.toml"
    result = run(command, word, "--store", launched / "grid", "--address", "none")
    assert "it-ran" in (launched / name).read_text()
    assert not marker.exists(), result.output
    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)


EXTENSION = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "quick_t", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_quick_t(void) {
    PyObject *m = PyModule_Create(&module);
    PyModule_AddIntConstant(m, "WIDTH", NUMBER);
    return m;
}
"""


def test_a_compiled_module_is_loaded_from_the_bytes_that_were_compared(tmp_path):
    (tmp_path / "quick_t.c").write_text(EXTENSION)
    library = tmp_path / ("quick_t" + sysconfig.get_config_var("EXT_SUFFIX"))
    for number, target in ((5, library), (6, tmp_path / "other.so")):
        command = ["cc", "-shared", "-fPIC", f"-DNUMBER={number}", f"-I{sysconfig.get_path('include')}"]
        subprocess.run([*command, "-o", target, tmp_path / "quick_t.c"], check=True)
    (tmp_path / "net.py").write_text(f"import quick_t\n{NET.replace('6', 'quick_t.WIDTH')}")
    network = spec("net.py:make", base=tmp_path)
    with architecture.holding(network):
        shutil.move(tmp_path / "other.so", library)
        made = make_network(network)
    assert made[1].out_features == 5
    assert sys.modules["quick_t"].__file__ == str(library)
