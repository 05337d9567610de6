"""Untrained twins: networks as they were before training, as sources of all that their networks are compared with."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_flow import run, values
from PIL import Image
from torch import nn

from stitchgrid.catalog import Catalog
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.models.build import make_network
from stitchgrid.models.nets.resnet import resnet20
from stitchgrid.models.training import initialise_twin
from stitchgrid.records import NetworkSpec
from stitchgrid.store import Store

NET = {
    "name": "net",
    "architecture": "stitchgrid:resnet20",
    "args": {"depth": 8, "width": 4},
    "weights": {"train": "short"},
    "seeds": [0, 1],
}
JOB = {
    "name": "twins",
    "data": {"dataset": "digits", "fit": {"split": "train", "samples": 96}, "eval": {"split": "test", "samples": 48}},
    "models": [NET, {**NET, "name": "drawn", "weights": "random", "seeds": None, "seed": 7}],
    "recipes": {"short": {"epochs": 1}},
    "grid": {"pairs": [["net/0", "net/1"], ["net/1", "net/1"], ["drawn", "net/0"]]},
    "matchers": [{"kind": "direct"}, {"kind": "cka_unbiased"}],
    "controls": {"untrained": True},
}


def job(**changes: object):
    table = copy.deepcopy({**JOB, **changes})
    table["models"] = [{key: value for key, value in model.items() if value is not None} for model in table["models"]]
    return parse_job(table, base=Path("/jobs"), title="twins")


def names(some) -> list[tuple[str, str]]:
    specs = some.network_specs()
    return [(specs[f].name, specs[g].name) for f, g in some.pairs()]


def test_every_trained_network_gets_a_twin_that_is_a_source_of_its_targets():
    asked = job()
    assert [spec.name for spec in asked.network_specs()] == [
        *("net/0", "net/1", "drawn", "net/0@untrained", "net/1@untrained")
    ]
    plain = [("net/0", "net/1"), ("net/1", "net/1"), ("drawn", "net/0")]
    assert names(asked) == [*plain, ("net/0@untrained", "net/1"), ("net/1@untrained", "net/1")]
    assert names(job(controls={})) == plain
    assert parse_job(asked.to_dict(), title="again").network_specs() == asked.network_specs()
    assert "controls" not in job(controls={}).to_dict()
    for word in ("all", "within", "across"):
        with_twins, without = (names(job(grid={"pairs": word}, controls=how)) for how in ({"untrained": True}, {}))
        assert with_twins[: len(without)] == without
        twins = with_twins[len(without) :]
        assert twins == [(f"{f}@untrained", g) for f, g in without if f != "drawn"]


def test_unknown_controls_are_refused():
    with pytest.raises(JobFileError, match=r"controls.untrain: unknown key; did you mean 'untrained'"):
        job(controls={"untrain": True})


class Images:
    def __init__(self, num: int):
        self.num = num
        self.pixels = torch.randint(256, (num, 3, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        return self.pixels[indices]


def test_a_twin_is_what_its_architecture_draws_with_statistics_of_the_first_images():
    spec = NetworkSpec(
        name="t", entry="t", architecture="stitchgrid:resnet20", args='{"depth":8,"width":4}', seed=3, is_twin=True
    )
    images = Images(1_150)
    twin = initialise_twin(spec, images, lambda pixels: pixels.float() / 255)
    drawn = make_network(spec)
    assert not twin.training
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), drawn.parameters(), strict=True))
    [norm] = [one for one in twin.modules() if isinstance(one, nn.BatchNorm2d)][:1]
    first = next(one for one in twin.modules() if isinstance(one, nn.Conv2d))
    a = first(images.pixels[:1_000].float() / 255)
    batches = a.unflatten(0, (10, 100)).transpose(1, 2)
    torch.testing.assert_close(norm.running_mean, batches.flatten(2).mean(2).mean(0))
    torch.testing.assert_close(norm.running_var, batches.flatten(2).var(2).mean(0), rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.1


def test_a_launch_makes_measures_and_keeps_twins(tmp_path):
    path, store = tmp_path / "job.toml", tmp_path / "grid"
    path.write_text(
        """
name = "twins"
[data]
dataset = "digits"
fit = { split = "train", samples = 96 }
eval = { split = "test", samples = 48 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = { train = "short" }
[recipes.short]
epochs = 1
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka_unbiased"
[controls]
untrained = true
"""
    )
    where = path, "--store", store, "--address", "none"
    first = run("launch", *where)
    assert "net@untrained:" not in first.output
    with Catalog(Store.open(store)) as catalog:
        rows = catalog.query(
            "select source_model, target_model, count(*) as n, "
            "bool_and(list_contains(flags, 'untrained')) as untrained from results group by all order by all"
        ).to_pylist()
        assert [(row["source_model"], row["target_model"], row["untrained"]) for row in rows] == [
            ("net", "net", False),
            ("net@untrained", "net", True),
        ]
        assert rows[0]["n"] == rows[1]["n"]
        models = catalog.query("select model, is_untrained from models order by model").to_pylist()
        assert models == [{"model": "net", "is_untrained": False}, {"model": "net@untrained", "is_untrained": True}]
    before = values(store)
    assert "nothing to compute" in run("launch", *where).output
    again = run("launch", path, "--store", tmp_path / "other", "--address", "none")
    assert "cells are there" in again.output
    assert values(tmp_path / "other") == before


def test_networks_that_differ_in_their_checkpoints_alone_share_a_twin(tmp_path):
    """As an original and its fine-tuned copy do: the twin is made once, and is a source under both names."""
    path, store = tmp_path / "job.toml", tmp_path / "grid"
    spec = NetworkSpec(name="t", entry="t", architecture="stitchgrid:resnet20", args='{"depth":8,"width":4}')
    entries = ""
    for name, seed in (("one", 11), ("two", 12)):
        torch.save(make_network(replace(spec, seed=seed)).state_dict(), tmp_path / f"{name}.pt")
        entries += f"""
[[models]]
name = "{name}"
architecture = "stitchgrid:resnet20"
args = {{ depth = 8, width = 4 }}
weights = "{name}.pt"
"""
    path.write_text(
        f"""
name = "shared"
[data]
dataset = "digits"
fit = {{ split = "train", samples = 96 }}
eval = {{ split = "test", samples = 48 }}
{entries}
[grid]
pairs = "all"
[[matchers]]
kind = "cka_unbiased"
[controls]
untrained = true
"""
    )
    run("launch", path, "--store", store, "--address", "none")
    with Catalog(Store.open(store)) as catalog:
        told = catalog.query("select target_model, source_model, untrained_value from answers order by all").to_pylist()
        twins = catalog.query(
            "select distinct target_model, source_model from results where source_model like '%@untrained' order by all"
        ).to_pylist()
    assert {(row["target_model"], row["source_model"]) for row in told} == {
        (f, g) for f in ("one", "two") for g in ("one", "two")
    }
    assert all(row["untrained_value"] is not None for row in told)
    assert len(twins) == 4
    run("check", "--store", store)


def test_a_folder_of_few_images_has_twins_with_the_statistics_of_those_there_are(tmp_path):
    """Twins look at the first 1,000 fit images, where there are as many."""
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "photos" / "all" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    torch.manual_seed(0)
    torch.save(resnet20(depth=8, width=4, num_classes=2).state_dict(), tmp_path / "net.pt")
    (tmp_path / "job.toml").write_text("""
name = "few"
[data]
dataset = "imagefolder"
root = "photos"
fit = { split = "all", samples = 20 }
eval = { split = "all", samples = 30 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4, num_classes = 2 }
weights = "net.pt"
layers = ["layer1.0", "layer2.0"]
[[matchers]]
kind = "direct"
[controls]
untrained = true
""")
    told = run("launch", tmp_path / "job.toml", "--store", tmp_path / "grid", "--address", "none").output
    assert "8 of 8 cells are there" in told
    run("resume", "few", "--store", tmp_path / "grid", "--address", "none")
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        rows = catalog.query("select distinct num_fit, num_eval from results").to_pylist()
    assert rows == [{"num_fit": 20, "num_eval": 30}]
