"""What a kind says of itself, in whole jobs: what it needs is looked for first, and what is symmetric is found once."""

import sys

import pytest
from helpers_engine import (
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    run,
    trained_zoo,
)

from stitchgrid.driver.preview import EmptyStore
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.matchers.registry import MATCHERS, kind_of
from stitchgrid.resolve import Resolution, open_job_images, resolve


def resolved(
    tmp_path, *matchers: dict[str, object], num_eval: int = 48, layers: object = "all", others: object = None
) -> Resolution:
    """Return a job of one network, or of two of which each has other layers."""
    net = {
        "name": "net",
        "architecture": "stitchgrid:resnet20",
        "args": {"depth": 8, "width": 4},
        "weights": "random",
        "layers": layers,
    }
    more = {"models": [net, net | {"name": "other", "layers": others}], "grid": {"pairs": "across"}} if others else {}
    job = parse_job(
        {
            "name": "needs",
            "data": {
                "dataset": "digits",
                "fit": {"split": "train", "samples": 16},
                "eval": {"split": "test", "samples": num_eval},
            },
            "models": [net],
            "matchers": list(matchers),
            **more,
        },
        title="",
    )
    return resolve(job, open_job_images(job, cache=tmp_path), EmptyStore())


@pytest.mark.parametrize(
    ("matcher", "message"),
    [
        ({"kind": "mutual_knn"}, "mutual_knn needs 12 images at least, got 11"),
        ({"kind": "jaccard_knn", "k": 10, "samples": 5}, "jaccard_knn needs 12 images at least, got 5"),
        ({"kind": "mutual_knn", "k": 10, "samples": "all"}, "mutual_knn needs 12 images at least, got 11"),
        ({"kind": "cka_unbiased", "samples": 3}, "cka_unbiased needs 4 images at least, got 3"),
    ],
)
def test_a_kind_that_has_too_few_images_is_refused(tmp_path, matcher, message):
    with pytest.raises(JobFileError, match=message):
        resolved(tmp_path, matcher, num_eval=11)


def test_fewer_neighbours_need_fewer_images(tmp_path):
    resolved(tmp_path, {"kind": "mutual_knn", "k": 9}, {"kind": "jaccard_knn", "k": 1}, num_eval=11)


def test_more_neighbours_than_images_looked_at_by_default_are_refused(tmp_path):
    with pytest.raises(JobFileError, match="mutual_knn needs 51 images at least, got 48"):
        resolved(tmp_path, {"kind": "mutual_knn", "k": 49})


def test_soft_matching_without_pot_is_refused_where_widths_differ(tmp_path, monkeypatch):
    resolved(tmp_path, {"kind": "soft_matching"})
    monkeypatch.setitem(sys.modules, "ot", None)
    wanted = (
        r"matchers\[1\]: soft_matching of layers of unequal width needs POT.*pip install 'stitchgrid\[soft-matching\]'"
    )
    with pytest.raises(JobFileError, match=wanted):
        resolved(tmp_path, {"kind": "cka"}, {"kind": "soft_matching"})
    resolved(tmp_path, {"kind": "soft_matching"}, layers=["relu", "layer1.0"])


@pytest.mark.parametrize("kind", [name for name, about in MATCHERS.items() if about.family == "index"])
def test_a_symmetric_index_is_found_once_for_both_orders_of_two_layers(kind, monkeypatch):
    compared, compare = [], kind_of(kind).compare

    def counting(self, pairs):
        compared.extend(pairs)
        return compare(self, pairs)

    monkeypatch.setattr(kind_of(kind), "compare", counting)
    sweep = make_sweep(trained_zoo(), [("conv", "conv")], [matcher(kind)])
    num = len(sweep.networks[0].layers)
    found = {row.cell_id: row.value for row in run(trained_zoo(), sweep) if row.metric == MATCHERS[kind].score}
    assert len(compared) == (num * (num + 1) // 2 if MATCHERS[kind].symmetric else num**2)
    by_pair = {(cell.source_layer, cell.target_layer): found[cell_id] for cell_id, cell in every_cell(sweep).items()}
    is_equal = all(by_pair[i, j] == by_pair[j, i] for i, j in by_pair)
    assert is_equal == MATCHERS[kind].symmetric


def test_layers_of_which_a_kind_says_nothing_have_no_value_and_cost_nothing(tmp_path):
    sweep = make_sweep(trained_zoo(), [("conv", "token")], [matcher("permutation"), matcher("orthogonal")])
    rows, cells = run(trained_zoo(), sweep), every_cell(sweep)
    for row in rows:
        cell = cells[row.cell_id]
        source, target = sweep.networks[0].layers[cell.source_layer], sweep.networks[1].layers[cell.target_layer]
        applies = source.width == target.width if row.matcher == "permutation" else source.width <= target.width
        assert ("inapplicable" in row.flags) == (not applies)
        assert row.status == "done"
        assert applies or row.value is None
    with pytest.raises(JobFileError, match=r"permutation needs layers of equal width.*all layer pairs of the job"):
        resolved(tmp_path, {"kind": "cka"}, {"kind": "permutation"}, layers=["layer1.0"], others=["layer2.0"])
