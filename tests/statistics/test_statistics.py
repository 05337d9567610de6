"""What statistics say of themselves is what the engine does: they read these layers, multiply so much, hold so much."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers_engine import Zoo, every_cell, make_sweep, matcher, run, trained_zoo, whole_shard, workspace
from torch.utils._python_dispatch import TorchDispatchMode

from stitchgrid.engine import moment_values
from stitchgrid.engine.groups import GroupedGatherer
from stitchgrid.engine.pair_moments import MomentGatherer
from stitchgrid.engine.shuffles import ShuffledGatherer
from stitchgrid.engine.workspace import Batch, batches, by_network
from stitchgrid.matchers.stitchers.affine import is_exact_enough
from stitchgrid.matchers.stitchers.direct import fit_direct
from stitchgrid.moments import pair_moments
from stitchgrid.records import Row, Sweep
from stitchgrid.statistics import moments, stitched_network
from stitchgrid.statistics.moments import GroupedMoments
from stitchgrid.statistics.needs import all_needs, of_blocks
from stitchgrid.statistics.planner import evaluation_moments, evaluation_shuffles, fit_moments, grams_of
from stitchgrid.statistics.rows import Geometry
from stitchgrid.statistics.shard import Collector

DIRECT, PWCCA = matcher("direct", metrics=("residual",)), matcher("pwcca")
PAIRS = [("conv", "conv"), ("conv", "view"), ("token", "view"), ("view", "token")]


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


class ExactProducts(TorchDispatchMode):
    """Counts the operations of matrix products in float64, those that are added in place as well."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"mm", "bmm", "addmm_", "baddbmm_", "addmm"} and args[-1].dtype == torch.float64:
            self.flops += 2 * args[-2].numel() * args[-1].shape[-1]
        return func(*args, **(kwargs or {}))


def one_batch(work, keys) -> Batch:
    """Return all evaluation images as one batch."""
    work = replace(work, sweep=replace(work.sweep, batch_size=work.sweep.num_eval))
    [batch] = batches(work, work.images.eval, by_network(keys), stop=work.sweep.num_eval)
    return batch


HOLDERS = (
    *(f"stitchgrid.engine.{name}" for name in ("pair_moments", "gram_matrices", "groups", "shuffles")),
    "stitchgrid.moments",
)


def sizes_of(gatherer) -> int:
    """Return the bytes of the float64 matrices that a gatherer holds, each place in memory once."""
    held, seen = {}, set()

    def look(thing) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            if thing.dtype == torch.float64 and thing.dim() > 1:
                held[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            for one in thing.values():
                look(one)
        elif isinstance(thing, (list, tuple)):
            for one in thing:
                look(one)
        elif type(thing).__module__.startswith(HOLDERS):
            for one in vars(thing).values():
                look(one)

    look(gatherer)
    return sum(held.values())


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("specs", [[DIRECT], [PWCCA], [DIRECT, PWCCA]], ids=["direct", "pwcca", "both"])
def test_moments_multiply_and_hold_what_they_say(zoo, monkeypatch, pair, specs):
    sweep = make_sweep(zoo, [pair], specs)
    work = workspace(zoo, sweep)
    [said] = evaluation_moments(work.geometry, work.asked(every_cell(sweep).values())).values()
    gatherer = MomentGatherer(work, said)
    assert sizes_of(gatherer) == 8 * (said.products.num_products + said.products.num_own)
    batch = one_batch(work, said.layers)
    with ExactProducts() as counter:
        gatherer.take(batch)
    monkeypatch.setattr(moments, "READING", 0.0)
    with_laying = replace(said.products).own_flops  # of which a kernel does some, and small matrices do
    monkeypatch.setattr(moments, "RESAMPLING", 0.0)
    without = replace(said.products).own_flops
    of_pairs = said.products.pair_flops
    counted = counter.flops / said.num_images
    assert of_pairs + without <= counted <= of_pairs + with_laying


def test_groups_and_draws_hold_what_they_say_before_values_are_made(zoo):
    sweep = replace(make_sweep(zoo, [("conv", "view")], [DIRECT, PWCCA]), groups=4, shuffles=3)
    work = workspace(zoo, sweep)
    asked = work.asked(every_cell(sweep).values())
    [grouped], [drawn] = (some(work.geometry, asked).values() for some in (evaluation_moments, evaluation_shuffles))
    assert isinstance(grouped, GroupedMoments)
    one = grouped.products
    assert sizes_of(GroupedGatherer(work, grouped)) == 4 * 8 * (one.num_products + one.num_own)
    assert sizes_of(ShuffledGatherer(work, drawn)) == drawn.held_bytes() == 3 * 8 * one.num_products


def test_cells_one_by_one_ask_for_what_whole_blocks_do(zoo):
    """The engine asks for its cells, a plan for blocks: what they are told is the same."""
    specs = [matcher("direct"), matcher("ridge"), matcher("pwcca"), matcher("cka"), matcher("rsa", samples=30)]
    for pair in PAIRS:
        sweep = replace(make_sweep(zoo, [pair], specs), groups=3, shuffles=2)
        work, geometry = workspace(zoo, sweep), Geometry(sweep)
        cells = work.asked(every_cell(sweep).values())
        blocks = list(of_blocks(all_needs(sweep), whole_shard(sweep).blocks))
        for collect in (fit_moments, evaluation_moments, evaluation_shuffles, grams_of):
            by_cell, by_block = collect(work.geometry, cells), collect(geometry, blocks)
            assert by_cell.keys() == by_block.keys()
            for key, one in by_cell.items():
                assert one.layers == by_block[key].layers
                assert one.flops() == pytest.approx(by_block[key].flops())
                assert one.held_bytes() == by_block[key].held_bytes()


def test_gram_kinds_share_one_matrix(zoo):
    flops = [
        sum(one.flops() for one in Collector(sweep).of(whole_shard(sweep).blocks).grams)
        for kinds in (["cka"], ["cka", "rsa", "mutual_knn"])
        for sweep in [make_sweep(zoo, [("conv", "view")], [matcher(kind) for kind in kinds])]
    ]
    assert flops[0] == flops[1] > 0


def test_epochs_read_sources_once_where_their_activations_are_kept(zoo):
    def passes(**params) -> float:
        sweep = make_sweep(zoo, [("conv", "view")], [matcher("task_loss", batch_size=32, samples=80, **params)])
        found = Collector(sweep).of(whole_shard(sweep).blocks).training
        return sum(one.shared_flops() for one in found)

    assert passes(epochs=4) == passes(epochs=2) > 0
    assert passes(epochs=4, augment="crop4_flip") > passes(epochs=2, augment="crop4_flip") > passes(epochs=2)


BY_ROWS = [matcher("direct"), matcher("ridge", strength=0.1), matcher("task_loss", epochs=2, batch_size=32, samples=80)]


def by_rows(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, sweep: Sweep, cost: float) -> tuple[list[Row], set[str]]:
    """Return the rows of a sweep where the distance of T(A) to B costs so much, and the cells found by it."""
    found: set[str] = set()
    real = moment_values.cheaper
    with monkeypatch.context() as patch:
        patch.setattr(stitched_network, "DISTANCE", cost)
        patch.setattr(moment_values, "cheaper", lambda g, m, either: noted(real(g, m, either), either))

        def noted(result, either):
            if result[1]:
                found.update(one.needs.spec.kind for one in either)
            return result

        return run(zoo, sweep), found


@pytest.mark.parametrize("pair", [("conv", "view"), ("view", "conv"), ("token", "conv"), ("conv", "token")], ids=str)
@pytest.mark.parametrize("groups", [None, 4])
def test_residuals_are_the_same_from_rows_and_from_moments(zoo, monkeypatch, pair, groups):
    """To 1e-6, or 1e-9 where they are below a thousandth: rows are mapped in float32."""
    sweep = replace(make_sweep(zoo, [pair], BY_ROWS), groups=groups)
    (of_rows, kinds), (of_moments, none) = (by_rows(zoo, monkeypatch, sweep, cost) for cost in (0.0, 1e30))
    assert "task_loss" in kinds
    assert not none
    came, wanted = ({(row.cell_id, row.metric): row for row in rows} for rows in (of_rows, of_moments))
    assert came.keys() == wanted.keys()
    for key, row in came.items():
        assert row.flags == wanted[key].flags
        pairs = [(row.value, wanted[key].value)]
        pairs += zip(row.replicates or (), wanted[key].replicates or (), strict=True)
        for value, other in pairs:
            assert (value is None) == (other is None)
            exact = (lambda number: 1 - number) if "r2" in key[1] else (lambda number: number)
            assert value is None or exact(value) == pytest.approx(exact(other), rel=1e-6, abs=1e-9), key


def test_a_map_whose_products_float32_rounds_is_judged_by_moments():
    generator = torch.Generator().manual_seed(0)
    a, noise = (torch.randn(200, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    for size, is_exact in ((0.3, True), (1e-7, False)):
        of_pair = pair_moments(a, a @ weight + size * noise)
        assert bool(is_exact_enough(fit_direct(of_pair).map, of_pair)) == is_exact
    far = pair_moments(a, a @ weight + 0.3 * noise + 1e5)
    assert not is_exact_enough(fit_direct(far).map, far)


def test_statistics_are_told_without_torch():
    code = "import stitchgrid.planning, stitchgrid.statistics.values, sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
