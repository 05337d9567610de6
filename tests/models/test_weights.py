"""Weights in and out."""

import os
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.weights import load_checkpoint, load_into, load_state, load_weights, save_state, state_digest


def network(width=5, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


@pytest.fixture(autouse=True)
def keep_the_global_generator():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def state():
    return network().state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best_prec1": 91.7, "epoch": 3},
    "model": lambda state: {"epoch": 3, "model": state},
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "nested data parallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


def loaded(path, **how):
    """Return the state of a network of other values after loading a checkpoint."""
    module = network(seed=1)
    load_weights(module, path, **how)
    return module.state_dict()


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_gives_the_tensors_however_they_are_wrapped(tmp_path, state, wrapping, legacy):
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    assert equal(loaded(tmp_path / "w.pt"), state)


def test_safetensors_give_the_tensors(tmp_path, state):
    safetensors.torch.save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "w.safetensors")
    assert equal(loaded(str(tmp_path / "w.safetensors")), state)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*none.pt; relative paths start at the job file"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors"])
def test_a_truncated_checkpoint_is_refused(tmp_path, state, kind, share):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "archive")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        InputError, match=rf"{path.name} \({path.stat().st_size} bytes\) is damaged, truncated or no checkpoint \("
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"plain words\n" * 20, b"\x00" * 100])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match="is damaged, truncated or no checkpoint"):
        load_checkpoint(tmp_path / "w.pt")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
def test_a_pickle_that_is_not_a_plain_checkpoint_is_refused_and_never_run(tmp_path, save):
    for name, value in (("code.pt", Malicious(tmp_path / "ran")), ("module.pt", nn.Linear(2, 2))):
        save({"state_dict": value}, tmp_path / name)
        with pytest.raises(
            InputError, match=f"{name} is a pickle but not a plain checkpoint.*could run code.*safetensors"
        ):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "held"),
    [([1, 2], "a list"), ({}, "nothing"), ({"epoch": 3, "optimizer": {}}, "entries 'epoch', 'optimizer'")],
)
def test_a_checkpoint_without_weights_says_what_it_holds(tmp_path, content, held):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"w.pt holds {held}; wanted a state dict .*'state_dict'"):
        loaded(tmp_path / "w.pt")


def test_a_state_is_loaded_exactly(state):
    module = network(seed=1)
    load_into(module, state, origin="it")
    assert equal(module.state_dict(), state)


def test_counters_of_batches_may_be_absent(state):
    module = network(seed=1)
    load_into(module, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, origin="it")
    assert state_digest(module) == state_digest(network())


def test_a_checkpoint_of_another_architecture_names_the_keys_that_do_not_fit(state):
    other = dict(network(width=6).state_dict())
    other["extra.weight"] = torch.ones(1)
    del other["3.bias"]
    with pytest.raises(
        InputError,
        match=r"checkpoint w.pt belongs to another architecture than Sequential: of 8 tensors "
        r"1 missing: 3.bias; 1 unexpected: extra.weight; 7 of another shape: "
        r"0.weight \(6, 3, 3, 3\) where the network has \(5, 3, 3, 3\), .*, \.\.\.\. Check `architecture` and `args`",
    ):
        load_into(network(), other, origin="checkpoint w.pt")


def test_a_state_that_does_not_fit_changes_nothing(state):
    module = network(seed=1)
    before = state_digest(module)
    with pytest.raises(InputError, match=r"1 missing: 3\.bias"):
        load_into(module, {k: v for k, v in state.items() if k != "3.bias"}, origin="it")
    assert state_digest(module) == before


def test_the_digest_sees_every_tensor_and_its_name_and_type():
    base = state_digest(network())
    assert base == state_digest(network())
    digests = {base}
    for name, value in network().state_dict().items():
        if not name.endswith("num_batches_tracked"):
            module = network()
            module.state_dict()[name].view(-1)[0] += 1e-3
            digests.add(state_digest(module))
            assert value.numel()
    assert len(digests) == 9
    assert state_digest(network().double()) not in digests
    assert state_digest(nn.Sequential(nn.Identity(), *network())) not in digests


def test_the_digest_is_the_one_that_stores_are_addressed_by():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2).to(torch.bfloat16))
    with torch.no_grad():
        for k, value in enumerate(module.parameters()):
            value.copy_(torch.arange(value.numel()).view(value.shape) + k)
    assert state_digest(module) == state_digest(module.state_dict()) == "873cd3112e1c8f0d88cf5661da0f5999"


def test_the_digest_sees_shapes_and_not_the_number_of_batches():
    a, b = nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)
    b.weight.data = a.weight.data.reshape(4, 3)
    assert state_digest(a) != state_digest(b)
    module = network()
    module[1].num_batches_tracked += 7
    assert state_digest(module) == state_digest(network())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_saved_comes_back(dtype):
    module = network().to(dtype)
    content = save_state(module)
    assert equal(load_state(content), module.state_dict())
    assert content == save_state(network().to(dtype))


def test_weights_that_two_modules_share_can_be_saved():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert equal(load_state(save_state(module)), module.state_dict())


def test_saved_weights_that_are_damaged_are_refused():
    content = save_state(network())
    with pytest.raises(InputError, match=rf"saved weights \({len(content) - 9} bytes\) are truncated or damaged"):
        load_state(content[:-9])
