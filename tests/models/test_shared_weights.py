"""Weights that all workers of a node share."""

import ctypes
import logging
import multiprocessing
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers_elsewhere import in_process_of_its_own
from helpers_models import spec
from helpers_shared import OneArtefact, hold_with_others, lie_in, load, mappings, private_bytes, record_of, stored
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.build import build_network
from stitchgrid.models.freeze import freeze
from stitchgrid.models.shared_weights import SharedWeights
from stitchgrid.models.weights import save_state, state_digest
from stitchgrid.store import Store
from stitchgrid.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")


class Odd(nn.Module):
    """Holds whatever a state may hold."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(5, 7)
        self.again = nn.Linear(5, 7, bias=False)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm2d(3)
        self.short = nn.Parameter(torch.randn(3, 3, generator=generator).to(torch.bfloat16))
        self.maps = nn.Parameter(torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last))
        self.none = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("index", torch.randint(0, 9, (11,), generator=generator))
        self.register_buffer("mask", torch.rand(13, generator=generator) < 0.5)
        self.register_buffer("nan", torch.tensor([float("nan"), -0.0]))
        self.register_buffer("scalar", torch.tensor(3.5, dtype=torch.float64))
        self.register_buffer("wide", torch.tensor([seed]).expand(6))
        with torch.no_grad():
            for value in (self.first.weight, self.first.bias):
                value.copy_(torch.randn(value.shape, generator=generator))


def file_of(cache, network):
    return cache / "weights" / network.weights_digest


def files_in(cache):
    return sorted(path.name for path in (cache / "weights").glob("*") if path.suffix != ".lock")


def shared(cache, module):
    SharedWeights(cache).share(module, state_digest(module))
    return cache / "weights" / state_digest(module)


def scores(module):
    with torch.no_grad():
        return module(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("architecture", ["torchvision:resnet18", "stitchgrid:vit_tiny", "stitchgrid:tiny10"])
def test_a_network_gives_the_same_scores_bit_for_bit_out_of_shared_memory(architecture, cache):
    asked = spec(architecture)
    alone = build_network(asked)
    network = record_of(asked, state_digest(alone), size=32)
    for _ in range(2):  # written, then found
        cut = load(network, cache=cache)
        values = cut.module.state_dict()
        assert values.keys() == alone.state_dict().keys()
        is_counter = [name.endswith("num_batches_tracked") for name in values]
        assert lie_in(values.values(), file_of(cache, network)) == [not counter for counter in is_counter]
        assert torch.equal(scores(cut.module), scores(alone))
        assert torch.equal(cut.taps([cut.logits])(torch.ones(1, 3, 32, 32))[0], alone(torch.ones(1, 3, 32, 32)))
        assert state_digest(cut.module) == network.weights_digest
    assert sum(counts["Private_Dirty"] for _, counts in mappings(file_of(cache, network))) == 0


def test_every_kind_of_tensor_keeps_its_values_type_shape_and_strides(cache):
    module, wanted = freeze(Odd()), freeze(Odd())
    path = shared(cache, module)
    for (name, value), before in zip(module.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert (value.dtype, value.shape, value.stride()) == (before.dtype, before.shape, before.stride())
        assert torch.equal(value.nan_to_num(7.0), before.nan_to_num(7.0)), name
    assert state_digest(module) == state_digest(wanted)
    mapped = [module.first.weight, module.short, module.index, module.mask, module.scalar, module.norm.running_var]
    assert all(lie_in(mapped, path))
    for value in mapped:
        assert value.data_ptr() % 64 == 0  # products may round otherwise where torch's own memory does not begin
        assert value.untyped_storage().nbytes() == value.nbytes
    assert lie_in([module.maps, module.wide], path) == [False, False]  # their strides are not the file's


def test_parameters_stay_the_objects_they_are_and_the_ties_between_them(cache):
    module = freeze(Odd())
    before = list(module.parameters())
    shared(cache, module)
    assert [id(value) for value in module.parameters()] == [id(value) for value in before]
    assert module.again.weight is module.first.weight
    assert not any(value.requires_grad for value in module.parameters())


def test_what_a_process_writes_into_its_weights_reaches_no_other(cache):
    first, second = freeze(Odd()), freeze(Odd())
    path = shared(cache, first)
    content = path.read_bytes()
    shared(cache, second)
    with torch.no_grad():
        first.first.weight.zero_()
    assert path.read_bytes() == content
    assert state_digest(second) == path.name
    assert state_digest(first) != path.name


def test_a_state_without_any_bytes_needs_no_file(cache):
    module = freeze(nn.Sequential(nn.ReLU(), nn.LayerNorm(0)))
    shared(cache, module)
    assert files_in(cache) == []


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-64],
    "longer": lambda content: content + bytes(64),
    "zeros": lambda content: bytes(len(content)),
    "one bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("is_stored", [False, True], ids=["seed", "artefact"])
def test_a_damaged_or_foreign_file_is_replaced(damage, is_stored, cache, tmp_path):
    if is_stored:
        network, store = stored(tmp_path)
    else:
        asked = spec("stitchgrid:tiny10")
        network, store = record_of(asked, state_digest(build_network(asked))), None
    wanted = scores(load(network, store, cache=tmp_path / "another").module)
    sound = file_of(tmp_path / "another", network).read_bytes()
    file_of(cache, network).parent.mkdir(parents=True)
    file_of(cache, network).write_bytes(DAMAGE[damage](sound))
    cut = load(network, store, cache=cache)
    assert torch.equal(scores(cut.module), wanted)
    assert file_of(cache, network).read_bytes() == sound
    assert all(lie_in(cut.module.parameters(), file_of(cache, network)))
    assert files_in(cache) == [network.weights_digest]


def test_a_deleted_file_stays_with_those_who_hold_it(cache):
    asked = spec("stitchgrid:tiny10")
    network = record_of(asked, state_digest(build_network(asked)))
    cut = load(network, cache=cache)
    file_of(cache, network).unlink()
    assert state_digest(cut.module) == network.weights_digest
    assert state_digest(load(network, cache=cache).module) == network.weights_digest


def test_a_cache_that_cannot_be_written_only_costs_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    network, store = stored(tmp_path)
    with caplog.at_level(logging.WARNING):
        cut = load(network, store, cache=tmp_path / "file")
    assert state_digest(cut.module) == network.weights_digest
    [said] = caplog.messages
    assert "bytes) stay in this process's own memory: [Errno" in said


def test_a_full_disk_only_costs_memory(cache, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    module = freeze(Odd())
    wanted = state_digest(module)
    monkeypatch.setattr("stitchgrid.models.shared_weights.sync", full)
    shared(cache, module)
    assert state_digest(module) == wanted
    assert "weights (" in caplog.text
    assert "stay in this process's own memory: [Errno 28] No space left on device" in caplog.text
    assert files_in(cache) == []  # no draft is left behind


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_that_has_changed_is_refused_although_the_planned_weights_are_there(suffix, cache, tmp_path):
    path = tmp_path / f"w{suffix}"

    def write(seed):
        trained = build_network(spec("stitchgrid:tiny10", seed=seed))
        if suffix == ".pt":
            torch.save(trained.state_dict(), path)
        else:
            path.write_bytes(save_state(trained))
        return state_digest(trained)

    network = record_of(spec("stitchgrid:tiny10", base=tmp_path, weights=path.name), write(seed=1))
    assert state_digest(load(network, cache=cache).module) == network.weights_digest
    write(seed=2)
    with pytest.raises(InputError, match=r"'net' is not what it was.*its checkpoint or code has changed; launch"):
        load(network, cache=cache)
    assert files_in(cache) == [network.weights_digest]


def test_the_store_is_asked_once_for_a_network_it_holds(cache, tmp_path):
    network, store = stored(tmp_path)
    found = [load(network, store, cache=cache).module for _ in range(3)]
    assert store.num_reads == 1
    assert torch.equal(scores(found[0]), scores(found[1]))
    assert torch.equal(scores(found[0]), scores(found[2]))
    load(network, store, cache=tmp_path / "another node")
    assert store.num_reads == 2


def test_views_that_a_network_keeps_of_its_weights_get_the_stored_values(cache, tmp_path):
    network, store = stored(tmp_path)
    for _ in range(2):
        module = load(network, store, cache=cache).module
        assert torch.equal(module.by_class, module.head.weight.T)


def test_other_weights_than_planned_in_the_store_are_refused_and_not_kept(cache, tmp_path):
    network, _ = stored(tmp_path)
    other = save_state(build_network(spec("own.py:own", base=tmp_path, seed=6)))
    with pytest.raises(InputError, match="is not what it was when the sweep was planned"):
        load(network, OneArtefact(other, tmp_path / "reads"), cache=cache)
    assert files_in(cache) == []


def test_stored_weights_of_another_architecture_are_refused(cache, tmp_path):
    network, _ = stored(tmp_path)
    other = save_state(build_network(spec("stitchgrid:tiny10")))
    with pytest.raises(InputError, match="the stored state of 'net' belongs to another architecture than Own"):
        load(network, OneArtefact(other, tmp_path / "reads"), cache=cache)


def test_for_another_device_only_what_comes_from_the_store_is_kept(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("stitchgrid.resolve.loading.cut_network_on", lambda device, module, *_, **__: module.to(device))
    asked = spec("stitchgrid:tiny10")
    module = load(record_of(asked, state_digest(build_network(asked))), cache=cache, device="meta")
    assert {value.device.type for value in module.parameters()} == {"meta"}
    assert files_in(cache) == []
    network, store = stored(tmp_path)
    for _ in range(2):
        load(network, store, cache=cache, device="meta")
    assert files_in(cache) == [network.weights_digest]
    assert store.num_reads == 1


def test_a_worker_keeps_weights_where_it_keeps_images(cache, tmp_path):
    Store.open(tmp_path / "grid", create=True)
    worker = Worker(store=str(tmp_path / "grid"), device="cpu", threads=1, cache=cache)
    asked = spec("stitchgrid:tiny10")
    network = record_of(asked, state_digest(build_network(asked)))
    worker._network(SimpleNamespace(networks=(network,), compiles=False), 0)
    assert files_in(cache) == [network.weights_digest]


WIDE = """
from torch import nn

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1024), *(nn.Linear(1024, 1024) for _ in range(15)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the memory is given back by glibc")
def test_a_worker_keeps_no_memory_that_networks_were_built_in(cache, tmp_path):
    (tmp_path / "wide.py").write_text(WIDE)
    Store.open(tmp_path / "grid", create=True)
    shares = in_process_of_its_own(partial(shares_kept, tmp_path, cache))  # what other tests leave is not given back
    assert max(shares) < 0.25


def shares_kept(folder, cache):
    """Return how much a worker keeps of its own of networks that it loads, in shares of their weights."""
    worker = Worker(store=str(folder / "grid"), device="cpu", threads=1, cache=cache)
    shares = []
    for seed in range(3):
        asked = spec("wide.py:wide", base=folder, seed=seed)
        network = record_of(asked, state_digest(build_network(asked)))
        before = private_bytes()
        worker._network(SimpleNamespace(networks=(network,), compiles=False), 0)
        taken = private_bytes() - before
        shares.append(taken / sum(value.nbytes for value in build_network(asked).parameters()))
    return shares


def test_processes_that_load_at_once_read_the_store_once_and_share_the_pages(cache, tmp_path):
    network, store = stored(tmp_path, width=4_000)
    store.seconds = 0.5
    num_kb = sum(value.nbytes for value in build_network(network.spec).parameters()) / 1024
    assert num_kb > 400
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2, timeout=30)
        found = pool.starmap(hold_with_others, [(network, store, cache, barrier)] * 2)
    assert store.num_reads == 1
    for counts, _ in found:
        assert counts["Private_Dirty"] == counts["Private_Clean"] == 0
        assert counts["Shared_Clean"] + counts["Shared_Dirty"] >= num_kb
    with torch.no_grad():
        alone = load(network, store, cache=tmp_path / "another").module(torch.ones(2, 3, 32, 32))
    for _, scored in found:  # to rounding: where tensors lie in memory decides about the order of sums
        torch.testing.assert_close(torch.frombuffer(bytearray(scored), dtype=torch.float32).reshape(alone.shape), alone)
    assert store.num_reads == 2
