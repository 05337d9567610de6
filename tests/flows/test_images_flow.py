"""Launch, plan and resume on images of every kind: what they say of them, and what they refuse."""

import json
from pathlib import Path

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
