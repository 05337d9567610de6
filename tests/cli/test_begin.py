"""The first minutes: the page `start` word by word, the example with cells, `init` and `doctor`."""

import os
import re
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_docs import blocks, commands_in
from helpers_flow import TINY_JOB, in_a_process
from PIL import Image

from stitchgrid.cli import cli
from stitchgrid.cluster import placement
from stitchgrid.datasets.found_images import find_images
from stitchgrid.driver import job_check, machine_check
from stitchgrid.errors import InputError
from stitchgrid.jobfile import load_job
from stitchgrid.manual import FOLDER

OWN = """
import torch
from torch import nn

def small(classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, classes))

class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0)

def mixing():
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), Mixing(), nn.ReLU(), *end)
"""
DIGITS = ["--source", "stitchgrid:resnet20", "--target", "stitchgrid:resnet20", "--images", "digits", "--yes"]
FEWER = ("data.fit.samples=150", "data.eval.samples=60", "controls.shuffled=2", "intervals.groups=4")
HERE = ("--address", "none")  # without Ray
QUICKER = {"doctor": HERE, "launch": (*HERE, *(word for one in FEWER for word in ("--set", one)))}


def run(*words, code=0, answers=""):
    done = CliRunner().invoke(cli, [str(word) for word in words], input=answers)
    assert done.exit_code == code, done.output
    return done


def write_images(folder, *, num=3, size=(12, 12), seed=0):
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


# The manual's first page, and its example


def test_whoever_follows_the_page_start_has_an_answer(here):
    for block in blocks("python"):
        if block.page == "start" and block.file:
            (here / block.file).write_text(block.text.replace("range(10)", "range(1)"))
    for words in [words for block in blocks("sh") if block.page == "start" for words in commands_in(block.text)]:
        if words[0] == "init":
            subprocess.run([sys.executable, "prepare.py"], check=True, cwd=here, timeout=300)
        shown = run(*words, *QUICKER.get(words[0], ())).output
        if words[0] == "doctor":
            assert len(re.findall(r"network \w+: proven on real images, accuracy 0\.\d+", shown)) == 2
        if words[0] == "answer":
            assert re.search(r"deep block4 <- wide block\d \(direct\): (supported|weak|not supported)", shown)
    [last] = [block for block in blocks("python") if block.page == "start" and not block.file]
    names = {}
    exec(compile(last.text, str(last), "exec"), names)
    assert names["matrix"].values.shape == (3, 4)


def test_the_example_with_cells_runs(here, capsys):
    text = (FOLDER / "example.py").read_text()
    assert text.count("# %%\n") > 8
    for much, less in {
        "epochs = 3": "epochs = 1",
        "samples = 300": "samples = 80",
        "samples = 200": "samples = 40",
    }.items():
        assert much in text
        text = text.replace(much, less)
    names = {}
    exec(compile(text, "example.py", "exec"), names)
    assert capsys.readouterr().out.count(" <- net/0 ") == len(names["answers"]) > 0
    assert (here / "example.html").stat().st_size > 1000


# init


def test_init_writes_a_job_that_loads_and_says_what_comes_next(here):
    shown = run("init", "new.toml", *DIGITS).output
    assert "stitchgrid doctor new.toml" in shown
    job = load_job("new.toml")
    assert [spec.name for spec in job.network_specs() if not spec.is_twin] == ["resnet20-a", "resnet20-b"]
    assert [model.seed for model in job.models] == [None, 1]  # else it would be one network
    assert job.data.fit.samples == 1297


def test_init_asks_what_was_not_given(here):
    torch.save(__import__("runpy").run_path("own.py")["small"]().state_dict(), "a.pt")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write_images(here / "photos" / split / name, num=4)
    run("init", answers="own.py:small\na.pt\nown.py:small\nrandom\nphotos\n")
    job = load_job("job.toml")
    assert (job.data.dataset, job.data.root, job.data.fit.split, job.data.eval.split) == (
        "imagefolder",
        "photos",
        "train",
        "val",
    )
    assert [model.weights for model in job.models] == ["a.pt", "random"]
    assert job.data.labels == "classes"


def test_paths_are_as_seen_from_the_job_file(here):
    write_images(here / "photos" / "cat", num=4)
    write_images(here / "photos" / "dog", num=4)
    (here / "jobs").mkdir()
    run("init", "jobs/a.toml", "--source", "own.py:small", "--target", "own.py:small", "--images", "photos", "--yes")
    job = load_job("jobs/a.toml")
    assert job.models[0].architecture == "../own.py:small"
    assert job.data.root == ".."  # the one split is the folder itself
    assert (job.data.fit.split, job.data.eval.split, job.data.eval.samples) == ("photos", "photos", 4)
    assert job.intervals.groups is None  # so few images cannot be divided
    assert "FAIL" not in run("doctor", "jobs/a.toml", "--address", "none").output


def test_networks_of_other_classes_are_compared_without_labels(here):
    for name in ("a", "b", "c"):
        write_images(here / "photos" / name, num=4)
    run("init", "--source", "own.py:small", "--target", "own.py:small", "--images", "photos", "--yes")
    assert load_job("job.toml").data.labels == "agreement"


def test_images_of_several_sizes_are_brought_to_one(here):
    write_images(here / "photos" / "cat", size=(12, 12))
    write_images(here / "photos" / "dog", size=(20, 30))
    run("init", "--source", "own.py:small", "--target", "own.py:small", "--images", "photos", "--yes")
    assert load_job("job.toml").models[0].preprocess.resize == (224, 224)


def test_init_keeps_a_file_that_is_there(here):
    (here / "job.toml").write_text("mine")
    done = run("init", *DIGITS, code=2)
    assert "job.toml exists already and was not changed; name another file." in done.output
    run("init", *DIGITS[:-1], code=2, answers="n\n")
    assert (here / "job.toml").read_text() == "mine"
    run("init", *DIGITS[:-1], answers="y\n")
    assert load_job("job.toml").name == "job"


def test_init_says_what_is_missing_or_wrong(here):
    assert "--target is missing, and with --yes nothing is asked" in run("init", *DIGITS[:2], "--yes", code=2).output
    assert "no answer came, so nothing was written" in run("init", code=2).output
    done = run("init", "--source", "own.py:smal", "--target", "own.py:small", "--images", "digits", "--yes", code=2)
    assert "own.py has no function 'smal'; did you mean 'small'" in done.output
    assert not (here / "job.toml").exists()


@pytest.mark.parametrize("option", ["--source-weights", "--target-weights"])
def test_init_refuses_missing_weights_at_once_with_the_nearest_file(here, option):
    (here / "small.pt").touch()
    words = ["--source", "own.py:small", "--target", "own.py:small", "--images", "gone", "--yes"]
    done = run("init", *words, option, "smal.pt", code=2)
    assert "there are no weights smal.pt; did you mean 'small.pt'? known: small.pt. Nothing was written." in done.output
    assert "no folder gone" in run("init", *words, option, "gone/small.pt", code=2).output
    published = ["--source", "torchvision:resnet18", "--target", "torchvision:resnet18", *words[4:]]
    assert "did you mean 'IMAGENET1K_V1'" in run("init", *published, option, "IMAGENET1K_V7", code=2).output
    assert "no images 'gone'" in run("init", *words, option, "small.pt", code=2).output  # the weights are there
    assert not (here / "job.toml").exists()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            ["photos"],
            r"SPLIT/CLASS/FILE or .*, got images without a folder for each class. If there are no classes, use one",
        ),
        (["photos/train", "photos/test"], r"lie in test, train, without a folder for each class"),
    ],
)
def test_images_that_lie_otherwise_are_refused_with_a_remedy(here, files, told):
    for folder in files:
        write_images(here / folder)
    with pytest.raises(InputError, match=told):
        find_images("photos")


def test_names_that_no_folder_or_split_can_have_are_refused(here):
    with pytest.raises(InputError, match=r"cannot look for images in 'x{200}' \(OSError: .*File name too long"):
        find_images("x" * 5_000)
    write_images(here / "photos" / os.fsdecode(b"a\xff") / "cat")
    with pytest.raises(InputError, match=r"the name of the split 'a\ufffd' is no text in UTF-8; rename it"):
        find_images("photos")


def test_no_images_are_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"no images 'CIFAR': there is no such folder .* did you mean 'CIFAR10'"):
        find_images("CIFAR")


# doctor


def test_doctor_looks_at_the_machine(here):
    lines = run("doctor", "--address", "none").output.splitlines()
    assert [line[6:].partition(":")[0] for line in lines] == [
        "versions",
        "torch",
        "GPUs",
        "Ray",
        "store",
        "disk of the store",
        "disk of the cache",
        "cache",
    ]
    assert {line[:4].strip() for line in lines} <= {"ok", "note"}


@pytest.mark.ray
def test_doctor_has_a_worker_of_ray_answer(here):
    assert re.search(r"^ok    Ray: a worker on \S+ answered after \d+ s", run("doctor").output, flags=re.M)


def test_a_torchvision_that_does_not_fit_torch_is_named_with_the_remedy(here, monkeypatch):
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (here / "torchvision").mkdir()
    (here / "torchvision" / "__init__.py").write_text(broken)
    (here / "grid").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])]))
    launched, looked = in_a_process(here / "grid", [["launch", "quickstart"], ["doctor"]], timeout=200)
    for code, told, _ in (launched, looked):
        assert code == 1
        assert "Traceback" not in told
        assert f"cannot be imported with torch {version('torch')} (RuntimeError: operator torchvision::nms does" in told
        assert "Install both again in one command" in told
    assert [told.startswith("FAIL  torchvision: ") for _, told, _ in (launched, looked)] == [False, True]


def test_doctor_asks_for_ray_only_where_a_launch_of_the_job_would(here, monkeypatch):
    asked = []

    def examine(address):
        asked.append(address)
        return machine_check.Finding(what="Ray", told="answered")

    monkeypatch.setattr(machine_check, "examine_ray", examine)
    monkeypatch.setattr(job_check, "examine_ray", examine)
    (here / "job.toml").write_text(TINY_JOB)
    assert "ok    Ray: not needed: the job is small enough for one process" in run("doctor", "job.toml").output
    assert asked == []
    monkeypatch.setattr(placement, "SMALL_S", 0.0)  # now no job is small
    assert "ok    Ray: answered" in run("doctor", "job.toml").output
    run("doctor", "job.toml", "--address", "auto")
    run("doctor")
    assert asked == ["local", "auto", "local"]


def test_doctor_fails_where_something_is_missing(here, monkeypatch):
    monkeypatch.setattr(machine_check, "NEEDED", ("torch", "no-such-library"))
    monkeypatch.setattr(machine_check, "LOW_DISK", 10**18)
    (here / "file").touch()
    done = run("doctor", "--address", "none", "--store", here / "file" / "grid", code=1)
    assert "FAIL  versions: not installed: no-such-library" in done.output
    assert re.search(r"FAIL  store: .* cannot be made in .*; name another with --store", done.output)
    assert re.search(r"FAIL  disk of the cache: .* free at .*; a launch needs", done.output)


def test_doctor_says_that_there_is_no_cluster(here):
    done = run("doctor", "--address", "127.0.0.1:1", code=1)
    assert re.search(r"FAIL  Ray: .*'--address none' works without Ray\.", done.output)


def test_doctor_proves_networks_and_names_what_fails(here):
    models = "".join(
        f'[[models]]\nname = "{name}"\narchitecture = "own.py:{name}"\nweights = "random"\nargs = {{}}\n'
        for name in ("small", "mixing")
    )
    text = '[data]\ndataset = "digits"\nfit = { samples = 32 }\neval = { samples = 32 }\nlabels = "agreement"\n'
    (here / "job.toml").write_text(f'name = "job"\n{text}{models}[[matchers]]\nkind = "cka"\n')
    done = run("doctor", "job.toml", "--address", "none", code=1)
    assert (
        "ok    images: 32 to fit on and 32 to report on can be decoded, 8x8 pixels, 10 classes (0, 1, 2" in done.output
    )
    assert "ok    network small: proven on real images" in done.output
    assert "note  network small: untrained" in done.output
    assert re.search(r"FAIL  network mixing: refused: an image's activations depend on the other images", done.output)
    assert "1 of these checks failed; each line says what to do." in done.output
    assert not (here / "grid").exists()


def test_doctor_says_what_networks_are_still_to_be_trained(here):
    text = TINY_JOB.replace('weights = "random"', 'weights = { train = "r" }') + "[recipes.r]\nepochs = 1\n"
    (here / "job.toml").write_text(text)
    assert "; a launch trains it first, and proves it then" in run("doctor", "job.toml", "--address", "none").output


def test_doctor_names_weights_and_images_that_are_missing(here):
    (here / "job.toml").write_text(TINY_JOB.replace('weights = "random"', 'weights = "gone.pt"'))
    assert re.search(
        r"FAIL  job: model 'net': .*gone\.pt", run("doctor", "job.toml", "--address", "none", code=1).output
    )
    (here / "job.toml").write_text(TINY_JOB.replace('"digits"', '"imagefolder"\nroot = "gone"'))
    assert re.search(r"FAIL  images: .*gone", run("doctor", "job.toml", "--address", "none", code=1).output)


def test_doctor_refuses_a_wrong_job_file_as_all_commands_do(here):
    (here / "job.toml").write_text('name = "job"\n')
    assert "problems in this job file" in run("doctor", "job.toml", "--address", "none", code=2).output
