"""The zoo of small untrained networks: every family stitched to every other."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.store import Store

JOB = Path(__file__).parents[2] / "jobs" / "zoo_smoke.toml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
NUM_NETWORKS, NUM_LAYERS, NUM_MATCHERS = 14, 3, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("zoo") / "grid"
    result = CliRunner().invoke(cli, ["launch", str(JOB), "--store", str(store), "--address", "none"])
    assert result.exit_code == 0, result.output
    return store


def ask(store, sql):
    with Catalog(Store.open(store)) as catalog:
        return catalog.query(sql).to_pylist()


def test_every_ordered_pair_of_families_has_finite_values_by_every_matcher(store):
    (cells,) = ask(store, "select count(*) as num, count(*) filter (where status = 'done') as done from cells")
    assert cells["num"] == cells["done"] == (NUM_NETWORKS * NUM_LAYERS) ** 2 * NUM_MATCHERS
    always = ("residual", "r2", "agreement", "loss", "variance_ratio", "cka", "pwcca", "pwcca_reverse", "procrustes")
    undefined = ask(
        store,
        f"select matcher, metric, source_model, source_layer, target_model, target_layer from results "
        f"where metric in {always} and (value is null or not isfinite(value))",
    )
    assert undefined == []


def test_a_layer_is_itself_where_the_fit_rows_span_it_and_flagged_where_they_do_not(store):
    found = ask(
        store,
        "select source_model, source_layer, list_contains(flags, 'underdetermined') as flagged, "
        "max(value) filter (where metric = 'residual') as residual, "
        "max(value) filter (where metric = 'agreement') as agreement, any_value(alignment) as alignment "
        "from results where matcher = 'direct' and source_model = target_model and source_layer = target_layer "
        "group by all",
    )
    assert len(found) == NUM_NETWORKS * NUM_LAYERS
    assert {row["alignment"] for row in found} == {"identity"}
    spanned = [row for row in found if not row["flagged"]]
    assert len(spanned) >= 8
    assert len(spanned) < len(found)
    for row in spanned:
        assert row["residual"] < 1e-6
        assert row["agreement"] == 1


def test_all_kinds_of_shapes_meet(store):
    found = {row["alignment"] for row in ask(store, "select distinct alignment from results where matcher = 'direct'")}
    wanted = {"identity", "bilinear", "map_to_tokens+cls_pool+bilinear", "tokens_to_map+cls_left_out+bilinear"}
    assert wanted <= found
