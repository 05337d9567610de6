"""Files and packages that a job names reach workers that do not see them, as they were when the job was planned."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers_models import spec

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.cluster.connection import Connection
from stitchgrid.datasets import open_images
from stitchgrid.driver.launch import Launch
from stitchgrid.driver.revision import check_same_code, code_record
from stitchgrid.driver.stages import Stages
from stitchgrid.errors import ClusterError, InputError, JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.models.architecture import code_digest
from stitchgrid.models.build import build_network, make_network
from stitchgrid.models.module_search import Search
from stitchgrid.models.shipped_code import PACKAGE, as_planned, sent
from stitchgrid.models.user_code import MAX_BYTES, staged
from stitchgrid.records import DataSpec, digest
from stitchgrid.resolve import load_network, resolve
from stitchgrid.store import Store

NET = """
from torch import nn

def make(width=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 10))
"""
OTHER_NET = NET.replace("width=6", "width=7")
PACKAGE_NET = "from own_package_of_a_test.parts import WIDTH\n" + NET.replace("width=6", "width=WIDTH")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make a job's folder with two files, and a package that only this process is told of."""
    (tmp_path / "gone.py").write_text(NET)
    (tmp_path / "changed.py").write_text(OTHER_NET)
    package = tmp_path / "elsewhere" / "own_package_of_a_test"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__pycache__" / "junk.pyc").touch()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("WIDTH = 5\n")
    (package / "nets.py").write_text(PACKAGE_NET)
    monkeypatch.syspath_prepend(package.parent)
    yield tmp_path
    forget()


def forget():
    for name in [name for name in sys.modules if name.startswith("own_package_of_a_test")]:
        del sys.modules[name]


@pytest.fixture
def at_a_worker(monkeypatch):
    """Make this process one to which a package was sent."""

    def arrive(package):
        monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
        sent.cache_clear()
        forget()

    yield arrive
    sent.cache_clear()
    sys.modules.pop(PACKAGE, None)


def all_specs(own):
    words = "gone.py:make", "changed.py:make", "own_package_of_a_test.nets:make", "torchvision:resnet18"
    return [spec(word, base=own) for word in words]


def test_nothing_is_staged_for_libraries_and_installed_packages():
    with staged([spec("torchvision:resnet18"), spec("torchvision.models.squeezenet:squeezenet1_1")]) as package:
        assert package is None


def test_what_is_staged_is_what_the_job_names_and_nothing_that_python_made_of_it(own):
    with staged(all_specs(own)) as package:
        files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
        assert package.name == PACKAGE
    assert not package.exists()
    assert {name for name in files if name.startswith("modules/")} == {
        f"modules/own_package_of_a_test/{name}.py" for name in ("__init__", "parts", "nets")
    }
    assert len(files) == 3 + 4  # with __init__.py, the manifest, and the two files


def test_a_worker_runs_an_own_file_as_it_was_planned(own, at_a_worker):
    gone, changed, *_ = all_specs(own)
    planned = code_digest(gone), code_digest(changed)
    with staged([gone, changed]) as package:
        (own / "gone.py").unlink()
        (own / "changed.py").write_text(NET)
        with pytest.raises(InputError, match="there is no file"):
            build_network(gone)
        at_a_worker(package)
        assert (code_digest(gone), code_digest(changed)) == planned
        assert [build_network(one)[1].out_features for one in (gone, changed)] == [6, 7]


def test_a_file_that_is_as_planned_is_run_where_it_lies(own, at_a_worker):
    with staged(all_specs(own)) as package:
        at_a_worker(package)
        assert as_planned(own / "gone.py") == own / "gone.py"
        assert as_planned(own / "other.py") == own / "other.py"


def test_a_worker_imports_an_own_package_as_it_was_planned(own, at_a_worker):
    network = all_specs(own)[2]
    assert make_network(network)[1].out_features == 5
    with staged([network]) as package:
        (own / "elsewhere" / "own_package_of_a_test" / "parts.py").write_text("WIDTH = 9\n")
        at_a_worker(package)
        assert make_network(network)[1].out_features == 5
        assert Path(sys.modules["own_package_of_a_test"].__file__).is_relative_to(package)


@pytest.fixture
def helped(own):
    """Make a file that needs a module and packages beside it, one of them with data that its code reads."""
    (own / "helped.py").write_text(
        "from beside import WIDTH\nimport small.part, large.part, spaced.part\n" + NET_OF_WIDTH
    )
    (own / "beside.py").write_text("from small import read\nWIDTH = read()\n")
    for name, init in (("small", READS), ("large", ""), ("spaced", None)):
        (own / name).mkdir()
        (own / name / "part.py").write_text("import own_package_of_a_test.parts\n")
        (own / name / "width.txt").write_text("8")
        if init is not None:
            (own / name / "__init__.py").write_text(init)
    with (own / "large" / "images.bin").open("wb") as file:
        file.truncate(2 * MAX_BYTES)
    return spec("helped.py:make", base=own)


NET_OF_WIDTH = NET.replace("width=6", "width=WIDTH")
READS = """
from pathlib import Path

def read():
    return int(Path(__file__).with_name("width.txt").read_text())
"""


def test_a_worker_that_sees_nothing_of_it_has_all_that_a_file_imports(own, helped, at_a_worker):
    planned = code_digest(helped)
    with staged([helped]) as package:
        files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
        for name in ("small", "large", "spaced", "elsewhere"):
            (own / name).rename(own / f"{name}_is_gone")
        for name in ("helped.py", "beside.py"):
            (own / name).unlink()
        at_a_worker(package)
        assert code_digest(helped) == planned
        assert make_network(helped)[1].out_features == 8
    assert {name for name in files if name.startswith("beside_0/")} == {
        f"beside_0/{name}"
        for name in (
            *("helped.py", "beside.py", "small/__init__.py", "small/part.py", "small/width.txt"),
            *("large/__init__.py", "large/part.py", "spaced/part.py", "spaced/width.txt"),  # too large: its code alone
        )
    }


def test_a_worker_that_sees_other_code_runs_what_was_planned(own, helped, at_a_worker):
    planned = code_digest(helped)
    with staged([helped]) as package:
        (own / "beside.py").write_text("WIDTH = 1\n")
        (own / "small" / "__init__.py").write_text("def read(): return 2\n")
        (own / "large" / "part.py").write_text("raise SystemExit\n")
        assert code_digest(helped) != planned
        at_a_worker(package)
        assert code_digest(helped) == planned
        assert make_network(helped)[1].out_features == 8


def test_a_worker_does_not_import_code_that_is_not_what_was_planned(own, helped, tmp_path):
    images = open_images(
        DataSpec(dataset="digits", root=None, seed=0, fit_split="train", eval_split="test"), need_fit=9
    )
    job = parse_job({**tomllib.loads(JOB), "models": [HELPED]}, title="", base=own)
    store = Store.open(tmp_path / "grid", create=True)
    [network] = resolve(job, images, store).sweep.networks
    assert network.code == code_digest(network.spec)
    load_network(network, store, device=torch.device("cpu"))
    (own / "large" / "part.py").write_text(f"open({str(own / 'ran')!r}, 'w')\n")
    with pytest.raises(
        InputError, match=r"the code behind model 'helped' \(helped.py:make\) is not what the sweep was planned with"
    ):
        load_network(network, store, device=torch.device("cpu"))
    assert not (own / "ran").exists()


def test_a_module_that_is_one_file_is_sent_alone(own, monkeypatch):
    (own / "one_file_of_a_test.py").write_text(NET)
    monkeypatch.syspath_prepend(own)
    with staged([spec("one_file_of_a_test:make")]) as package:
        assert [path.name for path in (package / "modules").iterdir()] == ["one_file_of_a_test.py"]


def test_a_package_too_large_to_be_sent_is_refused(own, monkeypatch):
    with (own / "elsewhere" / "own_package_of_a_test" / "data.bin").open("wb") as file:
        file.truncate(2 * MAX_BYTES)
    with (
        pytest.raises(InputError, match=r"own_package_of_a_test is sent .* 40 MB, more than the 20 MB allowed"),
        staged(all_specs(own)),
    ):
        pass


def test_a_file_that_imports_what_is_not_there_is_told_where_modules_are_looked_for(own):
    (own / "neighbour.py").write_text("import gone_of_a_test\n")
    with pytest.raises(
        InputError,
        match=r"neighbour.py does not run: ModuleNotFoundError.*\(neighbour.py, line 1\).*beside the file, beside",
    ):
        build_network(spec("neighbour.py:make", base=own))


JOB = """
name = "own"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
eval = { split = "test", samples = 32 }
[[models]]
name = "gone"
architecture = "gone.py:make"
weights = "random"
layers = ["2"]
[[models]]
name = "changed"
architecture = "changed.py:make"
weights = "random"
layers = ["2"]
[[matchers]]
kind = "cka"
"""
HELPED = {"name": "helped", "architecture": "helped.py:make", "weights": "random", "layers": ["2"]}
TRAINED = """
[[models]]
name = "trained"
architecture = "own_package_of_a_test.nets:make"
weights = { train = "short" }
layers = ["2"]
[recipes.short]
epochs = 1
"""


def launch(own, store, *flags):
    return CliRunner().invoke(cli, ["launch", str(own / "job.toml"), "--store", str(own / store), *flags])


@pytest.fixture
def change_after_planning(own, monkeypatch):
    """Change the files once all is planned and trained, before any network of the sweep is loaded."""
    plain = Launch._measure

    def change(*names):
        def measure(self, *arguments):
            if "gone" in names:
                (own / "gone.py").unlink(missing_ok=True)
            if "changed" in names:
                (own / "changed.py").write_text(NET)
                (own / "helper_of_changed.py").unlink(missing_ok=True)
            return plain(self, *arguments)

        monkeypatch.setattr(Launch, "_measure", measure)

    return change


def values(store):
    """Return the values between the networks that are not trained: training is not the same to the last digit."""
    untrained = "source_model != 'trained' and target_model != 'trained'"
    with Catalog(Store.open(store)) as catalog:
        rows = catalog.query(
            f"select cell_id, metric, round(value, 5) as value from results where {untrained} order by all"
        )
        return rows.to_pylist()


@pytest.mark.ray
def test_a_sweep_on_ray_is_computed_as_planned_whatever_becomes_of_its_files(own, change_after_planning):
    (own / "job.toml").write_text(JOB + TRAINED)
    (own / "changed.py").write_text("from helper_of_changed import WIDTH\n" + NET_OF_WIDTH)
    (own / "helper_of_changed.py").write_text("WIDTH = 7\n")
    alone = launch(own, "alone", "--address", "none")
    assert alone.exit_code == 0, alone.output
    change_after_planning("gone", "changed")
    there = launch(own, "ray", "--workers", "1")
    assert there.exit_code == 0, there.output
    assert values(own / "ray") == values(own / "alone")
    assert len(values(own / "ray")) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "there is no file .*gone.py"),
        ("changed", r"the code behind model 'changed' \(changed.py:make\) is not what the sweep was planned with"),
    ],
)
def test_in_this_process_a_file_that_changed_stops_the_launch(own, monkeypatch, change_after_planning, name, message):
    monkeypatch.setattr("stitchgrid.models.held.MOST_PARAMETERS", 0)  # networks are built again, as elsewhere
    (own / "job.toml").write_text(JOB)
    change_after_planning(name)
    result = launch(own, "grid", "--address", "none")
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output


def test_networks_that_were_built_for_the_plan_are_as_planned_whatever_becomes_of_their_files(
    own, change_after_planning
):
    (own / "job.toml").write_text(JOB)
    assert launch(own, "before", "--address", "none").exit_code == 0
    change_after_planning("changed")
    assert launch(own, "after", "--address", "none").exit_code == 0
    assert values(own / "after") == values(own / "before")


def test_a_clash_with_the_runtime_environment_of_a_submitted_job_is_explained(own, monkeypatch):
    import ray

    def refuse(**options):
        assert options["runtime_env"] == {"py_modules": [str(own)]}
        raise ValueError("Failed to merge the Job's runtime env {} with a ray.init's runtime env {}")

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match="`py_modules`, too; give those as `working_dir`"),
        Connection("local", package=own),
    ):
        pass


def test_a_change_of_code_between_plan_and_training_is_noticed(own, monkeypatch):
    package = own / "elsewhere" / "own_package_of_a_test"
    (own / "job.toml").write_text(JOB + TRAINED)
    plain = Stages.prepare

    def prepare(self, *arguments):
        (package / "nets.py").write_text(PACKAGE_NET + "\n")
        plain(self, *arguments)

    monkeypatch.setattr(Stages, "prepare", prepare)
    result = launch(own, "grid", "--address", "none")
    assert result.exit_code == 1
    assert "'trained' would not be trained as the sweep was planned" in result.output


def test_the_standard_library_and_what_is_installed_is_not_own_code():
    for name in ("json", "sys", "os.path", "torch.nn", "PIL.Image", "click", "stitchgrid.errors", "no_such_module"):
        assert not Search().is_own(name)


SCALED = """
from torch import nn
from blocks import SCALE

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(192, 6), nn.Linear(6, 10)

    def forward(self, x):
        return self.b(SCALE * self.a(x.flatten(1)).relu())

def make():
    return Net()
"""
SCALED_JOB = """
name = "scaled"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
eval = { split = "test", samples = 32 }
[[models]]
name = "net"
architecture = "WORD"
weights = "random"
layers = ["a", "b"]
[[matchers]]
kind = "direct"
"""


@pytest.mark.parametrize("word", ["scaled.py:make", "scaled_package.net:make"])
def test_an_edit_of_a_helper_is_another_network_for_launch_and_refused_by_resume(own, monkeypatch, word):
    """The tensors are the same: only the code tells."""
    home = own if word.startswith("scaled.py") else own / "scaled_package"
    home.mkdir(exist_ok=True)
    is_file = home == own
    (home / ("scaled.py" if is_file else "net.py")).write_text(
        SCALED if is_file else SCALED.replace("from b", "from .b")
    )
    (home / "blocks.py").write_text("SCALE = 1.0\n")
    monkeypatch.syspath_prepend(own)
    (own / "job.toml").write_text(SCALED_JOB.replace("WORD", word))
    first = launch(own, "grid", "--address", "none")
    assert first.exit_code == 0, first.output
    num_first = num_cells(own / "grid")
    (home / "blocks.py").write_text("SCALE = 8.0\n")
    resumed = CliRunner().invoke(cli, ["resume", "scaled", "--store", str(own / "grid"), "--address", "none"])
    assert resumed.exit_code == 2
    changed = "blocks" if is_file else "scaled_package.blocks"
    assert f"model 'net': {word}; changed: {changed}\n" in resumed.output
    again = launch(own, "grid", "--address", "none")
    assert again.exit_code == 2
    assert "cells of other weights, code, images or preprocessing" in again.output
    updated = launch(own, "grid", "--address", "none", "--update")
    assert updated.exit_code == 0, updated.output
    assert num_cells(own / "grid") == 2 * num_first


def num_cells(store):
    with Catalog(Store.open(store)) as catalog:
        return catalog.query("select count(distinct cell_id) as num from measurements").to_pylist()[0]["num"]


class Plans:
    """A store of which nothing but what was noted with a plan is asked."""

    def __init__(self, **info):
        self.info = info

    def read_code(self, _):
        return self.info


def test_what_version_0_1_0_noted_of_code_is_compared_by_its_own_rule(own, helped):
    job = parse_job({**tomllib.loads(JOB), "models": [HELPED]}, title="", base=own)
    of_one_file = digest("make", (own / "helped.py").read_bytes())
    check_same_code(Plans(own_code={"helped": of_one_file}), job)
    check_same_code(Plans(own_code={"helped": code_digest(helped)}), job)
    for info in ({"own_code": {"helped": "0"}}, {"own_code": {"helped": of_one_file}, "own_files": {"helped": {}}}):
        with pytest.raises(JobFileError, match="code of sweep 'own' has changed since it was planned, and was not run"):
            check_same_code(Plans(**info), job)


@pytest.mark.parametrize("word", ["os:system", "sys:exit", "torch.hub:load", "helped.py:make"])
def test_code_of_which_nothing_is_noted_is_not_run(own, helped, word):
    job = parse_job({**tomllib.loads(JOB), "models": [{**HELPED, "architecture": word}]}, title="", base=own)
    for info in ({}, {"own_code": {"other": "0"}}):
        with pytest.raises(JobFileError, match="names code that its plan does not mention; it was not run"):
            check_same_code(Plans(**info), job)


def test_a_launch_that_was_stopped_before_its_plan_goes_on_with_its_own_code(own, helped):
    """Of a module of the interpreter only the word is known; it is the one that was launched, or it is not run."""
    models = [{**HELPED, "name": "helped"}, {**HELPED, "name": "inner", "architecture": "sys:exit"}]
    job = parse_job({**tomllib.loads(JOB), "models": models}, title="", base=own)
    store = Store.open(own / "grid", create=True)
    revision = store.write_job(job.name, job.to_dict())
    with pytest.raises(JobFileError, match="names code that its plan does not mention"):
        check_same_code(store, job)
    store.write_code(job.name, revision, code_record(job, []))
    check_same_code(store, job)
    assert store.check().findings == ()
    models[1]["architecture"] = "sys:intern"
    with pytest.raises(JobFileError, match=r"(?s)was not run.*inner.*sys:intern"):
        check_same_code(store, parse_job({**tomllib.loads(JOB), "models": models}, title="", base=own))
    (own / "grid/sweeps/own/0001/code.json").write_text("{")
    [found] = store.check().damage
    assert found.file == "sweeps/own/0001/code.json"
