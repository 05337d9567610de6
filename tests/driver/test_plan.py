from dataclasses import replace
from itertools import pairwise

import pytest

from stitchgrid.planning import (
    AGAIN,
    CPU_SPEED,
    GPU_SPEED,
    MAX_SHARD_S,
    MIN_SHARD_S,
    Costs,
    cost,
    cut_into_shards,
    make_plan,
    planned_shard,
    split_shard,
)
from stitchgrid.profiling.assumed_speed import FIRST_SPEED
from stitchgrid.records import DataSpec, Layer, MatcherSpec, Network, NetworkSpec, Preprocess, Sweep
from stitchgrid.statistics.shard import Collector

DIRECT = MatcherSpec(
    kind="direct",
    revision=1,
    params='{"cls":"copy","pool":"mean","rcond":1e-12,"resize":"bilinear"}',
    metrics=("accuracy", "residual"),
)
TASK = MatcherSpec(
    kind="task_loss",
    revision=1,
    params='{"augment":"none","batch_size":64,"cls":"copy","epochs":2,"lr":0.001,"pool":"mean","resize":"bilinear","weight_decay":0.0}',
    seed=0,
    metrics=("accuracy",),
)
CKA = MatcherSpec(kind="cka", revision=1, params="{}", metrics=("cka",))


def network(name, weights="w", num_layers=3):
    layers = tuple(
        Layer(
            name=f"l{k}",
            node=f"n{k}",
            depth=k / 2,
            kind="map",
            axes="NCHW",
            shape=(4, 4, 4),
            flops=1e6 * (k + 1),
            grid=(4, 4),
        )
        for k in range(num_layers)
    )
    return Network(
        spec=NetworkSpec(name=name, entry=name, architecture="stitchgrid:tiny10"),
        network_id=f"id-{name}-{weights}",
        weights_digest=weights,
        preprocess=Preprocess(),
        layers=layers,
        num_cuts=5,
        num_classes=10,
        num_parameters=100,
        input_shape=(3, 8, 8),
        flops=1e7,
        num_kept_bytes=1_000,
    )


def sweep(num_networks=5, matchers=(DIRECT, TASK, CKA), **changes):
    networks = tuple(network(f"m{k}") for k in range(num_networks))
    made = Sweep(
        name="s",
        seed=0,
        data=DataSpec(dataset="digits"),
        networks=networks,
        pairs=tuple((f, g) for f in range(num_networks) for g in range(num_networks)),
        matchers=matchers,
        precision="fp32",
        batch_size=32,
        eval_data="e",
        fit_data="f",
        need_fit=None,
        num_fit=200,
        num_eval=100,
        num_fit_closed=50,
        matcher_data=tuple("d" for _ in matchers),
    )
    return replace(made, **changes)


class Store:
    def __init__(self, done=None, failed=(), generations=None):
        self.done, self.errors, self.generations = done or {}, set(failed), generations or {}

    def metrics_done(self, cell_id):
        return self.done.get(cell_id, frozenset())

    def failed(self, cell_id):
        return "broke" if cell_id in self.errors else None

    def generation(self, cell_id):
        return self.generations.get(cell_id, 0 if cell_id in self.done or cell_id in self.errors else None)


def cell_ids(sweep, shards):
    return [cell.cell_id for shard in shards for cell in sweep.cells(shard)]


@pytest.mark.parametrize("speed", [1.0, CPU_SPEED])
@pytest.mark.parametrize("shard_flops", [1.0, 1e9, 1e11, 1e15, None])
def test_shards_hold_every_cell_once_however_they_are_cut(shard_flops, speed):
    asked = sweep()
    found = cell_ids(asked, cut_into_shards(asked, shard_flops=shard_flops, speed=speed))
    assert len(found) == len(set(found)) == 25 * 9 * 3


@pytest.mark.parametrize("num_sources", [2, 7, 16, 40])
@pytest.mark.parametrize("matchers", [(DIRECT,), (TASK,), (DIRECT, TASK, CKA)])
@pytest.mark.parametrize("share", [1.01, 0.9, 0.4, 0.1, 0.0])
def test_sources_of_a_target_layer_that_takes_too_long_are_shared_out_as_far_as_it_pays(num_sources, matchers, share):
    networks = network("source", num_layers=num_sources), network("target", num_layers=1)
    asked = sweep(networks=networks, pairs=((0, 1),), matchers=matchers)
    whole = asked.block(0, 1)
    full = cost(asked, [whole], range(len(matchers)))
    most = share * full
    shards = list(cut_into_shards(asked, shard_flops=1.0, speed=most / MAX_SHARD_S))
    runs = [shard.blocks[0].source_layers for shard in shards]
    assert [layer for run in runs for layer in run] == list(range(num_sources))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert sum(shard.flops for shard in shards) <= 9 / 8 * full
    ends = [k * num_sources // (len(shards) + 1) for k in range(len(shards) + 2)]
    more = [replace(whole, source_layers=whole.source_layers[i:j]) for i, j in pairwise(ends)]
    is_short = len(shards) == num_sources or max(shard.flops for shard in shards) <= most
    assert is_short or sum(cost(asked, [run], range(len(matchers))) for run in more) > 9 / 8 * full
    assert len(shards) == 1 or share < 1


def test_shards_keep_within_the_budget_or_are_a_single_target_layer():
    asked = sweep()
    for shard in cut_into_shards(asked, shard_flops=2e10):
        single = len(shard.blocks) == 1 and len(shard.blocks[0].target_layers) == 1
        assert single or cost(asked, shard.blocks, shard.matchers) <= 2e10


def test_alike_networks_are_costed_once_and_cost_what_each_would():
    narrow = network("narrow")
    some = tuple(replace(layer, shape=(2, 4, 4)) for layer in narrow.layers)
    networks = [network(f"m{k}") for k in range(3)] + [replace(narrow, layers=some)]
    pairs = tuple((f, g) for f in range(4) for g in range(4))
    asked = sweep(networks=tuple(networks), pairs=pairs)
    costs, collector = Costs(asked), Collector(asked)
    tiles = [[asked.block(f, g)] for f, g in pairs]
    tiles += [
        [asked.block(f, g) for f in some for g in others] for some, others in (((0, 1), (2, 3)), ((1, 2), (1, 2)))
    ]
    for tile in tiles:
        found = collector.of(tuple(tile))
        assert (costs(tile), costs.shared(tile)) == pytest.approx((found.flops(), found.shared_flops()), rel=1e-12)
    assert len(costs._found) == 5 + 2, "within and across the wide ones, from and into the narrow one, within it; tiles"


def test_finished_cells_do_not_move_the_borders_of_shards():
    asked = sweep()
    whole = make_plan(asked, Store())
    done = {cell.cell_id: frozenset(asked.matchers[cell.matcher].metrics) for cell in asked.cells(whole.todo[0])}
    rest = make_plan(asked, Store(done))
    assert rest.shards == whole.shards
    assert rest.todo == whole.todo[1:]
    assert rest.num_done == len(done)


def test_a_plan_says_why_each_cell_is_computed_or_not():
    asked = sweep(num_networks=1)
    first, second, third, *_ = cell_ids(asked, cut_into_shards(asked))
    store = Store({first: frozenset({"accuracy"}), second: frozenset({"accuracy"})}, failed=[third])
    plan = make_plan(asked, store)
    assert plan.reasons == {"new metric": 1, "done": 1, "failed before, left alone": 1, "missing": 24}
    assert plan.num_todo == 25
    again = make_plan(asked, store, retry_failed=True)
    assert again.reasons["failed before, tried again"] == 1
    assert again.num_todo == 26


def test_cells_of_untrained_networks_are_to_be_computed():
    asked = sweep(num_networks=1)
    untrained = replace(asked, networks=(network("m0", weights=""),))
    plan = make_plan(untrained, Store())
    assert plan.reasons == {"untrained model": 27}
    assert plan.num_todo == 27


def test_shards_of_one_network_under_two_names_are_run_once():
    one = network("m0")
    twins = sweep(networks=(one, replace(one, spec=replace(one.spec, name="again"))), pairs=((0, 0), (1, 1)))
    plan = make_plan(twins, Store(), shard_flops=1.0)
    assert len(plan.shards) == 2 * len(plan.todo) == 6
    assert len({shard.unit_id for shard in plan.todo}) == len(plan.todo)


@pytest.mark.parametrize("position", [0, 1])
def test_a_shard_is_computed_again_where_one_name_of_its_network_is_asked_for(position):
    one = network("m0")
    twins = sweep(networks=(one, replace(one, spec=replace(one.spec, name="again"))), pairs=((0, 0), (1, 1)))
    cells = [cell for shard in make_plan(twins, Store()).shards for cell in twins.cells(shard)]
    done = {cell.cell_id: frozenset(twins.matchers[cell.matcher].metrics) for cell in cells}
    plan = make_plan(twins, Store(done), again=lambda cell: 7 * (cell.source == position), shard_flops=1.0)
    assert sorted(cell_ids(twins, plan.todo)) == sorted(done)
    assert {pair for shard in plan.todo for pair in shard.generations} == {(cell_id, 7) for cell_id in done}


def test_cells_that_are_asked_for_again_are_computed_whatever_is_there():
    asked = sweep(num_networks=2)
    cells = [cell for shard in make_plan(asked, Store()).shards for cell in asked.cells(shard)]
    done = {cell.cell_id: frozenset(asked.matchers[cell.matcher].metrics) for cell in cells[1:]}
    newer = {cells[3].cell_id: 9, cells[4].cell_id: 3}
    store = Store(done, failed=[cells[5].cell_id], generations=newer)
    plan = make_plan(asked, store, again=lambda cell: 7 * (cell.matcher == cells[3].matcher))
    mine = {cell.cell_id for cell in cells if cell.matcher == cells[3].matcher}
    wanted = {cell_id for shard in plan.todo for cell_id in cell_ids(asked, [shard])}
    assert wanted == mine - {cells[3].cell_id} | {cells[0].cell_id}
    assert plan.reasons[AGAIN] == len(mine) - 1 - (cells[0].cell_id in mine)
    generations = {cell_id: number for shard in plan.todo for cell_id, number in shard.generations}
    assert generations == dict.fromkeys(wanted & mine, 7)
    more = make_plan(replace(asked, matchers=(DIRECT, TASK, replace(CKA, metrics=("cka", "other")))), store)
    assert dict(pair for shard in more.todo for pair in shard.generations).items() <= newer.items()


def test_the_layout_of_a_layer_is_part_of_a_cells_address():
    (a, b) = (sweep(num_networks=1), sweep(num_networks=1))
    turned = tuple(replace(layer, axes="NHWC") for layer in b.networks[0].layers)
    b = replace(b, networks=(replace(b.networks[0], layers=turned),))
    assert a.cell(0, 0, 0, 1, 0).cell_id != b.cell(0, 0, 0, 1, 0).cell_id


def test_addresses_of_cells_depend_on_content_and_not_on_names_or_speed():
    asked = sweep(num_networks=2)
    before = cell_ids(asked, cut_into_shards(asked))
    renamed = replace(
        asked,
        name="other",
        batch_size=7,
        networks=tuple(replace(one, spec=replace(one.spec, name=f"x{k}")) for k, one in enumerate(asked.networks)),
    )
    assert cell_ids(renamed, cut_into_shards(renamed)) == before
    others = tuple(replace(one, network_id=f"{one.network_id}-retrained") for one in asked.networks)
    for changed in (
        replace(asked, precision="bf16"),
        replace(asked, matcher_data=("other",) * 3),
        replace(asked, networks=others),
        replace(asked, matchers=tuple(replace(one, revision=2) for one in asked.matchers)),
    ):
        assert not set(cell_ids(changed, cut_into_shards(changed))) & set(before)


def test_halves_of_a_shard_share_its_cells_between_them_down_to_single_cells():
    asked = sweep(num_networks=1)
    [shard] = cut_into_shards(asked, shard_flops=1e15)
    pieces, singles = [shard], []
    while pieces:
        halves = split_shard(asked, pieces.pop())
        if halves is None:
            break
        pieces += [half for half in halves if half.num_cells > 1]
        singles += [half for half in halves if half.num_cells == 1]
    assert sorted(cell_ids(asked, singles)) == sorted(cell_ids(asked, [shard]))
    assert {planned_shard(one.unit_id) for one in singles} == {shard.unit_id}
    assert split_shard(asked, singles[0]) is None


def costly(total):
    """Return a sweep of so many operations in all, about: by the number of its evaluation images."""
    asked = sweep(num_networks=16, matchers=(DIRECT,))
    few = sum(shard.flops for shard in cut_into_shards(asked, shard_flops=1e30))
    return replace(asked, num_eval=round(asked.num_eval * total / few))


@pytest.mark.parametrize("speed", [CPU_SPEED, GPU_SPEED])
def test_a_shard_of_a_large_sweep_keeps_a_worker_busy_for_seconds_to_two_minutes_whatever_its_speed(speed):
    shards = list(cut_into_shards(costly(3600 * 4 * speed), speed=speed))
    seconds = [shard.flops / speed for shard in shards]
    assert max(seconds) <= 120
    assert sum(seconds) / len(seconds) >= 10


def test_shards_for_a_gpu_are_larger_and_a_small_sweep_is_still_shared():
    asked = costly(20 * 3600 * CPU_SPEED)
    on_cpu, on_gpu = (list(cut_into_shards(asked, speed=speed)) for speed in (CPU_SPEED, GPU_SPEED))
    assert len(on_cpu) > len(on_gpu) >= 16
    assert sorted(cell_ids(asked, on_cpu)) == sorted(cell_ids(asked, on_gpu))
    assert list(cut_into_shards(asked)) == on_cpu


def test_sweeps_planned_before_speeds_were_kept_are_cut_as_they_were():
    """Into shards of at most 1.2e13 operations, 1e11 where a sixteenth of the sweep is less."""
    assert MAX_SHARD_S * FIRST_SPEED == 1.2e13
    assert MIN_SHARD_S * FIRST_SPEED == 1e11
