"""What must not change what a shard measures, and what must come out. The values themselves: test_reference.py."""

import re
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from helpers_engine import (
    IMAGES,
    FakeImages,
    FakeSplit,
    Staged,
    Values,
    Zoo,
    assert_close,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    network_record,
    one_thread,  # noqa: F401  # a fixture
    run,
    trained_zoo,
    values,
    whole_shard,
    workspace,
)
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stitchgrid.engine import gram_matrices, pair_moments, stitched, train
from stitchgrid.engine.memory import fitting_pieces, shard_bytes
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace, forward
from stitchgrid.planning import cost, cut_into_shards, split_shard
from stitchgrid.records import Row, Shard, Sweep
from stitchgrid.statistics import gram

PAIRS = [("conv", "conv"), ("conv", "conv_again"), ("conv", "token"), ("token", "view"), ("view", "token")]
DIRECT = matcher("direct")
CLOSED = [DIRECT, matcher("cka"), matcher("pwcca"), matcher("procrustes")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.fixture(scope="module")
def closed(zoo: Zoo) -> tuple[Sweep, list[Row]]:
    sweep = make_sweep(zoo, PAIRS, CLOSED)
    return sweep, run(zoo, sweep)


def of_pair(sweep: Sweep, rows: list[Row], pair: tuple[str, str]) -> list[Row]:
    names = {
        cell_id: (sweep.networks[cell.source].name, sweep.networks[cell.target].name)
        for cell_id, cell in every_cell(sweep).items()
    }
    return [row for row in rows if names[row.cell_id] == pair]


@pytest.mark.parametrize("batch_size", [1, 7, 90, 1_000])
def test_the_batch_size_changes_no_closed_form_value(zoo, closed, batch_size):
    sweep = make_sweep(zoo, PAIRS[2:], CLOSED, batch_size=batch_size)
    assert_close(values(run(zoo, sweep)), values(closed[1]))


@pytest.mark.slow  # a minute of compilation
def test_compiled_networks_give_the_same_values(zoo, monkeypatch):
    sweep = make_sweep(zoo, PAIRS[:1], [*CLOSED, matcher("task_loss", epochs=1, batch_size=32)])
    plain = values(run(zoo, sweep))
    compiled = []
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part, **how: compiled.append(part) or compile_(part, **how))
    monkeypatch.setattr(zoo.cut["conv"], "compiles", True)
    assert_close(values(run(zoo, sweep)), plain)
    assert len(compiled) > len(sweep.networks[0].layers)  # tails, and what is before them


def units(sweep: Sweep, *, fineness: float, memory: float, random: Random) -> list[Shard]:
    """Return what a sweep's cells are computed in, in a drawn order.

    Shards range from the whole sweep (fineness 0) to single target layers (2), are halved or not by their sources or as
    after a crash, and cut into pieces for a memory between what the smallest of these takes (0) and what all of it
    takes (1).
    """
    whole = whole_shard(sweep)
    pieces: list[Shard] = []
    for planned in cut_into_shards(sweep, shard_flops=cost(sweep, whole.blocks, whole.matchers) / 10**fineness):
        for shard in random.choice([None, split_shard(sweep, planned), halves_by_sources(planned)]) or [planned]:
            least = min(shard_bytes(sweep, piece, CPU) for piece in fitting_pieces(sweep, shard, CPU, budget=0))
            budget = round(least + memory * (shard_bytes(sweep, shard, CPU) - least))
            pieces += fitting_pieces(sweep, shard, CPU, budget=budget)
    random.shuffle(pieces)
    return pieces


def halves_by_sources(shard: Shard) -> list[Shard] | None:
    """Return a shard of one network pair as two, one of its first sources and one of the others."""
    if len(shard.blocks) > 1:
        return None
    [block] = shard.blocks
    layers, middle = block.source_layers, len(block.source_layers) // 2
    halves = [replace(block, source_layers=some) for some in (layers[:middle], layers[middle:]) if some]
    return [replace(shard, blocks=(half,)) for half in halves]


def assert_same_in(pieces: list[Shard], works: list[Workspace], random: Random, whole: list[Row]) -> None:
    """Compute every piece in one of the workspaces, and hold the values to those of one piece."""
    rows = [row for piece in pieces for row in run_shard(piece, random.choice(works))]
    assert sorted((row.cell_id, row.metric) for row in rows) == sorted((row.cell_id, row.metric) for row in whole)
    assert_close(values(rows), values(whole))


SOME_LAYERS = {"conv": (1, 3), "token": (1, 2), "view": (0, 2, 3)}
TWENTY_STEPS = matcher("task_loss", epochs=5, batch_size=15, samples=60)


def some_layers(zoo: Zoo, batch_size: int = 32) -> Sweep:
    sweep = make_sweep(zoo, PAIRS[2:], [*CLOSED, TWENTY_STEPS], batch_size=batch_size)
    networks = (network_record(zoo, network.name, SOME_LAYERS[network.name]) for network in sweep.networks)
    return replace(sweep, networks=tuple(networks))


@pytest.fixture(scope="module")
def few(zoo: Zoo) -> list[Row]:
    return run(zoo, some_layers(zoo))


@given(
    batch_size=st.integers(32, 100),
    halvings=st.lists(st.integers(0, 1), min_size=1, max_size=3),
    fineness=st.floats(0, 2),
    memory=st.floats(0, 1),
    random=st.randoms(use_true_random=False),
)
@example(batch_size=50, halvings=[1, 0], fineness=0, memory=0.6, random=Random(1))
@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
def test_any_split_into_batches_shards_and_workers_gives_the_same_values(
    zoo, few, batch_size, halvings, fineness, memory, random
):
    """Of maps after twenty steps as well, which differ by rounding alone."""
    sweep = some_layers(zoo, batch_size)
    works = [replace(workspace(zoo, sweep), halvings=number) for number in halvings]
    assert_same_in(units(sweep, fineness=fineness, memory=memory, random=random), works, random, few)


@pytest.fixture(scope="module")
def many(zoo: Zoo) -> list[Row]:
    return run(zoo, make_sweep(zoo, PAIRS, [*CLOSED, TWENTY_STEPS]))


@pytest.mark.slow
@given(
    batch_size=st.integers(8, 200),
    halvings=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    fineness=st.floats(0, 3),
    memory=st.floats(0, 1),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_any_split_of_all_layers_gives_the_same_values(zoo, many, batch_size, halvings, fineness, memory, random):
    sweep = make_sweep(zoo, PAIRS, [*CLOSED, TWENTY_STEPS], batch_size=batch_size)
    works = [replace(workspace(zoo, sweep), halvings=number) for number in halvings]
    assert_same_in(units(sweep, fineness=fineness, memory=memory, random=random), works, random, many)


def test_maps_trained_for_one_target_layer_at_a_time_are_the_same_bits(zoo):
    sweep = make_sweep(zoo, [("conv", "token")], [TWENTY_STEPS])
    pieces = list(fitting_pieces(sweep, whole_shard(sweep), CPU, budget=0))
    assert len(pieces) == 4
    came = [row for piece in pieces for row in run_shard(piece, workspace(zoo, sweep)) if row.metric == "loss"]
    assert values(came) == values(row for row in run(zoo, sweep) if row.metric == "loss")


def test_cells_computed_in_parts_have_the_values_they_have_together(zoo, closed):
    sweep, rows = closed
    cells = sorted(every_cell(sweep))
    parts: Values = {}
    for k in range(6):
        parts |= values(run(zoo, sweep, wanted=cells[k::6]))
    assert parts.keys() == values(rows).keys()
    assert_close(parts, values(rows))


@pytest.mark.parametrize("kind", ["direct", "cka", "pwcca", "procrustes"])
def test_a_cell_computed_alone_has_the_value_it_has_among_others(zoo, closed, kind):
    sweep, rows = closed
    for cell_id in sorted(by_cell(rows, kind))[:8]:
        assert_close(values(run(zoo, sweep, wanted=[cell_id])), values(rows))


@pytest.mark.parametrize(
    ("module", "name", "size"),
    [
        (stitched, "STACK_IMAGES", {"cpu": 1}),
        (stitched, "STACK_IMAGES", {"cpu": 70}),
        (stitched, "STACK_BYTES", 1),
        (gram_matrices, "GRAM_BYTES", {"cpu": 1}),
        (gram_matrices, "GRAM_BYTES", {"cpu": 4 * 90 * 900}),
        (pair_moments, "CHUNK_BYTES", {"cpu": 1}),
        (pair_moments, "CHUNK_BYTES", {"cpu": 100_000}),
    ],
)
def test_how_much_is_held_at_a_time_changes_no_closed_form_value(zoo, closed, monkeypatch, module, name, size):
    monkeypatch.setattr(module, name, size)
    assert_close(values(run(zoo, make_sweep(zoo, PAIRS[2:], CLOSED))), values(closed[1]))


@given(num_networks=st.integers(1, 40), num_images=st.integers(1, 300), most=st.integers(1, 2_048))
def test_stacks_of_stitched_networks_are_as_few_and_as_equal_as_can_be(zoo, num_networks, num_images, most):
    work = workspace(zoo, make_sweep(zoo, PAIRS[:1], CLOSED[:1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stitched, "STACK_IMAGES", {"cpu": most})
        found = [
            range(num_networks)[part] for part in stitched.stacks(work, work.layer((0, 0)), num_networks, num_images)
        ]
    assert [position for stack in found for position in stack] == list(range(num_networks))
    assert all(len(stack) * num_images <= max(most, num_images) for stack in found)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len(found) == 1 or -(-num_networks // (len(found) - 1)) * num_images > most


@given(sizes=st.lists(st.integers(0, 9), max_size=8), budget=st.integers(0, 12))
def test_groups_keep_the_order_and_the_budget_and_no_two_neighbours_would_fit_together(sizes, budget):
    items = list(enumerate(sizes))
    groups = gram.in_groups(items, lambda item: item[1], budget=budget)
    assert [item for group in groups for item in group] == items
    assert all(group and (len(group) == 1 or sum(size for _, size in group) <= budget) for group in groups)
    assert all(sum(size for _, size in [*one, other[0]]) > budget for one, other in pairwise(groups))


def test_a_layer_stitched_to_itself_leaves_the_network_as_it_is(zoo):
    sweep = make_sweep(zoo, [(name, name) for name in zoo.staged], [DIRECT])
    num = 0
    for cell_id, row in by_cell(run(zoo, sweep)).items():
        cell = every_cell(sweep)[cell_id]
        if cell.source_layer == cell.target_layer:
            assert row["residual"].value < 1e-6
            assert (row["agreement"].value, row["relative_accuracy"].value, row["penalty"].value) == (1, 1, 0)
            assert "underdetermined" not in row["residual"].flags
            num += 1
    assert num == 5 + 5 + 4 + 4


def test_too_few_images_are_flagged_and_the_value_is_kept(zoo):
    sweep = make_sweep(zoo, [("conv", "conv")], [DIRECT], num_fit_closed=5)
    for cell_id, row in by_cell(run(zoo, sweep)).items():
        cell = every_cell(sweep)[cell_id]
        source_is_wide_vector = cell.source_layer == 3
        if source_is_wide_vector:
            assert "underdetermined" in row["residual"].flags
        if cell.source_layer == cell.target_layer == 3:
            assert row["residual"].value > 1e-6


def test_no_trained_map_has_a_lower_residual_on_the_fit_rows_than_direct(zoo):
    images = FakeImages(fit=IMAGES.fit, eval=IMAGES.fit)
    matchers = [DIRECT, matcher("task_loss", epochs=2, batch_size=32, lr=1e-2)]
    sweep = make_sweep(zoo, [("conv", "conv"), ("conv", "token")], matchers, num_fit_closed=160, images=images)
    rows = run(zoo, sweep, images=images)
    lowest = {}
    for cell_id, found in by_cell(rows, "direct").items():
        cell = every_cell(sweep)[cell_id]
        lowest[cell.source_key, cell.target_key] = found["residual"].value
    assert len(lowest) == 25 + 20
    for cell_id, found in by_cell(rows, "task_loss").items():
        cell = every_cell(sweep)[cell_id]
        assert found["residual"].value > lowest[cell.source_key, cell.target_key]


@pytest.mark.parametrize("name", ["conv", "view", "token"])
def test_within_a_network_the_layer_itself_is_the_source_of_lowest_residual(zoo, name):
    sweep = make_sweep(zoo, [(name, name)], [DIRECT])
    table: dict[int, dict[int, float]] = {}
    for cell_id, found in by_cell(run(zoo, sweep)).items():
        cell = every_cell(sweep)[cell_id]
        table.setdefault(cell.target_layer, {})[cell.source_layer] = found["residual"].value
    for target, by_source in table.items():
        assert by_source[target] <= min(by_source.values()) + 1e-9  # a linear layer is matched by its input as well
        assert max(by_source.values()) > 1e-2


def test_negative_mass_is_undefined_where_any_fit_or_evaluation_row_of_the_target_is_negative():
    black = lambda split, *positions: _blackened(split, positions)  # noqa: E731
    fit, evaluation = FakeSplit(30, seed=1), FakeSplit(20, seed=2)
    assert _defined(FakeImages(fit=fit, eval=evaluation)) == {"few": True, "many": True, "task_loss": True}
    assert _defined(FakeImages(fit=fit, eval=black(evaluation, 19))) == dict.fromkeys(
        ("few", "many", "task_loss"), False
    )
    late = FakeImages(fit=black(fit, 29), eval=evaluation)
    assert _defined(late) == {"few": True, "many": True, "task_loss": False}
    middle = FakeImages(fit=black(fit, 14), eval=evaluation)
    assert _defined(middle) == {"few": True, "many": False, "task_loss": False}
    just_behind_nine = FakeImages(fit=black(fit, 9), eval=evaluation)
    assert _defined(just_behind_nine) == {"few": True, "many": False, "task_loss": False}


class Brightness(nn.Module):
    """Positive features of every image that is not black, and some that are 0 for it: all negative for a black one."""

    def forward(self, x: Tensor) -> Tensor:
        light = (x + 0.45).mean((2, 3)) - 0.01
        return torch.cat([light, light.clamp(max=0)], dim=1)


def _blackened(split: FakeSplit, positions: tuple[int, ...]) -> FakeSplit:
    changed = FakeSplit(split.num, seed=0)
    changed.pixels, changed.labels = split.pixels.clone(), split.labels
    changed.pixels[list(positions)] = 0
    return changed


def _defined(images: FakeImages) -> dict[str, bool]:
    """Return for maps fitted on 9 images, on 16 and on all 30 whether negative_mass has a value; alone and together."""
    torch.manual_seed(0)
    zoo = Zoo.of(bright=Staged([Brightness(), nn.Linear(6, 4)]).eval())
    matchers = {"few": matcher("direct", samples=9), "many": DIRECT, "task_loss": matcher("task_loss", epochs=1)}
    sweep = make_sweep(
        zoo, [("bright", "bright")], list(matchers.values()), num_fit_closed=16, batch_size=4, images=images
    )
    cells = {name: sweep.cell(0, 0, 0, 0, k).cell_id for k, name in enumerate(matchers)}
    together = by_cell(run(zoo, sweep, images=images))
    alone = {name: by_cell(run(zoo, sweep, images=images, wanted=[cell])) for name, cell in cells.items()}
    found = {name: together[cell]["negative_mass"].value is not None for name, cell in cells.items()}
    assert found == {name: alone[name][cell]["negative_mass"].value is not None for name, cell in cells.items()}
    return found


def test_rows_say_what_they_were_made_of(zoo):
    sweep = make_sweep(zoo, [("conv", "token")], CLOSED)
    rows = {
        (row.matcher, cell.source_layer, cell.target_layer): row
        for row in run(zoo, sweep)
        if (cell := every_cell(sweep)[row.cell_id])
    }
    described = {key: (row.num_fit, row.num_eval, row.num_rows, row.alignment, row.flags) for key, row in rows.items()}
    assert described["direct", 0, 0] == (60, 90, 900, "map_to_tokens+cls_pool+bilinear", ("subsampled", "undefined"))
    assert described["direct", 1, 0] == (60, 90, 900, "map_to_tokens+cls_pool+bilinear", ("undefined",))
    assert described["direct", 0, 3] == (60, 90, 90, "mean", ("undefined",))
    assert described["direct", 3, 0] == (60, 90, 900, "cls_pool+broadcast", ("undefined",))
    assert described["cka", 0, 0] == (None, 90, 90, "flattened", ())
    assert described["pwcca", 0, 0] == (None, 90, 90, "pooled", ())
    assert all(row.seconds > 0 for row in rows.values())
    assert {row.status for row in rows.values()} == {"done"}


def test_position_and_token_rows_are_counted_and_few_rows_are_flagged_saturated(zoo):
    sweep = make_sweep(
        zoo, [("conv", "conv"), ("token", "token")], [matcher(k, samples=15) for k in ("pwcca", "procrustes")]
    )
    for row in run(zoo, sweep):
        cell = every_cell(sweep)[row.cell_id]
        f, g = (sweep.networks[key[0]].layers[key[1]] for key in (cell.source_key, cell.target_key))
        if f.kind == g.kind == "map" and f.shape[1:] == g.shape[1:]:
            wanted = 15 * f.shape[1] * f.shape[2], "positions"
        elif f.kind == g.kind == "tokens":
            wanted = 15 * 10, "tokens"
        else:
            wanted = 15, "pooled"
        assert (row.num_rows, row.alignment) == wanted
        assert row.flags == (("saturated",) if wanted[0] - 1 < f.width + g.width else ())


def test_each_network_gets_its_own_preprocessing(zoo):
    sweep = make_sweep(zoo, [("conv", "token")], [matcher("cka")])
    dark = replace(sweep.networks[1].preprocess, std=(10.0, 10.0, 10.0))
    changed = replace(sweep, networks=(sweep.networks[0], replace(sweep.networks[1], preprocess=dark)))
    before, after = (forward(workspace(zoo, s), IMAGES.eval.pixels[:4], {0: [0], 1: [0]})[0] for s in (sweep, changed))
    assert torch.equal(before[0, 0], after[0, 0])
    assert not torch.allclose(before[1, 0], after[1, 0])


def test_networks_stay_as_they_were_through_training_and_evaluation(zoo):
    before = {name: {k: v.clone() for k, v in cut.module.state_dict().items()} for name, cut in zoo.cut.items()}
    run(zoo, make_sweep(zoo, PAIRS[2:3], [*CLOSED, matcher("task_loss", epochs=1)]))
    for name, cut in zoo.cut.items():
        assert all(torch.equal(value, before[name][key]) for key, value in cut.module.state_dict().items())
        assert all(parameter.grad is None for parameter in cut.module.parameters())


def test_indices_alone_need_no_fit_images(zoo, closed):
    images = FakeImages(fit=None, eval=IMAGES.eval)  # type: ignore[arg-type]
    sweep = replace(make_sweep(zoo, PAIRS[:1], CLOSED[1:]), num_fit=0, num_fit_closed=0)
    assert_close(values(run(zoo, sweep, images=images)), values(closed[1]))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_reduced_precision_holds_inside_networks_alone(zoo, precision):
    work = workspace(zoo, make_sweep(zoo, PAIRS[:1], CLOSED, precision=precision))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with work.precision():
        assert matmul.allow_tf32 == cudnn.allow_tf32 == (precision == "tf32")
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    assert not matmul.allow_tf32
    assert not cudnn.allow_tf32
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_of_networks_are_found_in_the_precision_of_the_job_and_those_of_maps_in_float32(zoo, monkeypatch):
    seen: dict[str, set[bool]] = {"network": set(), "map": set()}
    install, parameters = train.install, train._parameters

    def watch(tensor, what):
        tensor.register_hook(lambda gradient: seen[what].add(torch.backends.cuda.matmul.allow_tf32))
        return tensor

    monkeypatch.setattr(train, "install", lambda rows, layer: watch(install(rows, layer), "network"))
    monkeypatch.setattr(
        train, "_parameters", lambda *args: [m for m in parameters(*args) if watch(m.weight_DE, "map") is not None]
    )
    run(zoo, make_sweep(zoo, PAIRS[:1], [matcher("task_loss", epochs=1)], precision="tf32"))
    assert seen == {"network": {True}, "map": {False}}


def test_bf16_moves_the_values_a_little_and_is_recorded(zoo, closed):
    exact = {row.value for row in of_pair(*closed, PAIRS[2]) if row.metric == "cka"}
    rows = run(zoo, make_sweep(zoo, PAIRS[2:3], CLOSED[1:2], precision="bf16"))
    assert {row.precision for row in rows} == {"bf16"}
    moved = [min(abs(row.value - value) for value in exact) for row in rows]
    assert 0 < max(moved) < 0.02


def test_how_well_the_fit_rows_determine_a_map_is_noted_for_whoever_asks(zoo, caplog):
    with caplog.at_level("DEBUG", logger="stitchgrid.engine.fit"):
        run(zoo, make_sweep(zoo, [("conv", "view")], [DIRECT]))
    assert len(caplog.messages) == 20
    assert re.search(r"direct conv \S+ -> view \S+: 8640 rows, rank 6 of 6, condition number \d", caplog.messages[0])
