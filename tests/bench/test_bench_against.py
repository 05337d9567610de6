"""`stitchgrid bench --against`: what is timed in turn, that values agree, and what cannot be compared."""

import json

import pytest
import torchvision
from helpers_flow import run

from stitchgrid.bench import against
from stitchgrid.bench.processes import run_timed
from stitchgrid.errors import StitchgridError
from stitchgrid.models.freeze import freeze, thaw

JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { samples = 16 }
eval = { samples = 130 }
[numerics]
device = "cpu"
[[models]]
name = "a"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
layers = ["layer1.0", "layer3.0"]
preprocess = { mean = [0.5, 0.4, 0.3], std = [0.3, 0.3, 0.2] }
[[models]]
name = "b"
architecture = "torchvision:resnet18"
weights = "random"
layers = ["layer1.*", "layer4.1"]
[grid]
pairs = "across"
[[matchers]]
kind = "cka"
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "tiny.toml").write_text(JOB)
    return tmp_path / "tiny.toml"


def test_the_script_gives_the_engines_values_and_both_are_timed(job, tmp_path, monkeypatch):
    monkeypatch.setattr(against, "ROUNDS", 1)
    (tmp_path / "rich.py").write_text("raise SystemExit('code of the current folder')")
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("bench", job, "--against", "script", "--json").stdout)
    assert found["num_pairs"] == 2 * 2 * 3
    assert found["num_images"] == 130
    assert found["difference"] < 1e-6
    assert (found["engine_runs"]["command"], found["rival_runs"]["command"]) == ("stitchgrid launch", "script")
    for side in (found["engine_runs"], found["rival_runs"]):
        assert len(side["seconds"]) == len(side["cpu_seconds"]) == 1
        assert min(side["seconds"]) <= side["median_seconds"] <= max(side["seconds"])
        assert side["median_cpu_seconds"] > 0
    assert found["ratio"] == pytest.approx(
        found["engine_runs"]["median_seconds"] / found["rival_runs"]["median_seconds"]
    )
    assert {"processor", "cores", "torch"} <= found["machine"].keys()


def test_what_was_measured_is_said():
    runs = [against.Runs(command=name, seconds=some, cpu_seconds=some) for name, some in MEASURED.items()]
    measured = against.Against(
        job="tiny",
        num_pairs=12,
        num_images=1000,
        engine_runs=runs[0],
        rival_runs=runs[1],
        about=against.ABOUT["pytorch-cka"],
        difference=0.25,
        date="2026-01-01",
        machine={"processor": "P", "cores": 2},
    )
    told = against.against_text(measured)
    assert "cka of 12 layer pairs on 1,000 images" in told
    assert "6.00 s" in told
    assert "3.00 s" in told
    assert "stitchgrid takes 2.00 times as long" in told
    assert "medians of 3 rounds" in told
    assert "another statistic" in told
    assert "processor P, cores 2; 2026-01-01" in told


MEASURED = {"stitchgrid launch": (5.0, 9.0, 6.0), "pytorch-cka": (1.0, 3.0, 4.0)}


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        (["matchers.0.kind=pwcca"], "it asks for pwcca, but both can compute only cka"),
        (["controls.shuffled=10"], "it asks for controls, intervals or probes"),
        (["numerics.precision=bf16"], "it does not use plain fp32"),
        (['models.a.weights={train="short"}', "recipes.short.epochs=1"], "model 'a' is still to be trained"),
    ],
)
def test_what_hooks_do_not_compute_is_refused_in_words(job, edits, told):
    sets = [word for edit in edits for word in ("--set", edit)]
    output = run("bench", job, "--against", "script", *sets, code=2).output
    assert told in output


def test_a_network_is_handed_on_as_its_author_wrote_it():
    network = torchvision.models.resnet18()
    wanted = {name: getattr(part, "inplace", None) for name, part in network.named_modules()}
    handed = thaw(freeze(network))
    assert not handed.training
    assert {name: getattr(part, "inplace", None) for name, part in handed.named_modules()} == wanted
    assert not any("was_inplace" in vars(part) for part in handed.modules())
    assert handed.train().layer1.training


def test_layers_that_are_no_outputs_of_modules_are_named(job):
    output = run("bench", job, "--against", "script", "--set", 'models.b.layers=["flatten"]', code=2).output
    assert "hooks can read only outputs of modules, but flatten of 'b' are not" in output


def test_a_package_that_is_not_installed_is_named(job, monkeypatch):
    def nowhere(name):
        raise against.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(against.importlib.metadata, "version", nowhere)
    assert "pip install pytorch-cka" in run("bench", job, "--against", "pytorch-cka", code=2).output


def test_threads_are_those_that_each_command_takes(job):
    assert (
        "give --threads without --against" in run("bench", job, "--against", "script", "--threads", "1", code=2).output
    )


def test_a_command_that_fails_says_why():
    with pytest.raises(StitchgridError, match=r"script ended with exit code 3: no such thing"):
        run_timed(
            [against.sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], "script"
        )
