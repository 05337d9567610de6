"""What must come out on real networks: Tiny10 seeds on CIFAR-10; $STITCHGRID_DATA names the folder they lie in."""

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stitchgrid.catalog import Catalog, load_question
from stitchgrid.cli import cli
from stitchgrid.datasets import open_images
from stitchgrid.models.build import build_network
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.records import DataSpec, NetworkSpec, Preprocess
from stitchgrid.store import Store

JOB = Path(__file__).parents[2] / "jobs" / "cifar10_seeds.toml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif("STITCHGRID_DATA" not in os.environ, reason="STITCHGRID_DATA is not set"),
]


TINY10 = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
RESNET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "checkpoint", "preprocess", "accuracy"),
    [
        ("tiny10", "tiny10-seed0.pt", TINY10, 0.7802),
        ("tiny10", "tiny10-seed1.pt", TINY10, 0.7782),
        ("resnet20", "resnet20-12fca82f.th", RESNET, 0.8103),
        ("resnet32", "resnet32-d509ac18.th", RESNET, 0.8256),
    ],
)
def test_published_networks_are_as_good_on_all_test_images_as_their_page_says(name, checkpoint, preprocess, accuracy):
    folder = Path(os.environ["STITCHGRID_DATA"])
    archive = folder / "cifar10" / "cifar10-jpeg.tar.xz"
    images = open_images(DataSpec(dataset="imagefolder", root=str(archive)), need_fit=1).eval
    spec = NetworkSpec(
        name=name,
        entry=name,
        architecture=f"stitchgrid:{name}",
        weights=str(folder / "checkpoints" / checkpoint),
    )
    module, right = build_network(spec), 0
    with torch.no_grad():
        for start in range(0, images.num, 500):
            logits = module(apply_preprocess(images.batch(start, start + 500), preprocess))
            right += int((logits.argmax(1) == images.labels[start : start + 500]).sum())
    assert images.num == 10_000
    assert abs(right / images.num - accuracy) < 1e-3


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "grid"
    result = CliRunner().invoke(cli, ["launch", str(JOB), "--store", str(folder)])
    assert result.exit_code == 0, result.output
    with Catalog(Store.open(folder)) as opened:
        yield opened


def test_every_layer_stitched_to_itself_by_least_squares_is_itself(catalog):
    rows = catalog.query(
        "select metric, value from results where matcher = 'direct' and cell_id in (select cell_id from cells where "
        "source_model = target_model and source_layer = target_layer) "
        "and metric in ('residual', 'agreement', 'penalty')"
    ).to_pylist()
    wanted = {"residual": 0.0, "agreement": 1.0, "penalty": 0.0}
    assert len(rows) == 3 * 16
    assert all(abs(row["value"] - wanted[row["metric"]]) < 1e-6 for row in rows)


def test_task_loss_never_has_a_lower_residual_than_direct(catalog):
    rows = catalog.query(
        "select source_model, source_layer, target_model, target_layer, "
        "min(value) filter (matcher = 'direct') as direct, min(value) filter (matcher = 'task_loss') as task_loss "
        "from results where metric = 'residual' group by all"
    ).to_pylist()
    assert len(rows) == 4 * 64
    assert all(row["task_loss"] > row["direct"] for row in rows)


def test_within_one_network_direct_finds_the_layer_itself_and_task_loss_often_a_later_one(catalog):
    rows = catalog.ask(load_question("diagonal_violations"), {"sweep": "cifar10_seeds"}).to_pylist()
    violations = {row["matcher"]: 0 for row in rows}
    for row in rows:
        violations[row["matcher"]] += row["num_violations"]
    assert violations["direct"] == 0
    assert violations["task_loss"] > 8
