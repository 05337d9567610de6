"""Checkpoints over training: one network a step, and the step at which each layer settles."""

import json

import duckdb
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from test_jobfile import RESNET, VIT, parse

from stitchgrid.catalog import Catalog
from stitchgrid.catalog.query_files import load_question
from stitchgrid.cli import cli
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.store import Store

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(8, 10))
"""
STEPS = [0, 100, 1000]


def test_steps_make_a_network_each_with_its_checkpoint():
    job = parse(models=[{**VIT, "steps": STEPS, "weights": "run/step{step:06}.pt"}])
    assert [(one.name, one.entry, one.weights) for one in job.network_specs()] == [
        ("vit@0", "vit", "run/step000000.pt"),
        ("vit@100", "vit", "run/step000100.pt"),
        ("vit@1000", "vit", "run/step001000.pt"),
    ]
    assert parse_job(json.loads(json.dumps(job.to_dict())), title="stored") == job
    both = parse(
        models=[{**RESNET, "seeds": [1, 2], "steps": [5], "weights": {"file": "{seed}/{step}", "key": "{step}"}}]
    )
    assert [(one.name, one.seed, one.weights, one.weights_key) for one in both.network_specs()] == [
        ("resnet/1@5", 1, "1/5", "5"),
        ("resnet/2@5", 2, "2/5", "5"),
    ]


def test_pairs_name_the_whole_run_or_one_step():
    model = {**VIT, "steps": STEPS, "weights": "{step}.pt"}
    assert len(parse(models=[model], grid={"pairs": [["vit", "vit@1000"]]}).pairs()) == 3
    assert parse(models=[model], grid={"pairs": [["vit@0", "vit@1000"]]}).pairs() == ((0, 2),)
    with pytest.raises(JobFileError, match=r"no model 'vit@10'; did you mean 'vit@100"):
        parse(models=[model], grid={"pairs": [["vit@10", "vit"]]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "a.pt"}, r"models\[0\].weights: `steps` name checkpoints of one training: put \{step\}"),
        ({"weights": "random"}, r"put \{step\} .*got 'random'"),
        ({"steps": [1, 1]}, r"models\[0\].steps: 1 given more than once"),
        ({"steps": []}, r"models\[0\].steps"),
        ({"steps": [-1]}, r"models\[0\].steps"),
    ],
)
def test_steps_without_a_place_in_the_weights_are_refused(change, message):
    with pytest.raises(JobFileError, match=message):
        parse(models=[{**VIT, "steps": [0, 1], "weights": "{step}.pt", **change}])


def test_a_layer_settles_at_the_step_from_which_on_it_is_as_at_the_end(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    space: dict[str, object] = {}
    exec(NET, space)
    torch.manual_seed(0)
    before, after = space["net"]().state_dict(), space["net"]().state_dict()
    for step in STEPS:
        done = {"0": step >= 100, "2": step >= 1000, "5": step >= 1000}  # the first convolution settles early
        state = {name: (after if done[name[0]] else before)[name] for name in after}
        save_file({f"model.{name}": value for name, value in state.items()}, tmp_path / f"{step:04}.safetensors")
    (tmp_path / "job.toml").write_text(
        'name = "s"\n[data]\ndataset = "digits"\nfit = { samples = 60 }\neval = { samples = 60 }\n'
        '[[models]]\nname = "net"\narchitecture = "net.py:net"\nsteps = [0, 100, 1000]\n'
        'weights = "{step:04}.safetensors"\nlayers = "all"\n[grid]\npairs = [["net", "net@1000"]]\n'
        '[[matchers]]\nkind = "cka"\n[[matchers]]\nkind = "direct"\n'
    )
    where = [str(tmp_path / "job.toml"), "--store", str(tmp_path / "grid"), "--address", "none"]
    done = CliRunner().invoke(cli, ["launch", *where])
    assert done.exit_code == 0, done.output
    with Catalog(Store.open(tmp_path / "grid")) as catalog:
        assert [(row["model"], row["run"], row["step"]) for row in catalog.query("from models").to_pylist()] == [
            (f"net@{step}", "net", step) for step in STEPS
        ]
        rows = catalog.ask(load_question("settling")).to_pylist()
        (times,) = catalog.query(
            "select list(distinct source_step order by source_step) as steps, any_value(target_run) as run, "
            "any_value(target_step) as last from training where source_depth < 0.5"
        ).to_pylist()
    assert times == {"steps": STEPS, "run": "net", "last": 1000}
    assert {row["matcher"] for row in rows} == {"cka", "direct"}
    assert {(row["layer"], row["settled_step"]) for row in rows if row["layer"] in "0123"} == {
        ("0", 100),
        ("1", 100),
        ("2", 1000),
        ("3", 1000),
    }
    assert all(row["reached"] == pytest.approx({0: 0, 1000: 1}[row["step"]]) for row in rows if row["step"] != 100)
    early = [row for row in rows if row["layer"] == "0" and row["step"] == 100]
    assert all(row["reached"] == pytest.approx(1) for row in early)


def test_settling_leaves_out_steps_whose_training_diverged_unless_asked_for():
    question = load_question("settling")
    columns = "source_model, source_layer, source_depth, source_index, target_model, target_layer, score, similarity"
    cells = [(f"net@{step}", "a", 0.5, 0, "net@1000", "a", value, value) for step, value in ((0, 0.1), (1000, 1.0))]
    lost = ("net@100", "a", 0.5, 0, "net@1000", "a", 0.9, 0.9)
    with duckdb.connect() as base:
        base.execute(
            "create table models as select 's' as sweep, 'net@' || step as model, 'net' as run, step "
            "from unnest([0, 100, 1000]) as of(step)"
        )
        for view, rows in (("scores", cells), ("all_scores", [*cells, lost])):
            values = ", ".join(map(str, rows))
            base.execute(
                f"create table {view} as select *, 's' as sweep, 'task_loss' as matcher, 'accuracy' as metric, "
                f"'{{}}' as params, 10 as samples from (values {values}) as of({columns})"
            )
        given = {"sweep": "", "matcher": "", "share": 0.5}
        found = {
            diverged: base.sql(question.sql, params={**given, "diverged": diverged}).to_arrow_table().to_pylist()
            for diverged in (False, True)
        }
    assert [(row["step"], row["settled_step"]) for row in found[False]] == [(0, 1000), (1000, 1000)]
    assert [(row["step"], row["settled_step"]) for row in found[True]] == [(0, 100), (100, 100), (1000, 100)]
