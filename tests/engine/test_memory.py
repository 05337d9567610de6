"""Shards that do not fit into memory: what is known beforehand is cut, what fails is tried with less at a time."""

import gc
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from weakref import finalize

import pytest
import torch
from helpers_engine import (
    FEW,
    FakeImages,
    FakeSplit,
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
    whole_shard,
    workspace,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stitchgrid import worker as worker_module
from stitchgrid.engine import fit, memory
from stitchgrid.engine.evaluate import Evaluation
from stitchgrid.engine.memory import fitting_pieces, shard_bytes, shard_halvings
from stitchgrid.engine.resampling import Resampling
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import InputError
from stitchgrid.records import Row, Shard, Sweep
from stitchgrid.statistics.base import total_bytes
from stitchgrid.statistics.shard import Collector
from stitchgrid.store import Store
from stitchgrid.worker import Worker

PAIRS = [("conv", "view"), ("view", "conv")]
CLOSED = [matcher("direct"), matcher("cka"), matcher("pwcca"), matcher("procrustes")]
TRAINED = matcher("task_loss", epochs=2, batch_size=32, samples=80)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return trained_zoo()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    Store.open(tmp_path / "grid", create=True)
    return Worker(store=str(tmp_path / "grid"), device="cpu", threads=1)


def starving(until: int, error: Callable[[], Exception]) -> Callable[[Shard, Workspace], list[Row]]:
    """Return `run_shard` that fails until so many halvings."""

    def run_or_fail(shard: Shard, work: Workspace) -> list[Row]:
        if work.halvings < until:
            raise error()
        return run_shard(shard, work)

    return run_or_fail


def test_a_shard_too_big_is_cut_by_target_layers_into_the_same_cells(zoo):
    sweep = make_sweep(zoo, PAIRS, CLOSED)
    whole = whole_shard(sweep)
    need = shard_bytes(sweep, whole, CPU)
    assert list(fitting_pieces(sweep, whole, CPU, budget=need)) == [whole]
    half = list(fitting_pieces(sweep, whole, CPU, budget=need - 1))
    single = list(fitting_pieces(sweep, whole, CPU, budget=0))
    assert 1 < len(half) < len(single) == 9
    for pieces in (half, single):
        assert [cell for piece in pieces for cell in sweep.cells(piece)] == list(every_cell(sweep).values())


def test_more_layers_images_and_wider_matrices_need_more(zoo):
    sweep = make_sweep(zoo, PAIRS, CLOSED)
    need = lambda sweep: shard_bytes(sweep, whole_shard(sweep), CPU)  # noqa: E731
    assert need(replace(sweep, batch_size=512)) > need(sweep) > need(make_sweep(zoo, PAIRS[:1], CLOSED))
    assert need(make_sweep(zoo, PAIRS, [*CLOSED, TRAINED])) > need(sweep)
    assert need(make_sweep(zoo, PAIRS, CLOSED[:1])) < need(sweep)


def test_what_indices_find_of_each_layer_is_counted_one_kind_at_a_time_and_distances_once(zoo):
    def grams(*kinds: str) -> int:
        sweep = make_sweep(zoo, PAIRS[:1], [matcher(kind) for kind in kinds])
        return total_bytes(Collector(sweep).of(whole_shard(sweep).blocks).grams)

    sweep = make_sweep(zoo, PAIRS[:1], [matcher("cka")])
    keys = {(block.source, k) for block in whole_shard(sweep).blocks for k in block.source_layers}
    keys |= {(block.target, k) for block in whole_shard(sweep).blocks for k in block.target_layers}
    whole = len(keys) * 8 * sweep.num_eval**2
    assert grams("cka_unbiased") - grams("cka") == whole
    assert grams("rsa") - grams("cka") == whole * 3 // 2  # distances, and half a matrix of ranks
    assert grams("rsa", "cka_unbiased", "cka_rbf") - grams("cka") == 2 * whole


def test_a_worker_short_of_memory_gives_the_same_values_piece_by_piece(zoo, worker, monkeypatch):
    short = matcher("task_loss", epochs=1, batch_size=16, samples=16)  # one image at a time
    sweep = make_sweep(zoo, PAIRS, [*CLOSED, short], layers=FEW)
    pieces: list[Shard] = []
    monkeypatch.setattr(worker_module, "available_bytes", lambda device, **_: 0)
    monkeypatch.setattr(worker_module, "run_shard", lambda shard, work: pieces.append(shard) or run_shard(shard, work))
    rows = worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert len(pieces) == 5  # one a target layer
    came, wanted = values(rows), values(run(zoo, sweep))
    trained = {row.cell_id for row in rows if row.matcher == "task_loss"}
    closed = {key: value for key, value in came.items() if key[0] not in trained}
    assert_close(closed, {key: wanted[key] for key in closed})
    assert {row.shard for row in rows} == {"u"}


def test_a_target_layer_too_big_starts_with_as_many_halvings_as_it_asks_for(zoo):
    sweep = make_sweep(zoo, PAIRS, [*CLOSED, TRAINED])
    whole = whole_shard(sweep)
    needs = [shard_bytes(sweep, whole, CPU, halvings=halvings) for halvings in range(6)]
    assert needs == sorted(needs, reverse=True)
    assert needs[1] < needs[0]
    assert [shard_halvings(sweep, whole, CPU, budget=need) for need in needs[:4]] == [0, 1, 2, 3]
    assert shard_halvings(sweep, whole, CPU, budget=1 << 60) == 0


def test_batches_are_not_halved_further_than_that_helps(zoo):
    sweep = make_sweep(zoo, PAIRS, CLOSED, batch_size=256)
    heavy = replace(sweep, networks=tuple(replace(one, num_parameters=10**11) for one in sweep.networks))
    assert shard_halvings(heavy, whole_shard(heavy), CPU, budget=0) == 0
    assert 1 < shard_halvings(sweep, whole_shard(sweep), CPU, budget=0) <= 8


def test_a_target_layer_that_needs_halvings_leaves_the_others_their_full_batch(zoo, worker, monkeypatch, caplog):
    sweep = make_sweep(zoo, PAIRS, [*CLOSED, TRAINED])
    single = fitting_pieces(sweep, whole_shard(sweep), CPU, budget=0)
    budget = min(shard_bytes(sweep, piece, CPU) for piece in single)
    tries: dict[int, int] = {}

    def note(shard: Shard, work: Workspace) -> list[Row]:
        tries[shard_bytes(sweep, shard, CPU)] = work.halvings
        return run_shard(shard, work)

    monkeypatch.setattr(worker_module, "available_bytes", lambda device, **_: 1 + budget / worker_module.MEMORY_SHARE)
    monkeypatch.setattr(worker_module, "run_shard", note)
    with caplog.at_level("INFO"):
        rows = worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert {need for need, halvings in tries.items() if halvings} == {need for need in tries if need > budget} != set()
    few = sweep.batch_size >> max(tries.values())
    assert f"a target layer needs more: {few} images at a time for it, not {sweep.batch_size}" in caplog.text
    flagged = {row.matcher for row in rows if "micro_batched" in row.flags}
    assert flagged == {"task_loss"}
    came, wanted = values(rows), values(run(zoo, sweep))
    trained = {row.cell_id for row in rows if row.matcher == "task_loss"}
    closed = {key: value for key, value in came.items() if key[0] not in trained}
    assert_close(closed, {key: wanted[key] for key in closed})
    assert worker._halvings == 0  # known beforehand, not learnt


def test_what_was_learnt_comes_on_top_of_what_is_known(zoo, worker, monkeypatch):
    sweep = make_sweep(zoo, PAIRS[:1], CLOSED[:1])
    tries: list[int] = []
    starve = starving(2, MemoryError)
    monkeypatch.setattr(worker_module, "shard_halvings", lambda *_, **__: 1)
    monkeypatch.setattr(
        worker_module, "run_shard", lambda shard, work: tries.append(work.halvings) or starve(shard, work)
    )
    for _ in range(2):
        worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert tries == [1, 2, 2]


@pytest.mark.parametrize(
    "asked", [CLOSED[:1], [CLOSED[0], TRAINED], CLOSED[2:], [CLOSED[0], *CLOSED[2:]], [CLOSED[0], CLOSED[2], TRAINED]]
)
def test_moments_and_maps_take_what_they_are_said_to(zoo, monkeypatch, asked):
    sweep = make_sweep(zoo, PAIRS, asked)
    held: list[int] = []
    gc.collect()  # lest the place of what is garbage be taken by what is looked at
    before = set(exact_storages())
    gc.freeze()  # what is there already is not looked at again

    def looking(call: Callable[..., None]) -> Callable[..., None]:
        """Return a call that looks first at what is held."""

        def look(*args: object) -> None:
            held.append(sum(size for key, size in exact_storages().items() if key not in before))
            call(*args)

        return look

    monkeypatch.setattr(fit, "_note_fits", looking(fit._note_fits))  # the moments of the fit images are there still
    monkeypatch.setattr(Evaluation, "_note_stitches", looking(Evaluation._note_stitches))
    run(zoo, sweep)
    said = Collector(sweep).of(whole_shard(sweep).blocks).moment_bytes()
    assert 0.9 * max(held) <= said <= 1.4 * max(held)


def exact_storages() -> dict[int, int]:
    """Return the bytes of every float64 matrix that is held, by where it lies, but for what rows are laid with."""
    found, laid_with = {}, set()
    for one in gc.get_objects():
        if type(one) is torch.Tensor and one.dtype == torch.float64 and one.dim() > 1:
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif type(one) is Resampling:
            laid_with |= {
                matrix.untyped_storage().data_ptr() for matrix in tree_leaves(vars(one)) if torch.is_tensor(matrix)
            }
    return {place: size for place, size in found.items() if place not in laid_with}


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError,
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_what_is_held_and_says_so_of_trained_maps(zoo, worker, monkeypatch, error):
    sweep = make_sweep(zoo, PAIRS[:1], [*CLOSED, TRAINED])
    monkeypatch.setattr(worker_module, "run_shard", starving(2, error))
    rows = worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    wanted = run(zoo, sweep)
    closed = {cell_id for row in wanted if row.matcher != "task_loss" for cell_id in [row.cell_id]}
    assert_close(
        {key: value for key, value in values(rows).items() if key[0] in closed},
        {key: value for key, value in values(wanted).items() if key[0] in closed},
    )
    assert {row.matcher for row in rows if "micro_batched" in row.flags} == {"task_loss"}
    assert not any("micro_batched" in row.flags for row in wanted)


def test_what_a_worker_learnt_about_its_memory_holds_for_its_next_shard(zoo, worker, monkeypatch):
    sweep = make_sweep(zoo, PAIRS[:1], CLOSED[:1])
    tries: list[int] = []
    starve = starving(1, MemoryError)
    monkeypatch.setattr(
        worker_module, "run_shard", lambda shard, work: tries.append(work.halvings) or starve(shard, work)
    )
    for _ in range(2):
        worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert tries == [0, 1, 1]


@pytest.mark.parametrize(
    ("error", "num_tries"),
    [(MemoryError("none at all"), 6), (ValueError("no memory's fault"), 1), (InputError("not one network fits"), 1)],
)
def test_what_less_at_a_time_cannot_help_is_raised(zoo, worker, monkeypatch, error, num_tries):
    sweep = make_sweep(zoo, PAIRS[:1], CLOSED[:1], batch_size=32)
    tries: list[int] = []

    def fail(_shard: Shard, work: Workspace) -> list[Row]:
        tries.append(work.batch_size)
        raise error

    monkeypatch.setattr(worker_module, "run_shard", fail)
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert tries == 2 * [32, 16, 8, 4, 2, 1][:num_tries]  # the next shard starts anew


def test_what_was_learnt_about_memory_outlives_an_error_that_has_another_cause(zoo, worker, monkeypatch):
    sweep = make_sweep(zoo, PAIRS[:1], CLOSED[:1])
    tries: list[int] = []
    errors = iter([MemoryError(), ValueError("no memory's fault")])

    def fail_twice(shard: Shard, work: Workspace) -> list[Row]:
        tries.append(work.halvings)
        if (error := next(errors, None)) is not None:
            raise error
        return run_shard(shard, work)

    monkeypatch.setattr(worker_module, "run_shard", fail_twice)
    with pytest.raises(ValueError, match="no memory's fault"):
        worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert tries == [0, 1, 1]


@pytest.mark.parametrize("halvings", [1, 3, 9])
def test_training_in_micro_batches_gives_the_map_of_whole_batches(zoo, halvings):
    sweep = make_sweep(zoo, PAIRS[:1], [TRAINED], layers=FEW)
    work = replace(workspace(zoo, sweep), halvings=halvings)
    came = by_cell(run_shard(whole_shard(sweep), work))
    for cell_id, wanted in by_cell(run(zoo, sweep)).items():
        for metric in ("loss", "residual"):
            assert came[cell_id][metric].value == pytest.approx(wanted[metric].value, rel=1e-4)


def test_there_is_memory_and_a_containers_limit_counts(monkeypatch):
    free = memory.available_bytes(CPU)
    assert 1 << 20 < free < 1 << 50
    monkeypatch.setattr(memory, "_memory_of_group", lambda: (77, 120))
    assert memory.available_bytes(CPU) == 77
    assert memory.available_bytes(CPU, sharing=2) == 60


def test_workers_that_share_a_machine_take_no_more_than_their_share(zoo, worker, monkeypatch, caplog):
    sweep = make_sweep(zoo, PAIRS, CLOSED)
    need = shard_bytes(sweep, whole_shard(sweep), CPU)
    there = round(1.5 * need / worker_module.MEMORY_SHARE)
    monkeypatch.setattr(memory, "_memory_of_machine", lambda: (there, there))
    pieces: list[Shard] = []
    monkeypatch.setattr(worker_module, "run_shard", lambda shard, work: pieces.append(shard) or [])
    with caplog.at_level("INFO"):
        worker.rows(whole_shard(sweep), workspace(zoo, sweep))
        assert len(pieces) == 1
        assert "workers" not in caplog.text
        worker.set_num_workers(on_host=2, on_gpu=1)
        worker.rows(whole_shard(sweep), workspace(zoo, sweep))
    assert len(pieces) > 2
    assert f"{0.75 * need / 1e9:.2g} GB may be taken, the share of one of 2 workers" in caplog.text


def test_what_others_have_taken_of_a_gpu_already_is_not_taken_off_a_workers_part(monkeypatch):
    for name, value in (("memory_reserved", 50), ("memory_allocated", 20), ("mem_get_info", (100, 200))):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    found = [memory.available_bytes(torch.device("cuda"), sharing=sharing) for sharing in (1, 4)]
    assert found == [100 + (50 - 20), 200 // 4]


class PeakBytes(TorchDispatchMode):
    """Sums the bytes of the tensors that live, each storage once, and keeps the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]:
            if storage.data_ptr() not in self._known:
                self._known.add(storage.data_ptr())
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                finalize(storage, self._forget, storage.data_ptr(), storage.nbytes())
        return out

    def _forget(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.live -= num_bytes


@pytest.mark.parametrize("kinds", [["direct"], ["pwcca", "procrustes"], ["cka"], ["direct", "pwcca", "cka"]], ids=str)
def test_memory_does_not_grow_with_the_number_of_images(zoo, kinds):
    """But for Gram matrices, which are of so many images as their matcher samples."""
    specs = [matcher(kind, samples=40 if kind == "cka" else None) for kind in kinds]
    peaks, numbers = [], (90, 360)
    for number in numbers:
        images = FakeImages(fit=FakeSplit(number, seed=1), eval=FakeSplit(number, seed=2))
        sweep = make_sweep(zoo, [("conv", "conv")], specs, num_fit_closed=number, images=images)
        with PeakBytes() as seen:
            assert not [row.error for row in run(zoo, sweep, images=images) if row.error]
        peaks.append(seen.peak)
    smallest = min(prod(layer.shape) for layer in zoo.layers("conv")[:3])  # of maps
    assert 32 * 4 * smallest < peaks[0]  # a batch was seen at least
    assert peaks[1] - peaks[0] < (numbers[1] - numbers[0]) * 4 * smallest / 10


def held_bytes(zoo: Zoo, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the bytes of all tensors in float64 once the evaluation images have passed."""
    found: list[int] = []

    def count(evaluation: Evaluation, *arguments: object) -> None:
        if not found:
            gc.collect()
            tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.dtype == torch.float64]
            storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
            found.append(sum(storages.values()))
        note_indices(evaluation, *arguments)

    note_indices = Evaluation._note_indices
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_note_indices", count)
        run(zoo, sweep)
    return found[0]


@pytest.mark.parametrize("evidence", [{"groups": 6}, {"shuffles": 6}, {"groups": 6, "shuffles": 6}])
def test_what_groups_and_shuffled_images_take_is_counted(zoo, monkeypatch, evidence):
    sweep = make_sweep(zoo, PAIRS, [matcher("direct"), matcher("pwcca"), matcher("procrustes")])
    more = replace(sweep, **evidence)
    taken = held_bytes(zoo, more, monkeypatch) - held_bytes(zoo, sweep, monkeypatch)
    counted = shard_bytes(more, whole_shard(more), CPU) - shard_bytes(sweep, whole_shard(sweep), CPU)
    assert 0 < taken <= counted <= 8 * taken


def test_gram_matrices_of_some_images_are_counted(zoo):
    sweep = make_sweep(zoo, PAIRS[:1], [matcher("rsa"), matcher("cka")])
    for evidence in ({"groups": 6}, {"shuffles": 6}):
        more = replace(sweep, **evidence)
        num_layers = len({key for cell in every_cell(sweep).values() for key in (cell.source_key, cell.target_key)})
        counted = shard_bytes(more, whole_shard(more), CPU) - shard_bytes(sweep, whole_shard(sweep), CPU)
        assert counted >= num_layers * 8 * sweep.num_eval**2
