"""The residual of stitched networks at later layers of their target: in the engine, and as a view."""

import pytest
from helpers_engine import (
    Zoo,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    reference,
    run,
    trained_zoo,
    unlike_reference,
)
from helpers_flow import run as command

from stitchgrid.catalog import Catalog
from stitchgrid.matchers.registry import default_metrics
from stitchgrid.store import Store


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.mark.parametrize("pair", [("conv", "conv_again"), ("token", "view"), ("view", "token")], ids="->".join)
def test_profiles_are_as_in_the_reference(zoo, pair):
    asked = [
        matcher("direct", metrics=["residual", "residual_at"]),
        matcher("task_loss", epochs=1, lr=0.01, batch_size=16, samples=80, metrics=["accuracy", "residual_at"]),
        matcher("ridge"),
    ]
    sweep = make_sweep(zoo, [pair], asked)
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    assert not unlike_reference(sweep, rows, found)
    layers, cells = sweep.networks[-1].layers, every_cell(sweep)
    for position, spec in enumerate(asked):
        for cell in (cell for cell in cells.values() if cell.matcher == position):
            names = {row.metric for row in rows if row.cell_id == cell.cell_id}
            later = {f"residual_at:{layer.name}" for layer in layers[cell.target_layer + 1 :]}
            assert {name for name in names if ":" in name} == (later if "residual_at" in spec.metrics else set())


def test_a_layer_stitched_to_itself_is_the_target_everywhere_behind(zoo):
    sweep = make_sweep(zoo, [("conv", "conv")], [matcher("direct", metrics=["residual_at"])])
    cells = every_cell(sweep)
    own = [row for row in run(zoo, sweep) if cells[row.cell_id].source_layer == cells[row.cell_id].target_layer]
    assert len(own) == 4 + 3 + 2 + 1
    assert all(0 <= row.value < 1e-9 for row in own)


def test_the_profile_is_asked_for_and_no_default():
    assert "residual_at" not in default_metrics("direct")


JOB = """
name = "profiles"
[data]
dataset = "digits"
fit = { split = "train", samples = 64 }
eval = { split = "test", samples = 32 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
[[matchers]]
kind = "direct"
metrics = ["residual", "residual_at"]
"""


def test_a_view_tells_how_errors_grow(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    command("launch", tmp_path / "job.toml", "--store", tmp_path / "grid", "--address", "none")
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        rows = catalog.query("from profiles order by source_index, target_index, layer_index").to_pylist()
        assert {(row["target_index"], row["layer_index"]) for row in rows} == {(0, 1), (0, 2), (1, 2)}
        assert len(rows) == 3 * 3
        assert all(row["residual"] >= 0 and row["layer"] == f"layer{row['layer_index'] + 1}.0" for row in rows)
        assert catalog.query("select count(*) as n from cells where status = 'done'").to_pylist() == [{"n": 9}]
    out = tmp_path / "atlas.html"
    command("atlas", "--store", tmp_path / "grid", "--out", out)
    assert '"metric":"residual_at' not in out.read_text()  # no heat map of it; the job, which asks for it, is told
    assert (
        "nothing to compute"
        in command("launch", tmp_path / "job.toml", "--store", tmp_path / "grid", "--address", "none").output
    )
