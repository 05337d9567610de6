"""Trained maps: what one stitched network trained by itself would get, however they are computed."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from helpers_engine import (
    IMAGES,
    Zoo,
    assert_close,
    by_cell,
    every_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    preprocessed,
    reference,
    run,
    trained_zoo,
    unlike,
    values,
    workspace,
)
from torch import Tensor, nn
from torch.nn import functional

from stitchgrid.engine import training_images
from stitchgrid.engine.ledger import Ledger
from stitchgrid.engine.train import train_maps
from stitchgrid.engine.training_images import SourceReader, source_reader
from stitchgrid.matchers.drawing import initial_map, seeded
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.preprocess import augment_crop4_flip
from stitchgrid.records import Cell, Sweep
from stitchgrid.reference.rows import installed, lay

SPEC = matcher("task_loss", seed=5, epochs=4, batch_size=32, lr=1e-2)  # 20 steps over 160 images
PAIRS = [("conv", "token"), ("view", "view"), ("token", "view")]

Maps = dict[str, AffineMap]


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.fixture(scope="module")
def sweep(zoo: Zoo) -> Sweep:
    return make_sweep(zoo, PAIRS, [SPEC])


@pytest.fixture(scope="module")
def maps(zoo: Zoo, sweep: Sweep) -> Maps:
    """Return all maps of the sweep, trained together."""
    return train(zoo, sweep)


def train(zoo: Zoo, sweep: Sweep, cells: list[Cell] | None = None, *, num_images: int = 160) -> Maps:
    cells = list(every_cell(sweep).values()) if cells is None else cells
    work = workspace(zoo, sweep)
    ledger = Ledger(work, cells, shard="unit", generations={})
    for cell in cells:
        ledger[cell].num_fit = num_images
    stitches = train_maps(work, ledger, cells, source_reader(work, ledger, cells))
    assert [stitch.cell for stitch in stitches] == cells
    return {stitch.cell.cell_id: stitch.map for stitch in stitches}


def start_of(zoo: Zoo, sweep: Sweep, cell: Cell) -> AffineMap:
    source, target = (workspace(zoo, sweep).layer(key) for key in (cell.source_key, cell.target_key))
    return initial_map(source.width, target.width, generator=seeded("initial map", cell.cell_id))


def assert_same_maps(came: Maps, wanted: Maps) -> None:
    assert came
    for cell_id, map in came.items():
        torch.testing.assert_close(map.weight_DE, wanted[cell_id].weight_DE, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(map.bias_E, wanted[cell_id].bias_E, rtol=1e-5, atol=1e-5)


def trained_alone(zoo: Zoo, sweep: Sweep, cell: Cell, batches: Iterable[Tensor]) -> AffineMap:
    """Return the map trained by itself on these images in turn, through all stages of both networks."""
    f, g = (zoo.staged[sweep.networks[network].name].stages for network in (cell.source, cell.target))
    source, target = (sweep.networks[network].layers[k] for network, k in (cell.source_key, cell.target_key))
    start = start_of(zoo, sweep, cell)
    weight_DE, bias_E = start.weight_DE.clone().requires_grad_(), start.bias_E.clone().requires_grad_()
    adam = torch.optim.Adam([weight_DE, bias_E], lr=1e-2, weight_decay=1e-5)
    for chosen in batches:
        a = nn.Sequential(*f[: cell.source_layer + 1])(preprocessed(IMAGES.fit.pixels[chosen]))
        t = installed(lay(a, source, target, Rules()) @ weight_DE + bias_E, target)
        logits = nn.Sequential(*g[cell.target_layer + 1 :])(t)
        loss = functional.cross_entropy(logits, IMAGES.fit.labels[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return AffineMap(weight_DE=weight_DE, bias_E=bias_E).double()


def test_training_all_together_is_training_every_stitched_network_by_itself(zoo, sweep, maps):
    orders = [torch.randperm(160, generator=seeded("order and augmentation", 5, epoch)) for epoch in range(4)]
    steps = [indices for order in orders for indices in order.split(32)]
    assert len(steps) == 20
    for cell_id, cell in list(every_cell(sweep).items())[::5]:
        alone = trained_alone(zoo, sweep, cell, steps)
        assert_same_maps({cell_id: maps[cell_id]}, {cell_id: alone})
        assert (alone.weight_DE - start_of(zoo, sweep, cell).weight_DE).abs().max() > 0.05


def test_the_metrics_of_trained_maps_are_those_of_whole_stitched_networks(zoo, sweep, maps):
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    assert by_cell(rows).keys() == maps.keys()
    assert not unlike(sweep, rows, lambda cell: found.measured(cell, maps[cell.cell_id]))


def test_training_lowers_the_loss(zoo):
    few, many = (
        by_cell(run(zoo, make_sweep(zoo, [("conv", "conv")], [matcher("task_loss", epochs=epochs, lr=1e-2)])))
        for epochs in (1, 20)
    )
    mean = lambda table: sum(row["loss"].value for row in table.values()) / len(table)  # noqa: E731
    assert mean(many) < mean(few) - 0.1


def test_training_again_gives_the_same_bits(zoo, sweep, maps):
    again = train(zoo, sweep)
    assert all(torch.equal(again[cell_id].weight_DE, map.weight_DE) for cell_id, map in maps.items())


@pytest.mark.parametrize("chosen", [[0], [7], [30, 2, 17]])
def test_a_map_trained_alone_is_the_one_trained_among_others(zoo, sweep, maps, chosen):
    cells = list(every_cell(sweep).values())
    assert_same_maps(train(zoo, sweep, [cells[k] for k in chosen]), maps)


def test_the_order_of_the_cells_changes_no_map(zoo, sweep, maps):
    assert_same_maps(train(zoo, sweep, list(every_cell(sweep).values())[::-1]), maps)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("stitched.STACK_IMAGES", {"cpu": 1}),
        ("stitched.STACK_IMAGES", {"cpu": 70}),
        ("stitched.STACK_BYTES", 1),
        ("training_images.CACHE_BYTES", 0),
    ],
)
def test_neither_stacking_nor_reading_the_images_again_changes_a_map(zoo, sweep, maps, monkeypatch, name, size):
    monkeypatch.setattr(f"stitchgrid.engine.{name}", size)
    assert_same_maps(train(zoo, sweep), maps)


def test_the_batch_size_of_inference_changes_no_map(zoo, sweep, maps):
    assert_same_maps(train(zoo, replace(sweep, batch_size=7)), maps)


def test_a_short_last_batch_is_a_step_of_its_own(zoo):
    sweep = make_sweep(zoo, [("conv", "view")], [matcher("task_loss", epochs=1, batch_size=32, lr=1e-2)])
    cell = next(iter(every_cell(sweep).values()))
    came = train(zoo, sweep, [cell], num_images=70)[cell.cell_id]
    order = torch.randperm(70, generator=seeded("order and augmentation", 0, 0))
    wanted, without = (trained_alone(zoo, sweep, cell, order.split(32)[:num]) for num in (3, 2))
    assert_same_maps({"x": came}, {"x": wanted})
    assert (came.weight_DE - without.weight_DE).abs().max() > 1e-3


def test_seeds_give_other_maps_and_other_orders(zoo):
    sweep = make_sweep(zoo, [("conv", "view")], [matcher("task_loss", seed=seed, epochs=1) for seed in (0, 1)])
    first, second = (sweep.cell(0, 0, 1, 0, k) for k in (0, 1))
    starts = start_of(zoo, sweep, first), start_of(zoo, sweep, second)
    assert not torch.allclose(starts[0].weight_DE, starts[1].weight_DE)
    orders = [torch.randperm(160, generator=seeded("order and augmentation", seed, 0)) for seed in (0, 1)]
    assert not torch.equal(*orders)


def test_matchers_that_read_the_same_sources_share_one_pass(zoo, monkeypatch):
    asked = [
        matcher("task_loss", seed=0, epochs=2, samples=64),
        matcher("task_loss", seed=1, epochs=1, lr=1e-2, samples=64),
        matcher("task_loss", seed=0, epochs=1, samples=40),
        matcher("task_loss", seed=0, epochs=2, samples=40, augment="crop4_flip"),
    ]
    read: list[int] = []
    forward = training_images.forward
    monkeypatch.setattr(
        training_images,
        "forward",
        lambda work, pixels, *of, **how: read.append(len(pixels)) or forward(work, pixels, *of, **how),
    )
    sweep = make_sweep(zoo, [("conv", "view")], asked)
    together = values(run(zoo, sweep))
    assert sum(read) == 64 + 40 + 2 * 40 + 40  # augmented ones once more as they are, for the loss at the end
    alone = {}
    for one in asked:
        alone |= values(run(zoo, make_sweep(zoo, [("conv", "view")], [one])))
    assert_close(together, alone)


def activations(reader: SourceReader, *, epoch: int = 0, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [(seen.labels_N, seen.sources[0, 1]) for seen in reader.epoch(epoch, seed=seed, batch_size=32)]


def test_every_image_is_read_once_an_epoch_with_its_own_label(zoo, sweep):
    reader = SourceReader(workspace(zoo, sweep), [(0, 1)], 70, augment="none")
    whole = nn.Sequential(*zoo.staged["conv"].stages[:2])(preprocessed(IMAGES.fit.pixels[:70]))
    for epoch in (0, 1):
        order = torch.randperm(70, generator=seeded("order and augmentation", 5, epoch))
        labels, taken = (torch.cat(side) for side in zip(*activations(reader, epoch=epoch), strict=True))
        assert torch.equal(labels, IMAGES.fit.labels[order])
        torch.testing.assert_close(taken, whole[order], rtol=1e-4, atol=1e-5)


def test_augmented_images_are_drawn_anew_every_epoch_by_the_seed_alone(zoo, sweep):
    reader = SourceReader(workspace(zoo, sweep), [(0, 1)], 70, augment="crop4_flip")
    first, again, other = (activations(reader, epoch=epoch) for epoch in (0, 0, 1))
    assert reader.kept is None
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0][1], other[0][1])

    generator = seeded("order and augmentation", 5, 0)
    order = torch.randperm(70, generator=generator)
    pixels = augment_crop4_flip(IMAGES.fit.pixels[order[:32]], generator)
    wanted = zoo.cut["conv"].taps([zoo.layers("conv")[1].node])
    with torch.no_grad():
        torch.testing.assert_close(first[0][1], wanted(preprocessed(pixels))[0])
