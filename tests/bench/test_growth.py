"""`stitchgrid bench --growth`: sizes, what is measured at each, exponents, and jobs that cannot grow."""

import json
import math

import pytest
from helpers_flow import run

from stitchgrid.atlas.figures.growth import growth_figure
from stitchgrid.bench import growth
from stitchgrid.bench.growth import Growth, GrowthPoint, doublings, exponent, growth_text, run_growth
from stitchgrid.bench.processes import Spent
from stitchgrid.errors import StitchgridError
from stitchgrid.jobfile import load_job

JOB = """
name = "tiny"
[data]
dataset = "digits"
fit = { samples = 16 }
eval = { samples = 20 }
[[models]]
name = "a"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
seeds = [0, 1, 2, 3]
[[models]]
name = "b"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 2 }
weights = "random"
[grid]
pairs = [["a", "b"]]
[[matchers]]
kind = "cka"
[[matchers]]
kind = "direct"
metrics = ["residual"]
"""
MACHINE = {"processor": "P", "cores": 2}


@pytest.fixture
def job(tmp_path):
    (tmp_path / "tiny.toml").write_text(JOB)
    return tmp_path / "tiny.toml"


def made(axis="images", times=(1.0, 2.0, 6.0)):
    points = [
        GrowthPoint(size=2**k, num_cells=4**k, seconds=2 * took, cpu_seconds=took, peak_bytes=10**9, result_bytes=5000)
        for k, took in enumerate(times)
    ]
    return Growth(job="tiny", axis=axis, points=tuple(points), date="2026-01-01", machine=MACHINE)


@pytest.mark.parametrize("power", [0.3, 1.0, 1.7, 2.0, 3.0])
def test_the_exponent_is_that_of_what_grows_whatever_every_launch_takes(power):
    for sizes in ([1, 2, 4], [250, 500, 1000, 2000], [2, 3, 7]):
        assert exponent([(n, 11.0 + 0.2 * n**power) for n in sizes]) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("measured", [[(1, 1.0), (2, 2.0)], [(1, 2.0), (2, 1.0), (4, 3.0)], [(1, 1), (2, 2), (4, 1e9)]])
def test_an_exponent_that_cannot_be_told_is_none(measured):
    assert math.isnan(exponent(measured))


def test_sizes_double_and_are_at_most_six():
    assert doublings(100, exact=False) == [2, 4, 8, 16, 32, 64]
    assert doublings(100, exact=True) == [12, 24, 48, 96]
    assert doublings(1, exact=True) == [1]


def test_each_axis_changes_only_its_own_size(job, monkeypatch):
    launched = []

    def take(job, folder):
        launched.append(job)
        return Spent(1.0, 1.0 + len(launched), 10), 20

    monkeypatch.setattr(growth, "_launch", take)
    monkeypatch.setattr(growth, "ROUNDS", 1)
    loaded, looks = load_job(str(job)), {}
    for axis in growth.AXES:
        launched.clear()
        found = run_growth(loaded, axis, say=lambda text: None)
        assert [one.size for one in found.points] == looks_of(axis)
        looks[axis] = [one.num_cells for one in found.points]
        for one in launched:
            assert next(spec.name for spec in one.network_specs()) == "a/0"
            assert one.data.fit.samples == one.data.eval.samples or axis != "images"
    assert looks["layers"] == [4 * 2 * n * n for n in (1, 2)], "three layers each: one and two are powers of two"
    assert looks["networks"] == [2 * 9 * n * n for n in (1, 2, 4)], "of the entry with seeds, all pairs"
    assert looks["matchers"] == [4 * 9, 4 * 9 * 2]
    assert set(looks["images"]) == {4 * 9 * 2}


def looks_of(axis):
    return {"images": [8, 16], "layers": [1, 2], "networks": [1, 2, 4], "matchers": [1, 2]}[axis]


def test_launches_are_measured_in_processes_of_their_own_and_drawn(job, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "ROUNDS", 1)
    out = tmp_path / "growth.svg"
    options = "--growth", "matchers", "--figure", out, "--json", "--set", "models.a.seeds=[0]"
    (found,) = json.loads(run("bench", job, *options).stdout)
    assert [one["size"] for one in found["points"]] == [1, 2]
    assert found["exponent"] is None, "two sizes tell no exponent"
    for one in found["points"]:
        assert one["seconds"] > 0.5
        assert one["cpu_seconds"] > 0.5
        assert one["peak_bytes"] > 1e8
        assert one["result_bytes"] > 1000
    assert out.read_text().count("matchers") >= 1


def test_what_was_measured_is_told_in_a_table_for_each_axis():
    text = growth_text([made(), made("layers", (1.0, 1.0, 1.0))])
    assert "tiny: growth in images" in text
    assert "from the last three sizes: 2.00" in text
    assert "from the last three sizes: unknown" in text
    assert text.count("processor P, cores 2; 2026-01-01") == 2


@pytest.mark.parametrize("format", ["svg", "pdf", "png"])
def test_growth_is_drawn_in_every_format_and_alike_each_time(format):
    drawn = growth_figure([made(), made("networks", (1.0, 1.0, 1.0))], format)
    assert len(drawn) > 1000
    assert drawn == growth_figure([made(), made("networks", (1.0, 1.0, 1.0))], format)


def test_a_launch_that_fails_ends_it_with_its_last_message(job, tmp_path):
    broken = load_job(str(job), ["models.b.weights=missing.pt"])
    with pytest.raises(StitchgridError, match=r"a launch of 'tiny' ended with exit code \d+: .*missing\.pt"):
        growth._launch(broken, tmp_path / "x")


def test_a_launch_runs_no_code_of_the_current_folder(job, tmp_path, monkeypatch):
    (tmp_path / "rich.py").write_text("raise SystemExit('code of the current folder')")
    monkeypatch.chdir(tmp_path)
    assert growth._launch(load_job(str(job)), tmp_path / "x")[1] > 1000


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--growth", "matchers", "--set", "matchers=[{kind='cka'}]"], "two sizes are wanted, and it has 1"),
        (["--growth", "networks", "--set", "models.a.seeds=[3]"], "cannot grow in networks"),
        (["--growth", "networks", "--threads", "2"], "give --growth without --against and --threads"),
        (["--growth", "networks", "--against", "script"], "give --growth without --against and --threads"),
        (["--figure", "x.svg"], "--figure draws growth; give at least one --growth with it"),
        (["--growth", "layers", "--figure", "x.gif"], "wanted a file that ends in .pdf, .svg or .png, got 'x.gif'"),
        (["--growth", "layers", "--figure", "nowhere/x.svg"], "nowhere; make it first"),
        (["--growth", "seeds"], "'seeds' is not one of 'images', 'layers', 'networks', 'matchers'"),
    ],
)
def test_jobs_that_cannot_grow_and_options_that_do_not_fit_are_refused(job, options, told):
    assert told in run("bench", job, *options, code=2).stderr
