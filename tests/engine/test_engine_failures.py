"""A cell that fails is one row with its error; what is not the cell's fault passes on."""

import re
from functools import partial

import pytest
import torch
from helpers_cluster import SpeechlessError
from helpers_engine import (
    MEAN,
    ConvStage,
    FakeImages,
    FakeSplit,
    MeanStage,
    Staged,
    Zoo,
    assert_close,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    run,
    trained_zoo,
    values,
    workspace,
)
from torch import Tensor, nn

from stitchgrid.engine import fit, shard
from stitchgrid.engine.ledger import MAX_ERROR_CHARACTERS, Ledger
from stitchgrid.engine.stitched import TailEvaluation
from stitchgrid.engine.workspace import Workspace
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.registry import kind_of
from stitchgrid.matchers.stitchers.direct import Direct
from stitchgrid.moments import PairMoments
from stitchgrid.records import Row, Sweep
from stitchgrid.statistics import stitched_network

CLOSED = [matcher("direct"), matcher("cka"), matcher("pwcca"), matcher("procrustes")]
TRAINED = matcher("task_loss", epochs=1, lr=1e-2)
Failed = dict[str, str | None]


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.fixture(scope="module")
def sweep(zoo: Zoo) -> Sweep:
    return make_sweep(zoo, [("conv", "view")], [*CLOSED, TRAINED])


@pytest.fixture(scope="module")
def sound(zoo: Zoo, sweep: Sweep) -> list[Row]:
    return run(zoo, sweep)


def failures(rows: list[Row]) -> Failed:
    """Return cell -> error, having seen that a failed cell is one row without a value."""
    failed = [row for row in rows if row.status == "failed"]
    assert len({row.cell_id for row in failed}) == len(failed)
    assert all((row.metric, row.value) == (None, None) for row in failed)
    assert not {row.cell_id for row in failed} & {row.cell_id for row in rows if row.status == "done"}
    return {row.cell_id: row.error for row in failed}


def assert_others_are_sound(rows: list[Row], sound: list[Row], failed: Failed) -> None:
    others = [row for row in rows if row.cell_id not in failed]
    assert {row.cell_id for row in others} == {row.cell_id for row in sound} - failed.keys()
    closed = [row for row in others if row.matcher != "task_loss"]
    if closed:
        assert_close(values(closed), values(sound))


class FailsAt:
    """Calls a function, but for one call."""

    def __init__(self, function, *, call: int, error: Exception):
        self.function, self.call, self.error, self.num_calls = function, call, error, 0

    def __get__(self, instance, owner):
        return partial(self, instance)  # in the place of a method

    def __call__(self, *args, **kwargs):
        self.num_calls += 1
        if self.num_calls == self.call:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        (Direct, "fit", "direct"),
        (fit, "is_exact_enough", "direct"),
    ],
)
def test_a_cell_that_raises_is_one_failed_row_and_the_rest_are_fine(zoo, sweep, sound, monkeypatch, module, name, kind):
    failing = FailsAt(getattr(module, name), call=5, error=ArithmeticError("no luck"))
    monkeypatch.setattr(module, name, failing)
    rows = run(zoo, sweep)
    assert failing.num_calls > 5
    failed = failures(rows)
    assert list(failed.values()) == ["ArithmeticError: no luck"]
    assert by_cell(sound, kind).keys() > failed.keys()
    assert_others_are_sound(rows, sound, failed)


def test_a_tail_that_cannot_be_run_costs_the_stitches_that_end_in_it_alone(zoo, sweep, sound, monkeypatch):
    take = TailEvaluation.take

    def take_unless_second(self, batch):
        if self.target == (1, 1):
            raise RuntimeError("broken tail")
        take(self, batch)

    monkeypatch.setattr(TailEvaluation, "take", take_unless_second)
    rows = run(zoo, sweep)
    failed = failures(rows)
    assert set(failed.values()) == {"RuntimeError: broken tail"}
    ending = {
        cell_id for cell_id, cell in every_cell(sweep).items() if cell.target_layer == 1 and cell.matcher in (0, 4)
    }
    assert failed.keys() == ending
    assert_others_are_sound(rows, sound, failed)


def test_a_tail_that_cannot_be_run_costs_no_distances_of_maps_that_need_no_tail(zoo, monkeypatch):
    distances, samples = OOD_METRICS["mahalanobis"], 60  # maps of as many images share a Gaussian
    plain = matcher("direct", samples=samples, metrics=("residual", *distances))
    how = {"adapter": "bottleneck", "metrics": ("accuracy", *distances)}
    asked = make_sweep(
        zoo, [("conv", "view")], [plain, matcher("task_loss", samples=samples, epochs=1, lr=1e-2, **how)]
    )
    wanted = values(run(zoo, asked))

    def fail(self, batch):
        raise RuntimeError("broken tail")

    monkeypatch.setattr(TailEvaluation, "take", fail)
    rows = run(zoo, asked)
    failed = failures(rows)
    assert set(failed.values()) == {"RuntimeError: broken tail"}
    assert failed.keys() == {cell_id for cell_id, cell in every_cell(asked).items() if cell.matcher == 1}
    came = {key: value for key, value in values(rows).items() if key[0] not in failed}
    assert came.keys() == {key for key in wanted if key[0] not in failed}
    assert_close(came, wanted)


class NoGradientStage(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.detach())


def test_a_tail_without_gradients_costs_the_maps_trained_through_it_alone():
    torch.manual_seed(0)
    zoo = Zoo.of(cutoff=Staged([ConvStage(3, 4), NoGradientStage(), MeanStage(), nn.Linear(4, 4)]).eval())
    sweep = make_sweep(zoo, [("cutoff", "cutoff")], [matcher("direct"), TRAINED])
    rows = run(zoo, sweep)
    failed = failures(rows)
    cells = every_cell(sweep)
    assert failed.keys() == {key for key, cell in cells.items() if cell.matcher == 1 and cell.target_layer == 0}
    assert all("does not require grad" in error for error in failed.values())


def test_a_map_that_is_not_finite_fails_its_own_cells_with_the_remedy(zoo):
    wild = matcher("task_loss", epochs=1, batch_size=32, lr=1e30)
    sweep = make_sweep(zoo, [("conv", "conv")], [wild, TRAINED])
    rows = run(zoo, sweep)
    failed = failures(rows)
    assert len(failed) >= 10
    assert set(failed.values()) == {
        "the map of task_loss is not finite after 1 epochs at lr 1e+30; lower lr, or, where activations are inf "
        "or NaN, look at the network's weights, and at the job's precision."
    }
    assert {every_cell(sweep)[cell_id].matcher for cell_id in failed} == {0}
    alone = values(run(zoo, make_sweep(zoo, [("conv", "conv")], [TRAINED])))
    assert_close({key: value for key, value in values(rows).items() if key in alone}, alone)


class Overflow(nn.Module):
    """Infinite for bright images, of which there are some in every split."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.where(x[:, :1] > 0, torch.inf, 1.0)


def test_activations_that_are_not_finite_fail_the_cells_they_are_part_of_and_no_others():
    torch.manual_seed(0)
    stages = [ConvStage(3, 4), MeanStage(), Overflow(), nn.Linear(4, 4)]
    zoo = Zoo.of(overflow=Staged(stages).eval())
    sweep = make_sweep(zoo, [("overflow", "overflow")], CLOSED)
    rows = run(zoo, sweep)
    failed = failures(rows)
    touched = {
        cell_id for cell_id, cell in every_cell(sweep).items() if {cell.source_layer, cell.target_layer} & {2, 3}
    }
    assert failed.keys() == touched
    told = r"ValueError: (moments of a layer pair need|cka needs) finite activations, got inf or NaN; look at .*weights"
    assert all(re.match(told, error) for error in failed.values() if error)
    assert {"cka" in error for error in failed.values() if error} == {True, False}
    whole = [row for row in rows if row.status == "done" and row.metric in ("residual", "cka", "pwcca", "procrustes")]
    assert len(whole) == 4 * 4
    assert all(row.value is not None for row in whole)


class OverflowOfWhite(nn.Module):
    """Infinite for images whose first pixel is white."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.where(x[:, :1, :1, :1] > 254.5 / 255 - MEAN[0], torch.inf, 1.0)


@pytest.mark.parametrize("cost", [0.0, 1e30], ids=["by rows", "by moments"])
def test_evaluation_images_that_are_not_finite_fail_what_was_fitted_well(monkeypatch, cost):
    torch.manual_seed(0)
    monkeypatch.setattr(stitched_network, "DISTANCE", cost)
    images = FakeImages(fit=FakeSplit(80, seed=1), eval=FakeSplit(60, seed=2))
    images.fit.pixels[:, 0, 0, 0], images.eval.pixels[:, 0, 0, 0] = 0, 0
    images.eval.pixels[7, 0, 0, 0] = 255
    zoo = Zoo.of(overflow=Staged([OverflowOfWhite(), ConvStage(3, 4), MeanStage(), nn.Linear(4, 4)]).eval())
    kinds = [matcher("direct"), matcher("task_loss", epochs=1, batch_size=32, samples=64)]
    rows = run(zoo, make_sweep(zoo, [("overflow", "overflow")], kinds, images=images), images=images)
    assert {row.status for row in rows} == {"failed"}
    told = r"ValueError: (moments of a layer pair need|a residual needs) finite activations, got inf or NaN; look at"
    assert all(re.match(told, row.error) for row in rows if row.error)
    assert any("a residual" in row.error for row in rows if row.error) == (cost == 0.0)


def of_one_layer(of) -> bool:
    x, y = (of.xx_DD, of.yy_EE) if isinstance(of, PairMoments) else (of[0][0], of[1][0])
    return torch.equal(x, y)


@pytest.mark.parametrize("kind", ["pwcca", "procrustes", "cka"])
def test_an_index_that_cannot_be_found_for_some_pairs_costs_no_others(zoo, monkeypatch, kind):
    sweep = make_sweep(zoo, [("conv", "conv")], [matcher(kind)])
    whole = values(run(zoo, sweep))
    compare = kind_of(kind).compare

    def fragile(self, pairs):
        if any(of_one_layer(of) for of in pairs):
            raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")
        return compare(self, pairs)

    monkeypatch.setattr(kind_of(kind), "compare", fragile)
    rows = run(zoo, sweep)
    failed = failures(rows)
    cells = every_cell(sweep)
    assert failed.keys() == {key for key, cell in cells.items() if cell.source_layer == cell.target_layer}
    assert set(failed.values()) == {"_LinAlgError: linalg.svd: the algorithm failed to converge"}
    came = {key: value for key, value in values(rows).items() if key[0] not in failed}
    assert_close(came, {key: value for key, value in whole.items() if key[0] not in failed})


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("device"),
        MemoryError("host"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_lack_of_memory_and_a_lost_device_are_nobodys_error_and_pass_on(zoo, sweep, monkeypatch, error):
    monkeypatch.setattr(Direct, "fit", FailsAt(Direct.fit, call=3, error=error))
    with pytest.raises(type(error)):
        run(zoo, sweep)


@pytest.mark.parametrize("matchers", [CLOSED, [TRAINED], [*CLOSED, TRAINED]], ids=["closed", "trained", "both"])
def test_a_network_that_cannot_be_run_costs_its_own_cells_and_no_others_of_the_shard(zoo, matchers, monkeypatch):
    pairs = [("token", "view"), ("conv", "token"), ("conv", "view"), ("view", "view")]
    sweep = make_sweep(zoo, pairs, matchers)
    sound = run(zoo, sweep)
    bad = [network.name for network in sweep.networks].index("token")
    taps = Workspace.taps

    def taps_unless_bad(self, index, layers, *, scores):
        if index == bad:
            raise ValueError("this network does not like these images")
        return taps(self, index, layers, scores=scores)

    monkeypatch.setattr(Workspace, "taps", taps_unless_bad)
    rows = run(zoo, sweep)
    failed = failures(rows)
    assert failed.keys() == {key for key, cell in every_cell(sweep).items() if bad in (cell.source, cell.target)}
    assert set(failed.values()) == {"ValueError: this network does not like these images"}
    assert_others_are_sound(rows, sound, failed)


def test_what_breaks_a_whole_phase_fails_every_cell_once(zoo, sweep, monkeypatch):
    monkeypatch.setattr(shard, "fit_closed_form", FailsAt(shard.fit_closed_form, call=1, error=OSError("disk gone")))
    rows = run(zoo, sweep)
    assert failures(rows) == dict.fromkeys(every_cell(sweep), "OSError: disk gone")


def test_an_endless_message_is_cut_and_one_that_cannot_be_had_is_left_out(zoo, sweep):
    cells = list(every_cell(sweep).values())
    ledger = Ledger(workspace(zoo, sweep), cells, shard="unit", generations={})
    with ledger.failing(cells[:1]):
        raise ValueError("x" * 10_000)
    assert len(ledger[cells[0]].error) == MAX_ERROR_CHARACTERS
    with ledger.failing(cells[:1]):
        raise KeyError("later")
    assert ledger[cells[0]].error.startswith("ValueError: xxx")  # the first error is the cause
    assert ledger.sound(cells) == cells[1:]
    with ledger.failing(cells[1:2]):
        raise SpeechlessError
    assert ledger[cells[1]].error == "SpeechlessError"


@pytest.mark.parametrize("batch_size", [7, 32, 90])
def test_a_constant_layer_has_no_index_and_is_never_a_zero(batch_size):
    torch.manual_seed(0)
    dead = ConvStage(3, 4)
    nn.init.constant_(dead.norm.weight, 0.0)
    nn.init.constant_(dead.norm.bias, 0.1)
    zoo = Zoo.of(constant=Staged([dead, MeanStage(), nn.Linear(4, 4)]).eval(), conv=trained_zoo().staged["conv"])
    sweep = make_sweep(zoo, [("constant", "conv"), ("conv", "constant")], CLOSED, batch_size=batch_size)
    for row in run(zoo, sweep):
        cell = every_cell(sweep)[row.cell_id]
        if row.matcher != "direct":
            assert (row.value, row.flags[-1:]) == (None, ("undefined",)), (row.metric, cell)
        elif sweep.networks[cell.source].name == "constant":
            assert row.metric not in ("r2", "variance_ratio") or row.value == pytest.approx(0, abs=0.1)
        elif row.metric == "r2":
            assert row.value is None
