import subprocess
import sys
from pathlib import Path

import pytest

from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import load_job
from stitchgrid.shipped_files import shipped_names


def test_a_shipped_job_is_found_by_name_or_path():
    for name, path in shipped_names("jobs", ".toml").items():
        if name == "quickstart":
            assert load_job(name) == load_job(str(path))
            assert load_job(name).base == path.parent.resolve()


def test_the_quickstart_asks_for_three_trained_networks_five_matchers_and_evidence():
    job = load_job("quickstart")
    specs = job.network_specs()
    assert [spec.entry for spec in specs if not spec.is_twin] == ["resnet", "resnet", "vit"]
    assert [spec.is_twin for spec in specs] == [False] * 3 + [True] * 3
    assert all(spec.recipe for spec in specs if not spec.is_twin)
    assert (job.controls.shuffled, job.intervals.groups) == (20, 20)
    assert [spec.kind for spec in job.matcher_specs()] == ["direct", "task_loss", "cka", "pwcca", "procrustes"]
    assert len(job.pairs()) == 9 + 9


def test_the_cifar10_job_reads_checkpoints_below_a_folder_of_the_environment(monkeypatch):
    monkeypatch.setenv("STITCHGRID_DATA", "/data")
    job = load_job("cifar10_seeds")
    assert [spec.weights for spec in job.network_specs()] == [f"/data/checkpoints/tiny10-seed{i}.pt" for i in (0, 1)]
    data = job.data_spec()
    assert (data.root, data.fit_samples, data.eval_samples) == ("/data/cifar10/cifar10-jpeg.tar.xz", 1_000, 2_000)
    monkeypatch.delenv("STITCHGRID_DATA")
    with pytest.raises(JobFileError, match="variable STITCHGRID_DATA is not set"):
        load_job("cifar10_seeds")


@pytest.mark.parametrize("path", shipped_names("jobs", ".toml").values(), ids=lambda path: path.stem)
def test_a_shipped_job_is_named_like_its_file_and_begins_with_its_question(path, monkeypatch):
    monkeypatch.setenv("STITCHGRID_DATA", "/data")
    monkeypatch.setenv("IMAGENET", "/imagenet")
    monkeypatch.setenv("CIFAR10", "/cifar10")
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith("?")
    assert load_job(str(path)).name == path.stem


def test_an_unknown_job_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(JobFileError, match=r"no job file 'quickstrat'.*did you mean 'quickstart'"):
        load_job("quickstrat")
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(JobFileError, match=r"did you mean '.*mine\.toml'"):
        load_job(str(tmp_path / "min.toml"))


def test_broken_toml_is_refused_with_line_and_column(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('name = "x"\nseed = = 3\n')
    with pytest.raises(JobFileError, match=r"broken\.toml is not valid TOML: .*line 2, column 8"):
        load_job(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(JobFileError, match=r"cannot read .* as a UTF-8 text file"):
        load_job(str(path))


def test_a_job_file_may_not_say_where_it_lies(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('base = "/elsewhere"\n' + path_of("quickstart").read_text())
    with pytest.raises(JobFileError, match=r"job\.toml: 1 problem in this job file\n  - base: unknown key"):
        load_job(str(path))


def path_of(name: str) -> Path:
    return shipped_names("jobs", ".toml")[name]


# ---- --set


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=5", lambda job: job.seed, 5),
        ("name=other", lambda job: job.name, "other"),
        ("name='quoted'", lambda job: job.name, "quoted"),
        ("data.fit.samples=200", lambda job: job.data.fit.samples, 200),
        ("numerics.device=cpu", lambda job: job.numerics.device, "cpu"),
        ("models.vit.layers=[\"a\", \"b\"]", lambda job: job.models[1].layers, ("a", "b")),
        ("models.0.seeds=[4]", lambda job: job.models[0].seeds, (4,)),
        ("models.vit.args.num_layers=2", lambda job: job.models[1].args["num_layers"], 2),
        ("matchers.task_loss.epochs=1", lambda job: job.matcher_specs()[1].values["epochs"], 1),
        ("matchers.0.samples=9", lambda job: job.matchers[0].samples, 9),
        ("recipes.attention.lr=1e-4", lambda job: job.recipes["attention"].lr, 1e-4),
        ("grid.pairs=within", lambda job: len(job.pairs()), 3 + 3),
        ("controls={}", lambda job: len(job.pairs()), 9),
        ("matchers=[{kind = 'cka'}]", lambda job: [spec.kind for spec in job.matcher_specs()], ["cka"]),
        ("matchers.cka={kind = 'procrustes', samples = 3}", lambda job: job.matchers[2].samples, 3),
    ],
)  # fmt: skip
def test_set_edits_the_job(override, read, expected):
    assert read(load_job("quickstart", [override])) == expected


def test_later_overrides_win():
    assert load_job("quickstart", ["seed=5", "seed=6"]).seed == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: KEY=VALUE was expected"),
        ("a b=3", "--set a b=3: KEY=VALUE was expected"),
        ("models.vti.seed=1", "models has no single item 'vti'; did you mean 'vit'?"),
        ("matchers.9.samples=1", "matchers has no single item '9'; .*positions 0 to 4"),
        ("seed.x=3", "--set seed.x=3: seed is 0, which has nothing inside"),
        ("data.sead=3", "data.sead: unknown key; did you mean"),
        ("modles.vit.seed=3", "modles: unknown key; did you mean 'models'"),
        ("numerics.batch_size=many", "numerics.batch_size: should be a valid integer, got 'many'"),
    ],
)
def test_an_override_of_nothing_is_refused_with_the_nearest(override, message):
    with pytest.raises(JobFileError, match=message.replace("?", r"\?")):
        load_job("quickstart", ["seed=0", override])


def test_a_kind_that_comes_twice_is_named_by_position(tmp_path):
    path = tmp_path / "twice.toml"
    path.write_text(path_of("quickstart").read_text() + '\n[[matchers]]\nkind = "cka"\nsamples = 9\n')
    with pytest.raises(JobFileError, match="no single item 'cka'; there are 2: use its position, one of 2, 5"):
        load_job(str(path), ["matchers.cka.samples=3"])
    assert load_job(str(path), ["matchers.5.samples=3"]).matchers[5].samples == 3


def test_a_value_cannot_smuggle_in_another_key():
    assert load_job("quickstart", ["name=a"]).name == "a"
    with pytest.raises(JobFileError, match="name: a name is made of"):
        load_job("quickstart", ["name='a'\nseed = 4"])


def test_reading_a_job_loads_nothing_heavy():
    code = "import stitchgrid.jobfile as j, sys; j.load_job('quickstart').matcher_specs(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "sklearn"} & set(loaded)


DEEP = {
    "arrays": "x = " + "[" * 20_000 + "]" * 20_000,
    "inline tables": "x = " + "{a=" * 20_000 + "1" + "}" * 20_000,
    "some arrays": "x = " + "[" * 60 + "]" * 60,
    "a dotted key": ".".join("a" * 20_000) + " = 1",
    "a spaced key": " . ".join("a" * 20_000) + " = 1",
    "a quoted key": ".".join(['"a"'] * 20_000) + " = 1",
    "a table": "[" + ".".join("a" * 20_000) + "]",
    "some parts": ".".join("a" * 70) + " = 1",
    "digits": "seed = " + "9" * 5_000,
    "hexadecimal digits": "seed = 0x" + "f" * 5_000,
    "65 bits": f"seed = {2**64}",
    "a long file": "#" * 1_000_001,
}
MESSAGES = r"more than (50 deep in each other|100 parts|64 bits|the 1,000,000 that are read)|4300 digits"


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_toml_that_is_too_much_is_refused_in_words(tmp_path, text):
    path = tmp_path / "deep.toml"
    path.write_text(text)
    with pytest.raises(JobFileError, match=rf"deep.toml is not valid TOML: .*({MESSAGES})"):
        load_job(str(path))


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_overrides_that_are_too_much_are_refused_in_words(text):
    with pytest.raises(JobFileError, match="problem"):
        load_job("quickstart", [text.replace("#", "x")])


def test_what_a_job_may_hold_is_still_read(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(f"seed = {2**64 - 1}\nx = '{'a.' * 90}'\n# {'dots. ' * 30}\n" + "[" + ".".join("a" * 40) + "]")
    with pytest.raises(JobFileError, match="problems in this job file"):  # it is TOML, though no job
        load_job(str(path))
