"""From a job file to a summary with networks that cannot be trusted: what is refused, said, kept and left alone."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from odd_networks import pixels

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.datasets import open_images
from stitchgrid.models.proof import Findings, Proof
from stitchgrid.records import DataSpec
from stitchgrid.store import Store

HERE = ("--address", "none", "--cpus-per-worker", "1")  # threads would wait for each other on a busy machine
ODD = Path(__file__).parents[1] / "helpers" / "odd_networks.py"
HEAD = """
name = "odd"
[data]
dataset = "digits"
fit = { samples = 40 }
eval = { samples = 40 }
[numerics]
batch_size = 16
"""
MODEL = """
[[models]]
name = "{name}"
architecture = "{path}:{name}"
weights = "random"
layers = {layers}
{more}
"""
WITHIN = '[grid]\npairs = "within"\n'
MATCHERS = '[[matchers]]\nkind = "direct"\n[[matchers]]\nkind = "cka"\n'


def job(folder, *names, more="", grid=WITHIN, matchers=MATCHERS, path=ODD, layers='"all"'):
    models = "".join(MODEL.format(name=name, path=path, more=more, layers=layers) for name in names)
    (folder / "job.toml").write_text(HEAD + models + grid + matchers)
    return folder / "job.toml"


def command(*arguments):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def launch(folder, *options):
    return command("launch", folder / "job.toml", "--store", folder / "grid", *HERE, *options)


def rows(folder, what):
    with Catalog(Store.open(folder / "grid")) as catalog:
        return catalog.query(what).to_pylist()


def test_a_network_that_cannot_be_measured_costs_its_own_cells(tmp_path):
    job(tmp_path, "plain", "batch_norms", "squeezes", grid="", layers='["c1", "c2"]')
    result = launch(tmp_path)
    assert result.exit_code == 1
    assert "model 'batch_norms' cannot be measured: an image's activations depend on the other images" in result.stdout
    assert "c1.1 (BatchNorm2d) normalises by the batch at hand" in result.stdout
    assert "model 'squeezes' cannot be measured: from a batch of one image it makes a tensor of (10,)" in result.stdout
    assert "batch_norms: cannot be measured: " in result.stderr
    found = rows(tmp_path, "select distinct source_model, target_model, status from cells order by all")
    assert [row["status"] for row in found if row["source_model"] == row["target_model"] == "plain"] == ["done"]
    assert {row["status"] for row in found if {row["source_model"], row["target_model"]} != {"plain"}} == {"failed"}
    assert {row["source_model"] for row in rows(tmp_path, "select source_model from results")} == {"plain"}


def test_what_was_refused_is_not_tried_again_and_is_said_again(tmp_path, monkeypatch):
    job(tmp_path, "batch_norms")
    assert launch(tmp_path).exit_code == 1

    def proven_again(*_):
        raise AssertionError("proven again")

    monkeypatch.setattr("stitchgrid.worker.measure_network", proven_again)
    result = launch(tmp_path)
    assert result.exit_code == 1
    assert "batch_norms: cannot be measured: an image's activations depend on" in result.stderr
    assert "nothing to compute" in result.stdout
    for verb, where in (("status", "stdout"), ("plan", "stderr")):
        arguments = [tmp_path / "job.toml"] if verb == "plan" else []
        said = getattr(command(verb, *arguments, "--store", tmp_path / "grid"), where)
        assert "batch_norms: cannot be measured" in said
    assert command("resume", "odd", "--store", tmp_path / "grid", *HERE).exit_code == 1


def test_a_forward_that_fails_on_real_images_is_one_line_among_all_problems(tmp_path):
    job(tmp_path, "plain", "fails", "one_score")
    result = launch(tmp_path)
    assert result.exit_code == 2
    assert "model 'one_score': it returns one score an image" in result.stderr
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if "model 'fails'" in line]
    assert len(lines) == 1
    assert "too bright" in lines[0]


@pytest.mark.parametrize(("name", "said"), [("leaves", "SystemExit: too grey for me"), ("speechless", "(Error)")])
def test_however_a_forward_fails_on_real_images_it_is_one_line(tmp_path, name, said):
    job(tmp_path, name)
    result = launch(tmp_path)
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert f"model '{name}': it fails on the first evaluation images" in result.stderr
    assert said in result.stderr


def test_heads_are_measured_by_what_fits_them(tmp_path):
    job(tmp_path, "plain", "softmax")
    assert launch(tmp_path).exit_code == 0
    found = {row["model"]: row for row in rows(tmp_path, "select * from models")}
    assert (found["plain"]["head"], found["softmax"]["head"]) == ("logits", "probabilities")
    assert found["softmax"]["loss"] == pytest.approx(found["plain"]["loss"], rel=1e-5)
    job(tmp_path, "one_score", more='head = "regression"', matchers='[[matchers]]\nkind = "direct"\n')
    result = launch(tmp_path, "--update")
    assert result.exit_code == 0, result.output
    metrics = {row["metric"] for row in rows(tmp_path, "select distinct metric from results where sweep = 'odd'")}
    assert {"output_cosine", "output_r2", "residual"} <= metrics
    assert not metrics & {"accuracy", "agreement", "loss"}


def test_an_encoder_is_a_target_but_for_kinds_that_need_labels(tmp_path):
    job(
        tmp_path,
        "embeds",
        more='head = "embedding"',
        matchers=MATCHERS + '[[matchers]]\nkind = "task_loss"\nepochs = 1\n',
    )
    result = launch(tmp_path)
    assert result.exit_code == 2
    assert "has no classes (its head is 'embedding'), so task_loss into it cannot be trained" in result.stderr
    job(tmp_path, "embeds", more='head = "embedding"')
    assert launch(tmp_path).exit_code == 0
    own = rows(
        tmp_path,
        "select metric, value from results where source_layer = target_layer and metric like 'output%' "
        "and target_layer <> 'mean'",
    )
    assert own
    assert all(row["value"] == pytest.approx(1.0, abs=1e-5) for row in own)


def test_untrained_and_chance_are_said_wherever_a_network_is_shown(tmp_path):
    job(tmp_path, "plain")
    result = launch(tmp_path)
    for where in (result.stdout, result.stderr):
        assert "plain: untrained" in where
        assert "plain: at chance: accuracy" in where
    store = ("--store", tmp_path / "grid")
    assert "plain: at chance" in command("status", *store).stdout
    assert "plain: at chance" in command("plan", tmp_path / "job.toml", *store).stderr
    assert json.loads(command("status", "--format", "json", *store).stdout)[0]["remarks"]
    report = command("report", "odd", "--format", "markdown", *store).stdout
    assert "untrained" in report
    assert "at chance" in report
    command("atlas", "odd", "--out", tmp_path / "atlas.html", *store)
    assert "at chance: accuracy" in (tmp_path / "atlas.html").read_text()
    [model] = rows(tmp_path, "select is_untrained, is_at_chance, chance from models")
    assert model["is_untrained"]
    assert model["is_at_chance"]
    assert 0.1 <= model["chance"] < 0.3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the weights of a classifier of digits that knows what it does."""
    images = open_images(DataSpec(dataset="digits"))
    x, y = images.fit.batch(0, 600) / 255, images.fit.labels[:600]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = pixels()
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(net(x), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
    path = tmp_path_factory.mktemp("weights") / "pixels.pt"
    torch.save(net.state_dict(), path)
    return path


def test_another_order_of_classes_is_said_with_what_to_write(tmp_path, checkpoint):
    state = torch.load(checkpoint)
    for name in ("3.weight", "3.bias"):
        state[name] = state[name].flip(0)
    torch.save(state, tmp_path / "flipped.pt")
    path = job(tmp_path, "pixels")
    path.write_text(path.read_text().replace('"random"', '"flipped.pt"').replace("eval = { samples = 40 }", ""))
    result = launch(tmp_path)
    assert "as labelled, 0.9" in result.stderr
    assert "if its classes are in another order: set classes = ['9', '8', '7'," in result.stderr
    path.write_text(path.read_text().replace("flipped.pt", str(checkpoint)))
    result = launch(tmp_path, "--update")
    assert "order" not in result.stderr
    assert "chance" not in result.stderr


def test_values_of_a_time_before_a_network_was_proven_are_none(tmp_path, monkeypatch):
    job(tmp_path, "plain", "batch_norms")
    with monkeypatch.context() as patch:
        patch.setattr(Proof, "run", lambda *_: Findings())  # as if nothing had been looked at
        patch.setattr("stitchgrid.resolve.sweep.EVALUATION_REVISION", 1)
        launch(tmp_path)
    num = len(rows(tmp_path, "select distinct cell_id from results where source_model = 'batch_norms'"))
    assert num
    result = launch(tmp_path)
    assert result.exit_code == 1
    assert "nothing to compute" in result.stdout
    assert f"{num} without values: model 'batch_norms' cannot be measured" in result.stdout


SCALED = """
import json, pathlib, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.scale = json.loads(pathlib.Path(__file__).with_name("scale.json").read_text())

    def forward(self, x):
        return self.fc(torch.tanh(self.scale * self.c1(x)).mean((2, 3)))

def scaled():
    return Net()
"""


def test_what_code_does_not_show_is_noticed_and_measured_as_another_network_if_asked_to(tmp_path):
    (tmp_path / "net.py").write_text(SCALED)
    (tmp_path / "scale.json").write_text("1.0")
    job(tmp_path, "scaled", path="net.py")
    assert launch(tmp_path).exit_code == 0
    first = rows(tmp_path, "select cell_id, value from results order by all")
    (tmp_path / "scale.json").write_text("8.0")
    for result in (launch(tmp_path), command("resume", "odd", "--store", tmp_path / "grid", *HERE)):
        assert result.exit_code == 2
        assert "model 'scaled'" in result.stderr
        assert "no longer computes what it did: on noise its activations at" in result.stderr
        assert "use --update to measure the model as another network" in result.stderr
    result = launch(tmp_path, "--update")
    assert "computed 50 cells" in result.stdout
    second = rows(tmp_path, "select cell_id, value from results order by all")
    assert not {row["cell_id"] for row in first} & {row["cell_id"] for row in second}
    assert launch(tmp_path).exit_code == 0
    (tmp_path / "scale.json").write_text("1.0")
    result = launch(tmp_path, "--update")
    assert "nothing to compute" in result.stdout
    assert rows(tmp_path, "select cell_id, value from results order by all") == first


def test_a_worker_whose_network_computes_something_else_refuses(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(SCALED)
    (tmp_path / "scale.json").write_text("1.0")
    job(tmp_path, "scaled", "plain", path="net.py")
    path = tmp_path / "job.toml"
    path.write_text(path.read_text().replace("net.py:plain", f"{ODD}:plain"))
    monkeypatch.setattr("stitchgrid.models.held.MOST_PARAMETERS", 0)  # networks are built again, as elsewhere
    load = __import__("stitchgrid.worker", fromlist=["load_network"]).load_network

    def elsewhere(network, *arguments, **keywords):
        (tmp_path / "scale.json").write_text("8.0" if network.name == "scaled" else "1.0")
        return load(network, *arguments, **keywords)

    monkeypatch.setattr("stitchgrid.worker.load_network", elsewhere)
    result = launch(tmp_path)
    assert result.exit_code == 1
    assert "model 'scaled' does not compute here what it did when the sweep was planned" in result.stdout
    assert {row["source_model"] for row in rows(tmp_path, "select source_model from results")} == {"plain"}


def test_a_shard_looks_at_the_halves_once_more(tmp_path, monkeypatch):
    from stitchgrid.engine.workspace import Workspace

    job(tmp_path, "plain", "softmax")
    tail = Workspace.tail

    class Broken(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, a):
            return 2 * self.inner(a) + 1

    monkeypatch.setattr(
        Workspace, "tail", lambda work, key: Broken(tail(work, key)) if key[0] == 0 else tail(work, key)
    )
    result = launch(tmp_path)
    assert result.exit_code == 1
    assert "the halves of plain at c1 do not give the scores of the whole network here" in result.stdout
    assert {row["source_model"] for row in rows(tmp_path, "select source_model from results")} == {"softmax"}


def test_a_network_that_keeps_something_while_cells_are_computed_makes_errors_of_them(tmp_path, monkeypatch):
    from stitchgrid.engine import shard

    job(tmp_path, "plain", "softmax", layers='["c1", "c2"]')
    compute = shard._compute

    def and_change(work, ledger, cells, **how):
        compute(work, ledger, cells, **how)
        with torch.no_grad():
            work.network(0).module.c2.weight.mul_(1.1)

    monkeypatch.setattr(shard, "_compute", and_change)
    result = launch(tmp_path)
    assert result.exit_code == 1
    assert "plain no longer computes what it did before these cells: on noise its activations at 'c2'" in result.stdout
    assert {row["source_model"] for row in rows(tmp_path, "select source_model from results")} == {"softmax"}
