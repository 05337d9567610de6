"""Detectors by energy: how they are made and kept, what they tell, and that engine and reference tell the same."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers_engine import (
    FEW,
    IMAGES,
    SIDE,
    FakeSplit,
    Zoo,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    reference,
    trained_zoo,
    unlike_reference,
    whole_shard,
    workspace,
)
from helpers_flow import run as command
from helpers_images import write_folder

from stitchgrid import worker
from stitchgrid.bench import measure
from stitchgrid.catalog import Catalog
from stitchgrid.engine import energy_detector
from stitchgrid.engine.energy_detector import made_outliers, train_detector
from stitchgrid.engine.memory import shard_bytes
from stitchgrid.engine.shard import run_shard
from stitchgrid.errors import InputError, JobFileError, StitchgridError
from stitchgrid.jobfile import parse_job
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.models.detector import Detector, make_detector, restore_detector
from stitchgrid.models.weights import load_state, save_state
from stitchgrid.planning import cost
from stitchgrid.records import EnergyRecipe, EnergySpec, Layer, Sweep, TrainDetector
from stitchgrid.resolve import detector_key, open_outliers
from stitchgrid.statistics.detector import detector_flops
from stitchgrid.store import Store

RECIPE = EnergyRecipe(epochs=2, finetune_epochs=2, width=4, depth=1, batch_size=32)
ENERGY = EnergySpec(recipe=RECIPE, num_fit=160, fit_data="fit")
AUROC, FPR95, AUPR = OOD_METRICS["energy"]
SIZE = (SIDE, SIDE)


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


#: With few images to train on, where it does not matter what is learnt.
SHORT = replace(ENERGY, num_fit=64)


def sweep_of(
    zoo: Zoo,
    *pairs: tuple[str, str],
    metrics: tuple[str, ...] = OOD_METRICS["energy"],
    layers: dict[str, tuple[int, ...]] | None = None,
    energy: EnergySpec = ENERGY,
) -> Sweep:
    asked = [matcher("direct", metrics=metrics)]
    return replace(make_sweep(zoo, pairs, asked, batch_size=64, layers=layers), energy=energy)


def detectors(sweep: Sweep, *, auroc: float = 1.0) -> dict[tuple[int, int], Detector]:
    """Return untrained detectors, sharp enough to tell things apart, that passed their check so well."""
    found = {}
    for target in {target for _, target in sweep.pairs}:
        for position, layer in enumerate(sweep.networks[target].layers):
            torch.manual_seed(position)
            detector = make_detector(layer, RECIPE, size=SIZE, num_classes=4).eval().requires_grad_(False)
            detector.sanity_auroc.fill_(auroc)
            found[target, position] = detector
    return found


# ---- what is measured


@pytest.mark.parametrize("pair", [("conv", "token"), ("token", "conv"), ("conv", "conv")], ids="->".join)
def test_the_engine_gives_the_reference_scores_of_every_detector(zoo, pair):
    sweep = sweep_of(zoo, pair, metrics=("residual", *OOD_METRICS["energy"]), layers=FEW)
    found = detectors(sweep)
    assert {type(d.body).__name__ for d in found.values()} >= {"OfVectors"}
    rows = run_shard(whole_shard(sweep), replace(workspace(zoo, sweep), detector=found.__getitem__))
    spec = reference(zoo, sweep)
    spec.detector = found.__getitem__
    wider = dict.fromkeys(OOD_METRICS["energy"], 2e-3)  # scores rounded to three decimals: one may go the other way
    assert not unlike_reference(sweep, rows, spec, wider=wider)


def test_only_the_matchers_that_ask_are_scored_and_a_layer_stitched_to_itself_is_in_distribution(zoo):
    plain, asking = matcher("direct", samples=50), matcher("direct", metrics=[AUROC, FPR95])
    sweep = replace(make_sweep(zoo, [("conv", "conv")], [plain, asking], batch_size=64), energy=ENERGY)
    work = replace(workspace(zoo, sweep), detector=detectors(sweep).__getitem__)
    for cell_id, row in by_cell(run_shard(whole_shard(sweep), work)).items():
        cell = every_cell(sweep)[cell_id]
        assert (AUROC in row) == (cell.matcher == 1)
        if cell.matcher == 1 and cell.source_layer == cell.target_layer:
            assert row[AUROC].value == pytest.approx(0.5, abs=1e-3)
            assert row[FPR95].value >= 0.95


def test_scores_of_a_detector_that_failed_its_check_are_flagged(zoo):
    sweep = sweep_of(zoo, ("conv", "view"), layers=FEW)
    for auroc, wanted in ((0.95, False), (0.5, True), (float("nan"), True)):
        work = replace(workspace(zoo, sweep), detector=detectors(sweep, auroc=auroc).__getitem__)
        rows = run_shard(whole_shard(sweep), work)
        assert all(("energy_unsound" in row.flags) == wanted for row in rows)


def test_the_energy_is_that_of_liu_et_al():
    layer = Layer(name="x", node="x", depth=0, kind="vector", axes="ND", shape=(3,), flops=0)
    detector = make_detector(layer, RECIPE, size=SIZE, num_classes=5)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(detector.score(x), detector(x).exp().sum(1).log())


def test_cost_and_memory_count_detectors(zoo):
    sweep = sweep_of(zoo, ("conv", "token"))
    plain = replace(sweep, matchers=(replace(sweep.matchers[0], metrics=("accuracy",)),))
    shard = whole_shard(sweep)
    more = cost(sweep, shard.blocks, (0,)) - cost(plain, shard.blocks, (0,))
    assert more == pytest.approx(90 * (5 + 1) * sum(detector_flops(sweep, 1, layer) for layer in range(4)))
    assert shard_bytes(sweep, shard, torch.device("cpu")) > shard_bytes(plain, shard, torch.device("cpu"))


# ---- how detectors are made


@pytest.mark.parametrize("key", [(0, 2), (1, 1), (0, 3)], ids=["map", "tokens", "vector"])
def test_a_detector_is_decided_by_its_seed_and_comes_back_as_it_was_saved(zoo, key):
    sweep = sweep_of(zoo, ("conv", "token"), energy=SHORT)
    first, again = (save_state(train_detector(workspace(zoo, sweep), key, None)) for _ in range(2))
    other = replace(sweep, energy=replace(SHORT, recipe=replace(RECIPE, seed=1)))
    assert first == again
    assert first != save_state(train_detector(workspace(zoo, other), key, None))
    layer = sweep.networks[key[0]].layers[key[1]]
    restored = restore_detector(layer, RECIPE, size=SIZE, state=load_state(first))
    assert save_state(restored) == first
    assert not restored.training
    with pytest.raises(InputError, match="stored detector belongs to another architecture"):
        restore_detector(layer, replace(RECIPE, width=5), size=SIZE, state=load_state(first))


def test_training_leaves_the_global_generator_alone(zoo):
    before = torch.random.get_rng_state()
    train_detector(workspace(zoo, sweep_of(zoo, ("conv", "token"))), (0, 3), None)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("num_fit", "batch_size"), [(2, 2), (34, 30), (35, 31)])
def test_few_images_and_a_last_batch_of_one_can_be_trained_on(zoo, num_fit, batch_size):
    recipe = replace(RECIPE, batch_size=batch_size, epochs=1, finetune_epochs=1)
    sweep = replace(sweep_of(zoo, ("conv", "token")), energy=replace(ENERGY, recipe=recipe, num_fit=num_fit))
    assert torch.isfinite(train_detector(workspace(zoo, sweep), (0, 2), None).accuracy)


def test_outliers_of_another_data_set_come_from_it(zoo):
    sweep = sweep_of(zoo, ("conv", "token"), energy=replace(SHORT, recipe=replace(RECIPE, outliers="data")))
    states = [save_state(train_detector(workspace(zoo, sweep), (0, 2), FakeSplit(40, seed=seed))) for seed in (1, 1, 2)]
    assert states[0] == states[1] != states[2]


def test_outliers_that_do_not_fit_the_network_are_refused(zoo):
    outliers = FakeSplit(40, seed=1)
    outliers.pixels = outliers.pixels[:, :, :8]
    sweep = replace(sweep_of(zoo, ("view", "view")), energy=replace(ENERGY, recipe=replace(RECIPE, outliers="data")))
    for layer in (0, 2):  # of another shape; not to be run at all
        with pytest.raises(InputError, match=r"outliers .*use outliers of the images' size"):
            train_detector(workspace(zoo, sweep), (0, layer), outliers)


def test_lack_of_memory_is_not_the_outliers_fault(zoo, monkeypatch):
    sweep = replace(sweep_of(zoo, ("view", "view")), energy=replace(ENERGY, recipe=replace(RECIPE, outliers="data")))

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(energy_detector, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train_detector(workspace(zoo, sweep), (0, 0), FakeSplit(40, seed=1))


def test_a_worker_out_of_memory_makes_a_detector_with_less_at_a_time(zoo, tmp_path, monkeypatch):
    sweep, tried = sweep_of(zoo, ("view", "view"), energy=SHORT), []
    store = Store.open(tmp_path / "grid", create=True)
    one = worker.Worker(store=store.uri, device="cpu", threads=1)
    monkeypatch.setattr(one, "workspace", lambda sweep: workspace(zoo, sweep))

    def starving(work, key, outliers):
        tried.append(work.halvings)
        if work.halvings < 2:
            raise MemoryError
        return train_detector(work, key, outliers)

    monkeypatch.setattr(worker, "train_detector", starving)
    one.run(TrainDetector(unit_id="made", network=0, layer=2), sweep)
    assert tried == [0, 1, 2]
    wanted = train_detector(workspace(zoo, sweep), (0, 2), None)
    assert store.read_artefact("detector", "made") == save_state(wanted)


def test_a_detector_whose_loss_is_not_finite_says_what_to_do(zoo):
    recipe = replace(RECIPE, lr=1e30, epochs=4)
    sweep = replace(sweep_of(zoo, ("conv", "token")), energy=replace(ENERGY, recipe=recipe))
    with pytest.raises(
        StitchgridError, match=r"the loss of a detector is (nan|inf); lower lr in \[diagnostics.energy\] \(now 1e\+30"
    ):
        train_detector(workspace(zoo, sweep), (0, 3), None)


def test_the_loss_pulls_energies_to_either_side_of_the_margins(zoo, monkeypatch):
    losses = []

    def with_high_scores(*args, **kwargs):
        detector = make_detector(*args, **kwargs)
        detector.body[4].bias.data += 10  # energies between the margins
        return detector

    monkeypatch.setattr(energy_detector, "make_detector", with_high_scores)
    monkeypatch.setattr(energy_detector._DetectorTraining, "_step", lambda self, loss: losses.append(loss.item()))
    sweep = sweep_of(zoo, ("conv", "token"))
    detector = train_detector(workspace(zoo, sweep), (0, 3), None)  # nothing is learnt
    assert len(losses) == 2 * 5 + 2 * 9

    def logits(indices):
        return detector(energy_detector.activations(workspace(zoo, sweep), (0, 3), IMAGES.fit.batch(indices)))

    inside = logits(torch.arange(144))
    energy = -inside.logsumexp(1)
    plain = torch.nn.functional.cross_entropy(inside, IMAGES.fit.labels[:144]).item()
    hinges = (energy + 25).clamp(min=0).square().mean() + (-7 - energy).clamp(min=0).square().mean()
    assert sum(losses[:5]) / 5 == pytest.approx(plain, rel=0.05)
    assert sum(losses[10:19]) / 9 == pytest.approx(plain + 0.1 * hinges.item(), rel=0.05)


def test_a_detectors_address_is_all_that_decides_it_and_nothing_else(zoo):
    sweep = sweep_of(zoo, ("conv", "token"))
    others = [
        replace(sweep, energy=replace(ENERGY, recipe=replace(RECIPE, epochs=3))),
        replace(sweep, energy=replace(ENERGY, recipe=replace(RECIPE, seed=1))),
        replace(sweep, energy=replace(ENERGY, fit_data="others")),
        replace(sweep, energy=replace(ENERGY, outlier_data="others")),
        replace(sweep, precision="bf16"),
        replace(sweep, networks=(replace(sweep.networks[0], network_id="another"), sweep.networks[1])),
    ]
    keys = [detector_key(one, 0, 1) for one in (sweep, *others)] + [detector_key(sweep, 0, 2)]
    assert len(set(keys)) == len(keys)
    same = replace(sweep, name="another", batch_size=7, eval_data="others", matchers=())
    assert detector_key(same, 0, 1) == keys[0]


# ---- outliers


def test_shuffled_patches_keep_every_pixel_and_what_is_left_over_stays():
    pixels = torch.randint(256, (3, 3, 9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = pixels.clone()
    found = made_outliers(pixels, "patch_shuffle", torch.Generator().manual_seed(1))
    assert torch.equal(pixels, before)
    assert not torch.equal(found, pixels)
    assert torch.equal(found[:, :, 8:], pixels[:, :, 8:])
    assert torch.equal(found[:, :, :, 12:], pixels[:, :, :, 12:])
    assert torch.equal(found.flatten(2).sort(2).values, pixels.flatten(2).sort(2).values)
    corners = [(i, j) for i in range(0, 8, 2) for j in range(0, 12, 3)]
    for image, shuffled in zip(pixels, found, strict=True):
        patches = [{x[:, i : i + 2, j : j + 3].numpy().tobytes() for i, j in corners} for x in (image, shuffled)]
        assert patches[0] == patches[1]


def test_noise_has_the_images_sizes_and_images_of_several_sizes_are_taken_one_by_one():
    several = [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 4, 6, dtype=torch.uint8)]
    noise = made_outliers(several, "noise", torch.Generator().manual_seed(0))
    assert [image.shape for image in noise] == [image.shape for image in several]
    assert all(image.float().std() > 40 for image in noise)


# ---- job file

TABLE = {
    "name": "job",
    "data": {"dataset": "digits"},
    "models": [{"name": "net", "architecture": "stitchgrid:resnet20", "weights": "random"}],
    "matchers": [{"kind": "direct"}, {"kind": "cka"}],
}
SMALL = {"epochs": 3, "finetune_epochs": 2, "width": 4}


def test_the_recipe_is_part_of_the_matchers_that_ask_alone(tmp_path):
    job = parse_job({**TABLE, "diagnostics": {"ood": ["energy"], "energy": SMALL}}, title="", base=tmp_path)
    direct, cka = job.matcher_specs()
    assert direct.values["energy"] == asdict(EnergyRecipe(**SMALL))
    assert set(direct.metrics) >= set(OOD_METRICS["energy"])
    plain = parse_job(TABLE, title="", base=tmp_path).matcher_specs()
    assert cka == plain[1]
    assert {key: value for key, value in direct.values.items() if key != "energy"} == plain[0].values
    unasked = parse_job({**TABLE, "diagnostics": {"ood": ["mahalanobis"], "energy": SMALL}}, title="", base=tmp_path)
    assert "energy" not in unasked.matcher_specs()[0].values
    assert parse_job(job.to_dict(), title="") == job


def test_outliers_of_another_data_set_are_named_as_images_are(tmp_path, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", str(tmp_path))
    outliers = {"dataset": "imagefolder", "root": "${ELSEWHERE}/folder", "split": "odd", "samples": 5}
    table = {**TABLE, "data": {"dataset": "digits", "outliers": outliers}, "diagnostics": {"ood": ["energy"]}}
    job = parse_job(table, title="", base=tmp_path)
    assert job.matcher_specs()[0].values["energy"]["outliers"] == "data"
    write_folder(tmp_path / "folder", {"odd": 4})
    assert open_outliers(job.outliers_spec(), cache=tmp_path / "cache").num == 5
    assert parse_job({**table, "diagnostics": {}}, title="", base=tmp_path).outliers_spec() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diagnostics": {"energy": {"epoch": 3}}}, "diagnostics.energy.epoch: unknown key; did you mean 'epochs'?"),
        (
            {"diagnostics": {"energy": {"outliers": "nose"}}},
            "diagnostics.energy.outliers: 'nose' is unknown; did you mean 'noise'?",
        ),
        (
            {
                "diagnostics": {"energy": {"outliers": "noise"}},
                "data": {"dataset": "digits", "outliers": {"dataset": "digits"}},
            },
            "diagnostics.energy.outliers: there is [data.outliers] as well; leave one of them out",
        ),
        (
            {"data": {"dataset": "digits", "outliers": {"dataset": "digit"}}},
            "data.outliers.dataset: 'digit' is unknown; did you mean 'digits'?",
        ),
        (
            {"data": {"dataset": "digits", "outliers": {"dataset": "digits", "split": "tst"}}},
            "data.outliers.split: digits has no split 'tst'; did you mean 'test'?",
        ),
        (
            {"data": {"dataset": "digits", "outliers": {"dataset": "SVHN"}}},
            "data.outliers.root: missing, but needed: where the images of SVHN are",
        ),
    ],
)
def test_what_is_wrong_is_said(changes, message):
    with pytest.raises(JobFileError) as caught:
        parse_job({**TABLE, **changes}, title="")
    assert any(problem.startswith(message) for problem in caught.value.problems), caught.value.problems


# ---- from job file to rows

JOB = """
name = "energy"
[data]
dataset = "digits"
fit = { split = "train", samples = 300 }
eval = { split = "test", samples = 100 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
layers = ["layer2.0", "layer3.0"]
[diagnostics]
ood = ["energy"]
[diagnostics.energy]
epochs = 5
finetune_epochs = 5
width = 4
samples = 600
[[matchers]]
kind = "direct"
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("energy")
    (folder / "job.toml").write_text(JOB)
    command("launch", folder / "job.toml", "--store", folder / "grid", "--address", "none", "--cpus-per-worker", "1")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "grid" / "artefacts" / "detector").iterdir()}


def test_a_detector_of_digits_knows_noise(grid):
    states = [load_state(content) for name, content in files(grid).items() if name.endswith(".safetensors")]
    assert len(states) == 2
    assert all(state["sanity_auroc"] > 0.9 and state["accuracy"] > 0.25 for state in states)
    with Catalog(Store.open(grid / "grid")) as catalog:
        rows = catalog.query("select metric, value, flags, params from results where metric like 'ood%'").to_pylist()
    assert {row["metric"] for row in rows} == set(OOD_METRICS["energy"])
    assert all("energy_unsound" not in row["flags"] for row in rows)
    assert {json.loads(row["params"])["energy"]["epochs"] for row in rows} == {5}
    command("check", "--store", grid / "grid")


def test_detectors_are_kept_for_later_sweeps_and_the_first_stays(grid, monkeypatch):
    monkeypatch.setattr("stitchgrid.worker.train_detector", lambda *_: pytest.fail("it is there already"))
    before = files(grid)
    command("launch", grid / "job.toml", "--store", grid / "grid", "--address", "none", "--cpus-per-worker", "1",
            "--set", "name=later", "--set", "matchers.0.rcond=1e-6")  # fmt: skip
    assert files(grid) == before
    key = next(name for name in before if name.endswith(".manifest")).removesuffix(".manifest")
    assert not Store.open(grid / "grid").write_artefact("detector", key, b"another", suffix=".safetensors")
    assert files(grid).items() >= before.items()


def test_a_plan_counts_the_detectors_that_are_not_there(grid, tmp_path):
    said = command("plan", grid / "job.toml", "--store", tmp_path / "nowhere").stdout
    assert "detectors to train first: 2" in said
    assert "detectors to train" not in command("plan", grid / "job.toml", "--store", grid / "grid").stdout


def test_bench_leaves_detectors_out(grid, monkeypatch):
    for name, size in (("PLAIN_SECONDS", 0.0), ("REPEAT_SECONDS", 0.0), ("PRODUCT_WIDTH", 64)):
        monkeypatch.setattr(measure, name, size)
    said = command("bench", grid / "job.toml", "--set", "data.eval.samples=20", "--set", "data.fit.samples=20")
    assert "structural" in said.stdout
