"""Linear probes: against scikit-learn on features taken stage by stage, and from job file to view."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_engine import (
    IMAGES,
    NUM_CLASSES,
    FakeImages,
    FakeSplit,
    Zoo,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    preprocessed,
    trained_zoo,
    workspace,
)
from helpers_flow import run
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from stitchgrid import worker
from stitchgrid.catalog import Catalog
from stitchgrid.engine.memory import probe_halvings
from stitchgrid.engine.probes import Probe, as_artefact, features, probe_layers
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.matchers.low_rank import reduction_to
from stitchgrid.moments import pair_moments
from stitchgrid.records import ProbeSpec
from stitchgrid.store import Store

SPEC = ProbeSpec(ranks=(None, 5, 2, 8), C=0.5, samples=120)
NUM_CLOSED = 60


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


def probes(zoo: Zoo, name: str, spec: ProbeSpec = SPEC, images: FakeImages = IMAGES) -> list[Probe]:
    sweep = replace(make_sweep(zoo, [(name, name)], [matcher("cka")], images=images), probes=spec)
    return probe_layers(workspace(zoo, sweep, images), 0)


def rows(zoo: Zoo, name: str, stage: int, split: FakeSplit) -> np.ndarray:
    """Return (N, positions, features) of a stage, class token included."""
    x = preprocessed(split.pixels)
    for part in zoo.staged[name].stages[: stage + 1]:
        x = part(x)
    x = x.flatten(2).mT if x.ndim == 4 else x if x.ndim == 3 else x.unsqueeze(1)
    return x.double().numpy()


def expected(zoo: Zoo, name: str, stage: int, rank: int | None, num_prefix: int) -> tuple[float, float, float]:
    """Return accuracy, loss and fit accuracy by scikit-learn, on rows projected as they are and then pooled."""
    fit, seen = (rows(zoo, name, stage, split) for split in (IMAGES.fit, IMAGES.eval))
    scale = np.sqrt(fit[: SPEC.samples, num_prefix:].mean(1).var(0).mean())
    if rank is not None:
        flat = fit[:NUM_CLOSED].reshape(-1, fit.shape[2])
        axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:rank]
        fit, seen = ((x - flat.mean(0)) @ axes.T @ axes + flat.mean(0) for x in (fit, seen))
    fit, seen = fit[: SPEC.samples, num_prefix:].mean(1), seen[:, num_prefix:].mean(1)
    fit, seen = (fit - fit.mean(0)) / scale, (seen - fit.mean(0)) / scale
    labels = IMAGES.fit.labels[: SPEC.samples].numpy(), IMAGES.eval.labels.numpy()
    model = LogisticRegression(C=SPEC.C, max_iter=10_000, tol=1e-9).fit(fit, labels[0])
    loss = log_loss(labels[1], model.predict_proba(seen), labels=np.arange(NUM_CLASSES))
    return model.score(seen, labels[1]), loss, model.score(fit, labels[0])


@pytest.mark.parametrize(("name", "stages", "num_prefix"), [("conv", 5, 0), ("token", 4, 1)])
def test_probes_are_those_of_scikit_learn(zoo, name, stages, num_prefix):
    found = probes(zoo, name)
    assert [(probe.layer_index, probe.rank) for probe in found] == [(k, r) for k in range(stages) for r in SPEC.ranks]
    for probe in found:
        prefix = num_prefix if probe.layer_index < 2 else 0  # the class token alone is left by then
        width = rows(zoo, name, probe.layer_index, IMAGES.eval).shape[2]
        rank = None if probe.rank is None or probe.rank >= width else probe.rank
        accuracy, loss, fit_accuracy = expected(zoo, name, probe.layer_index, rank, prefix)
        assert probe.error is None
        assert probe.loss == pytest.approx(loss, abs=1e-4)
        assert probe.accuracy == pytest.approx(accuracy, abs=1.5 / IMAGES.eval.num)
        assert probe.fit_accuracy == pytest.approx(fit_accuracy, abs=1.5 / SPEC.samples)
        assert probe.converged
        assert ("full_rank" in probe.flags) == (probe.rank is not None and rank is None)


def test_the_class_token_is_no_part_of_a_probe(zoo):
    found = probes(zoo, "token", replace(SPEC, ranks=(None,)))
    with_token = expected(zoo, "token", 1, None, 0)[1]
    assert abs(found[1].loss - with_token) > 1e-3


def test_a_probe_of_a_layer_scaled_and_shifted_is_the_same():
    generator = torch.Generator().manual_seed(0)
    fit, seen = torch.randn(50, 6, generator=generator).double(), torch.randn(20, 6, generator=generator).double()
    plain, moved = features(fit, seen), features(fit * 1e-3 + 7, seen * 1e-3 + 7)
    for one, other in zip(plain, moved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert plain[0].var(0).mean() == pytest.approx(1)
    assert plain[0].var(0).std() > 0.01  # not one number a feature


def test_features_of_low_rank_have_the_scale_of_the_whole_layer():
    generator = torch.Generator().manual_seed(0)
    fit = torch.randn(50, 6, generator=generator).double() * torch.tensor([9.0, 3, 1, 1, 1, 1], dtype=torch.float64)
    reduction = reduction_to(2, pair_moments(fit, fit).x)
    low, full = features(fit, fit, reduction)[0], features(fit, fit)[0]
    axes = reduction.basis_Dr.numpy()
    np.testing.assert_allclose(low @ axes.T, full @ axes @ axes.T, atol=1e-9)


def test_a_probe_that_was_stopped_says_so(zoo):
    found = probes(zoo, "conv", ProbeSpec(max_iter=2))
    assert [(probe.converged, probe.num_iter) for probe in found] == [(False, 2)] * 5


def test_a_class_that_no_fit_image_has_leaves_no_loss(zoo):
    fit = FakeSplit(160, seed=1)
    fit.labels[fit.labels == 3] = 0
    found = probes(zoo, "conv", ProbeSpec(), FakeImages(fit=fit, eval=IMAGES.eval))
    assert {probe.loss for probe in found} == {None}
    assert all(0 < probe.accuracy < 1 for probe in found)


def test_images_of_one_class_are_an_error_of_each_layer(zoo):
    fit = FakeSplit(160, seed=1)
    fit.labels[:] = 2
    found = probes(zoo, "conv", ProbeSpec(), FakeImages(fit=fit, eval=IMAGES.eval))
    assert all("at least 2 classes" in probe.error for probe in found)
    assert {probe.accuracy for probe in found} == {None}


def test_a_layer_that_does_not_vary_is_probed_for_what_it_is_worth(zoo):
    grey = FakeSplit(160, seed=1)
    grey.pixels[:] = 128
    found = probes(zoo, "conv", ProbeSpec(ranks=(None, 2)), FakeImages(fit=grey, eval=grey))
    most = int(torch.bincount(grey.labels[:NUM_CLOSED]).argmax())
    vectors = [probe for probe in found if probe.layer_index == 3]
    assert [probe.accuracy for probe in vectors] == [float((grey.labels == most).double().mean())] * 2
    assert "rank_deficient" in vectors[1].flags


JOB = """
name = "probed"
[data]
dataset = "digits"
fit = { split = "train", samples = 96 }
eval = { split = "test", samples = 64 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4, num_classes = 7 }
weights = "random"
seeds = [0, 1]
[grid]
pairs = "within"
[probes]
rank = ["full", 4, 1]
C = 2
samples = 200
[[matchers]]
kind = "cka"
rank = ["full", 4, 1]
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    (folder / "probed.toml").write_text(JOB)
    where = folder / "probed.toml", "--store", folder / "grid"
    plan = run("plan", *where)
    return folder, where, plan, run("launch", *where, "--address", "none")


def view(folder, sql="from probes order by all"):
    with Catalog(Store.open(folder / "grid")) as catalog:
        return catalog.query(sql).to_pylist()


def test_a_launch_probes_every_layer_of_every_network_whatever_its_classes(here):
    folder, _, plan, _ = here
    assert "probes: rank full, 4, 1, C = 2, fitted on 200 images; networks to probe: 2" in plan.stdout
    found = view(folder)
    assert len(found) == 2 * 3 * 3
    assert {row["sweep"] for row in found} == {"probed"}
    assert {(row["C"], row["num_fit"], row["num_eval"], row["converged"]) for row in found} == {(2.0, 200, 64, True)}
    assert all(0 <= row["accuracy"] <= 1 and row["error"] is None for row in found)
    joined = (
        "select count(*) as n from probes as p join layers as l on (l.sweep, l.model, l.layer, l.layer_index, l.depth) "
        "= (p.sweep, p.model, p.layer, p.layer_index, p.layer_depth)"
    )
    assert view(folder, joined) == [{"n": 18}]
    assert view(folder, "from probes where rank is null and layer_index = 2 and model = 'net/0'")[0]["accuracy"] > 0.3


def test_an_index_of_low_rank_and_its_probe_meet_in_a_query(here):
    joined = view(
        here[0],
        "select count(*) as n from results as r join probes as p on p.sweep = r.sweep and p.model = r.source_model "
        "and p.layer = r.source_layer and p.rank is not distinct from (r.params->>'rank')::int",
    )
    assert joined == [{"n": 2 * 3 * 3 * 3}]


def test_what_a_launch_says_it_found_is_of_layers_as_they_are(here):
    assert "of 6 layers" in here[3].stdout
    [found] = view(here[0], "select list(distinct samples) as samples from scores")
    assert found == {"samples": [64]}  # evaluation images of an index, though fit images decide what is kept


def test_a_second_launch_and_a_resume_probe_nothing_anew(here):
    folder, where, _, _ = here
    before = {path: path.stat().st_mtime_ns for path in (folder / "grid" / "artefacts").rglob("*")}
    assert "networks to probe: 0" in run("plan", *where).stdout
    again = run("launch", *where, "--address", "none")
    resumed = run("resume", "probed", "--store", folder / "grid", "--address", "none")
    assert "probing" not in again.stderr + resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "grid" / "artefacts").rglob("*")} == before


def test_another_penalty_is_another_probe_of_the_same_cells(here):
    folder, where, _, _ = here
    name = "--set", "name=harder"
    found = run("launch", *where, *name, "--set", "probes.C=0.01", "--address", "none")
    assert "nothing to compute" in found.stdout
    losses = view(folder, "select sweep, avg(loss) as loss from probes group by sweep order by sweep")
    assert [row["sweep"] for row in losses] == ["harder", "probed"]
    assert losses[0]["loss"] != losses[1]["loss"]


def test_a_sweep_without_probes_has_none_and_takes_them_later(here):
    folder = here[0]
    plain = folder / "plain.toml"
    plain.write_text(JOB.replace(JOB[JOB.index("[probes]") : JOB.index("[[matchers]]")], "").replace("probed", "plain"))
    run("launch", plain, "--store", folder / "grid", "--address", "none")
    assert view(folder, "from probes where sweep = 'plain'") == []
    assert not (folder / "grid/sweeps/plain/0001/probes.parquet").exists()
    plain.write_text(JOB.replace("probed", "plain"))
    found = run("launch", plain, "--store", folder / "grid", "--address", "none")
    assert "nothing to compute" in found.stdout
    assert "probing" not in found.stderr  # the other sweep's probes serve
    assert len(view(folder, "from probes where sweep = 'plain'")) == 18
    assert "all sound" in run("check", "--store", folder / "grid").stdout


def test_damage_to_a_probe_is_found_set_aside_and_made_up_for(here):
    folder, where, _, _ = here
    store = Store.open(folder / "grid")
    key = next(name for name in store.files.names("artefacts/probe") if name.endswith(".json"))
    (folder / "grid/artefacts/probe" / key).write_text(json.dumps({"num_fit": 1}))
    found = run("check", "--repair", "--store", folder / "grid")
    assert f"artefacts/probe/{key}" in found.output
    assert "the probe is made anew" in found.output
    run("launch", *where, "--address", "none")
    run("launch", *where, "--set", "name=harder", "--set", "probes.C=0.01", "--address", "none")
    assert "all sound" in run("check", "--store", folder / "grid").stdout
    table = folder / "grid/sweeps/probed/0001/probes.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    assert "probes.parquet differs from its digest" in run("check", "--store", folder / "grid", code=1).output


def test_a_batch_of_all_layers_is_halved_until_it_fits_and_changes_no_probe(zoo):
    sweep = replace(make_sweep(zoo, [("conv", "conv")], [matcher("cka")], batch_size=64), probes=SPEC)
    work = workspace(zoo, sweep)
    assert probe_halvings(sweep, 0, CPU, budget=1 << 40) == 0
    assert probe_halvings(sweep, 0, CPU, budget=0) == 6
    few = probe_layers(replace(work, halvings=4), 0)
    for one, other in zip(probe_layers(work, 0), few, strict=True):
        assert (one.accuracy, one.fit_accuracy) == (other.accuracy, other.fit_accuracy)
        assert one.loss == pytest.approx(other.loss, abs=1e-4)


def test_a_worker_out_of_memory_probes_with_less_at_a_time(here, tmp_path, monkeypatch):
    tried = []

    def starving(network, work):
        tried.append(work.halvings)
        if work.halvings < 2:
            raise MemoryError
        return as_artefact(network, work)

    monkeypatch.setattr(worker, "as_artefact", starving)
    run("launch", here[1][0], "--store", tmp_path / "grid", "--address", "none")
    assert tried == [0, 1, 2, 2]


CPU = torch.device("cpu")
PLAIN = {
    "name": "p",
    "data": {"dataset": "digits"},
    "models": [{"name": "net", "architecture": "stitchgrid:resnet20", "weights": "random"}],
    "matchers": [{"kind": "cka"}],
}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rank": 0}, r'probes.rank: a whole number from 1 on, "full" .* got 0'),
        ({"C": -1}, r"probes.C: should be greater than 0, got -1"),
        ({"C": 0}, r"probes.C: should be greater than 0, got 0"),
        ({"max_iter": 0}, r"probes.max_iter: should be greater than or equal to 1, got 0"),
        ({"samples": 1.5}, r"probes.samples: .* got 1.5"),
        ({"c": 1}, r"probes.c: unknown key; known: C, max_iter, rank, samples"),
        ({"ranks": 1}, r"probes.ranks: unknown key; did you mean 'rank'"),
        ([{"rank": 1}], r"probes: a table was expected"),
    ],
)
def test_a_wrong_table_of_probes_is_refused(table, message):
    with pytest.raises(JobFileError, match=message):
        parse_job(PLAIN | {"probes": table}, title="")


def test_a_job_with_probes_comes_back_as_it_was_and_one_without_has_no_key():
    job = parse_job(PLAIN | {"probes": {"rank": [2, "full"], "C": 1}}, title="")
    assert job.probe_spec() == ProbeSpec(ranks=(2, None))
    assert parse_job(job.to_dict(), title="") == job
    assert "probes" not in parse_job(PLAIN, title="").to_dict()
    assert parse_job(PLAIN, title="").probe_spec() is None
    assert parse_job(PLAIN | {"probes": {}}, title="").probe_spec() == ProbeSpec()
