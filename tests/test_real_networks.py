"""What must come out on real networks: Tiny10 seeds on CIFAR-10; $STITCHGRID_DATA names the folder they lie in."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from stitchgrid.catalog import Catalog, load_question
from stitchgrid.cli import cli
from stitchgrid.store import Store

JOB = Path(__file__).parent.parent / "jobs" / "cifar10_seeds.toml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(7200),
    pytest.mark.skipif("STITCHGRID_DATA" not in os.environ, reason="STITCHGRID_DATA is not set"),
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "grid"
    result = CliRunner().invoke(cli, ["launch", str(JOB), "--store", str(folder)])
    assert result.exit_code == 0, result.output
    with Catalog(Store.open(folder)) as opened:
        yield opened


def test_loaded_networks_are_as_good_as_they_should_be(catalog):
    rows = catalog.query("select model, accuracy, num_eval from models order by model").to_pylist()
    assert [row["num_eval"] for row in rows] == [2000, 2000]
    for row, promised in zip(rows, (0.7802, 0.7782), strict=True):  # on all 10,000 images
        spread = (promised * (1 - promised) / row["num_eval"]) ** 0.5
        assert abs(row["accuracy"] - promised) < 3 * spread


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
