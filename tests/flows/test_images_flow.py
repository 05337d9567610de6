"""Launch, plan and resume on images of every kind: what they say of them, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_flow import run, values
from helpers_images import write_folder

from stitchgrid.catalog import Catalog
from stitchgrid.store import Store

NETS = """
from torch import nn

def make(classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""
OWN = """
import sys
import numpy as np
from PIL import Image
from pathlib import Path

NAMES = ["cat", "dog", "eel"]

def make(split, root):
    print("opened")
    paths = sorted(Path(root, split).rglob("*.png"))
    return [(np.array(Image.open(path)), NAMES.index(path.parent.name)) for path in paths]
"""
JOB = """
name = "tiny"
[data]
DATA
[[models]]
name = "net"
architecture = "nets.py:make"
weights = "random"
layers = ["0", "2"]
"""
CKA = '[[matchers]]\nkind = "cka"\n'


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_folder(tmp_path / "images")
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def write_job(here: Path, data: str, more: str = CKA) -> Path:
    (here / "job.toml").write_text(JOB.replace("DATA", data) + more)
    return here / "job.toml"


def test_fit_images_that_lack_a_class_do_for_training_and_probes_and_it_is_said(here):
    for path in (here / "images/train/dog").iterdir():
        path.unlink()
    (here / "images/train/cat/notes.txt").write_text("no image")
    data = 'dataset = "imagefolder"\nroot = "images"'
    job = write_job(
        here, data, '[probes]\n[[matchers]]\nkind = "task_loss"\nepochs = 1\n[[matchers]]\nkind = "direct"\n'
    )
    said = ["split 'train' has no images of 1 of 3 classes: dog", "split 'train': 1 file left out: 1 .txt"]
    launched = run("launch", job, "--store", here / "grid", "--address", "none")
    assert launched.stderr.index("12 fit and 12 evaluation images") < launched.stderr.index(said[0])
    assert all(f"{line}\n" in launched.stderr for line in said)
    planned = run("plan", job, "--store", here / "grid")  # with nothing left to do, it measures no speed
    assert all(f"  {line}\n" in planned.stdout for line in said)
    assert {metric for _, metric in values(here / "grid")} >= {"accuracy", "loss", "residual"}
    with Catalog(Store.open(here / "grid")) as catalog:
        probes = catalog.query("select accuracy, loss, error from probes").to_pylist()
    assert [(probe["loss"], probe["error"]) for probe in probes] == [(None, None)] * 2  # no probe knows the class
    assert all(0 <= probe["accuracy"] <= 2 / 3 for probe in probes)


def test_every_source_of_the_same_images_is_one_and_the_same_sweep(here):
    run(
        "launch",
        write_job(here, 'dataset = "imagefolder"\nroot = "images"'),
        "--store",
        here / "grid",
        "--address",
        "none",
    )
    before = values(here / "grid")
    job = write_job(here, 'dataset = "own.py:make"\nroot = "images"')
    again = run("launch", job, "--store", here / "grid", "--address", "none")
    assert "nothing to compute" in again.stdout
    assert "opened" not in again.stdout
    assert values(here / "grid") == before


def test_resume_runs_no_file_of_images_that_has_changed_since_the_sweep_was_planned(here):
    job = write_job(here, 'dataset = "own.py:make"\nroot = "images"')
    grid = ("--store", here / "grid", "--address", "none")
    run("launch", job, *grid)
    (here / "own.py").write_text(OWN + f"\nPath({str(here / 'ran')!r}).touch()\n")
    refused = run("resume", "tiny", *grid, code=2)
    assert "code of sweep 'tiny' has changed since it was planned, and was not run" in refused.stderr
    assert f"images: {here / 'own.py'}:make" in refused.stderr
    assert not (here / "ran").exists()
    assert "nothing to compute" in run("launch", job, *grid).stdout  # the images are the same
    assert (here / "ran").exists()
    assert "nothing to compute" in run("resume", "tiny", *grid).stdout


def test_other_labels_are_other_values_and_need_a_word(here):
    data = 'dataset = "imagefolder"\nroot = "images"'
    more = '[[matchers]]\nkind = "direct"\nmetrics = ["accuracy"]\n'
    grid = ("--store", here / "grid", "--address", "none")
    run("launch", write_job(here, data, more), *grid)
    job = write_job(here, f'{data}\nclasses = ["eel", "dog", "cat"]', more)
    assert "of other weights, code, images or preprocessing" in run("launch", job, *grid, code=2).stderr
    run("launch", job, *grid, "--update")
    stored = json.loads(json.dumps(Store.open(here / "grid").read_job("tiny")))
    assert stored["data"]["classes"] == ["eel", "dog", "cat"]


CHANNELS = """
import torch
from torch import nn

def make(channels=3, classes=2):
    torch.manual_seed(3)
    first = nn.Conv2d(3, 4, 3, padding=1)
    others = nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes)
    if channels != 3:
        weight, bias = torch.zeros(4, channels, 3, 3), first.bias.detach()
        weight[:, 5:8] = first.weight.detach()  # it looks at three of its channels
        first = nn.Conv2d(channels, 4, 3, padding=1)
        first.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(first, *others)
"""
CHANNELS_JOB = """
name = "bands"
[data]
dataset = "arrays"
root = "ROOT"
fit = { split = "train" }
eval = { split = "test" }
DATA
[[models]]
name = "net"
architecture = "bands.py:make"
weights = "random"
layers = ["0", "2"]
MODEL
"""


def bands(here, channels, more='[[matchers]]\nkind = "cka"\n[[matchers]]\nkind = "direct"\n', *, model=None):
    """Write arrays whose channels 5 to 7 are red, green and blue where they have more than 3, and a job on them."""
    (here / "bands.py").write_text(CHANNELS)
    rng = np.random.default_rng(0)
    (here / f"a{channels}").mkdir(exist_ok=True)
    for split, num in (("train", 24), ("test", 16)):
        images = rng.integers(0, 256, (num, 9, 10, 3), dtype=np.uint8)
        if channels != 3:
            wide = np.random.default_rng(1).integers(0, 256, (num, 9, 10, channels), dtype=np.uint8)
            wide[..., 5:8] = images
            images = wide
        np.savez(here / f"a{channels}" / f"{split}.npz", images=images, labels=np.arange(num) % 2)
    mean = f"[{', '.join(['0.5'] * channels)}]"
    given = f"preprocess = {{ channels = {channels}, mean = {mean}, crop = 8 }}\nargs = {{ channels = {channels} }}"
    text = CHANNELS_JOB.replace("ROOT", f"a{channels}").replace("MODEL", given if model is None else model)
    told = "" if channels == 3 else f"channels = {channels}"
    (here / "job.toml").write_text(text.replace("DATA", told) + more)
    return here / "job.toml"


def test_channels_that_a_network_does_not_look_at_change_no_value(here):
    """Twelve channels, of which three count, give the values of these three; the trial on noise runs before."""
    found = []
    for channels in (3, 12):
        grid = here / f"grid{channels}"
        said = run("launch", bands(here, channels), "--store", grid, "--address", "none")
        assert "8 cells" in said.stdout + said.stderr
        with Catalog(Store.open(grid)) as catalog:
            rows = catalog.query(
                "select source_layer, target_layer, matcher, metric, value from results order by all"
            ).to_pylist()
        found.append({tuple(row.values())[:4]: row["value"] for row in rows})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        close = value if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)
        assert found[1][key] == close, key


def test_a_job_on_other_channels_is_examined_planned_trained_and_has_detectors(here):
    more = (
        '[recipes.short]\nepochs = 1\nbatch_size = 8\naugment = "crop4_flip"\n'
        '[controls]\nuntrained = true\n[diagnostics]\nood = ["energy"]\n'
        "[diagnostics.energy]\nepochs = 1\nfinetune_epochs = 1\nwidth = 4\n"
        '[[matchers]]\nkind = "task_loss"\nepochs = 1\n'
    )
    job = bands(here, 12, more)
    job.write_text(job.read_text().replace('weights = "random"', 'weights = { train = "short" }'))
    said = run("doctor", job, "--store", here / "grid").stdout
    assert "9x10 pixels with 12 channels" in said
    assert "cells" in run("plan", job, "--store", here / "grid").stdout
    run("launch", job, "--store", here / "grid", "--address", "none")
    with Catalog(Store.open(here / "grid")) as catalog:
        (counted,) = catalog.query("select count(*) as num, count(error) as errors from cells").to_pylist()
    assert counted["num"] == 8
    assert counted["errors"] == 0


def test_channels_that_do_not_fit_are_told_with_what_to_write(here):
    job = bands(here, 12, model="args = { channels = 12 }")
    refused = run("launch", job, "--store", here / "grid", "--address", "none", code=2)
    assert "the images have 12 channels, as [data] says, and the model's `preprocess` wants red," in refused.stderr
    assert "set preprocess = { channels = 12 }" in refused.stderr
    job = bands(here, 12, model="preprocess = { channels = 12 }\nargs = { channels = 3 }")
    refused = run("launch", job, "--store", here / "grid", "--address", "none", code=2)
    assert "it takes 3 channels, and the images have 12: build it for them by its `args`" in refused.stderr
    other = '[data.outliers]\ndataset = "digits"\n[diagnostics]\nood = ["energy"]\n'
    other += '[[matchers]]\nkind = "direct"\n'
    refused = run("launch", bands(here, 12, other), "--store", here / "grid", "--address", "none", code=2)
    assert "outliers have 3 channels, and the images 12" in refused.stderr
    listed = run(
        "layers", f"{here / 'bands.py'}:make", "--args", '{"channels": 12}', "--channels", 12, "--input-size", "9x10"
    )
    assert "4x9x10" in listed.stdout, listed.stdout
