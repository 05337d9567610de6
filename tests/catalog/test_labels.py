"""Networks that know other classes than the images have: what is refused, and what can still be said of them."""

import pytest
from click.testing import CliRunner

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.store import Store

JOB = """
name = "two-worlds"
[data]
dataset = "digits"
fit = { split = "train", samples = 48 }
eval = { split = "test", samples = 40 }
[[models]]
name = "ten"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
[[models]]
name = "thirteen"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4, num_classes = 13 }
weights = "random"
[[matchers]]
kind = "direct"
[[matchers]]
kind = "cka"
"""
TASK_LOSS = '\n[[matchers]]\nkind = "task_loss"\nepochs = 1\n'


def launch(folder, *settings, job=JOB):
    (folder / "job.toml").write_text(job)
    options = [word for setting in settings for word in ("--set", setting)]
    store = folder / "grid"
    return CliRunner().invoke(
        cli, ["launch", str(folder / "job.toml"), "--store", str(store), "--address", "none", *options]
    )


def rows(folder, what):
    with Catalog(Store.open(folder / "grid")) as catalog:
        return catalog.query(what).to_pylist()


def test_stitching_into_other_classes_is_refused_with_every_way_out(tmp_path):
    result = launch(tmp_path)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert (
        "model 'thirteen': the images have 10 classes, the network 13, so that direct into it cannot be compared with "
        "labels; give it num_classes = 10 in args, or use it as a source alone ([grid] pairs), or set labels = "
        '"agreement" in [data]'
    ) in said
    assert "model 'ten'" not in said


def test_other_classes_leave_the_agreement_and_everything_that_needs_no_label(tmp_path):
    assert launch(tmp_path, "data.labels=agreement").exit_code == 0
    found = rows(
        tmp_path,
        "select target_model, metric, count(*) as num, count(value) as num_known, bool_and(list_contains(flags, "
        "'unlabelled')) as flagged from results where matcher = 'direct' group by all",
    )
    for row in found:
        unknown = row["metric"] in {"accuracy", "loss", "relative_accuracy", "penalty"}
        # random networks may leave a ratio undefined, so only what labels decide is counted
        if unknown or row["metric"] in {"agreement", "residual"}:
            assert row["num_known"] == (0 if unknown and row["target_model"] == "thirteen" else row["num"])
        assert row["flagged"] == (row["target_model"] == "thirteen")
    accuracies = {row["model"]: row["accuracy"] for row in rows(tmp_path, "select model, accuracy from models")}
    assert accuracies["thirteen"] is None
    assert accuracies["ten"] is not None
    itself = rows(
        tmp_path,
        "select value from results where source_model = 'thirteen' and target_model = 'thirteen' "
        "and source_layer = target_layer and metric = 'agreement'",
    )
    assert [row["value"] for row in itself] == [1.0] * 3


def test_a_kind_that_is_trained_on_labels_is_refused_even_then(tmp_path):
    result = launch(tmp_path, "data.labels=agreement", job=JOB + TASK_LOSS)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "so that task_loss into it cannot be compared with labels" in said
    assert "except for kinds that are trained on them" in said


@pytest.mark.parametrize("setting", ["grid.pairs=[['thirteen', 'ten']]", "matchers=[{kind = 'cka'}]"])
def test_a_source_alone_and_an_index_need_no_labels(tmp_path, setting):
    result = launch(tmp_path, setting)
    assert result.exit_code == 0, result.output
