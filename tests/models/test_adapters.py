"""LoRA adapters merged into their network's weights; the adapter as a branch beside each layer is the oracle."""

import json
import re

import pytest
import torch
from helpers_models import noise
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from stitchgrid.errors import InputError
from stitchgrid.models.weights import load_adapter, load_weights

RANK, ALPHA = 2, 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.fc(self.conv(x).mean((2, 3)))))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def pair(name, rows, *columns):
    """Return the two matrices of one layer, of a convolution where `columns` are channels, height and width."""
    kernel = columns[1:]
    return {
        f"base_model.model.{name}.lora_A.weight": noise(RANK, *columns, seed=len(name)),
        f"base_model.model.{name}.lora_B.weight": noise(rows, RANK, *[1 for _ in kernel], seed=rows),
    }


def saved(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def with_branches(module, tensors, x, scale):
    """Return what the network says with the adapter as a branch beside its convolution and its first linear layer."""

    def of(name, part):
        return tensors[f"base_model.model.{name}.lora_{part}.weight"]

    maps = module.conv(x) + scale * F.conv2d(F.conv2d(x, of("conv", "A")), of("conv", "B"))
    rows = maps.mean((2, 3))
    return module.head(torch.relu(module.fc(rows) + scale * (rows @ of("fc", "A").T) @ of("fc", "B").T))


ALL = {**pair("conv", 4, 3, 3, 3), **pair("fc", 5, 4)}
DORA = {
    **ALL,
    "base_model.model.conv.lora_magnitude_vector": noise(1, 4, 1, 1, seed=7).abs() + 0.5,
    "base_model.model.fc.lora_magnitude_vector": noise(5, seed=8).abs() + 0.5,
}


def dora_in_float64(module, tensors, x, scale):
    """Return what the network says where each output feature is m * V / ||V||, computed feature by feature."""
    values = {name.removeprefix("base_model.model."): value.double() for name, value in tensors.items()}

    def features(name, weight):
        a, b, m = (values[f"{name}.lora_{part}"] for part in ("A.weight", "B.weight", "magnitude_vector"))
        found = []
        for feature, kernel in enumerate(weight.detach().double()):
            v = kernel + scale * sum(b[feature, rank].item() * a[rank] for rank in range(RANK))
            found.append(m.flatten()[feature] * v / (v * v).sum().sqrt())
        return torch.stack(found)

    rows = F.conv2d(x.double(), features("conv", module.conv.weight), module.conv.bias.double()).mean((2, 3))
    hidden = rows @ features("fc", module.fc.weight).T + module.fc.bias.double()
    return torch.relu(hidden) @ module.head.weight.double().T + module.head.bias.double()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"alpha_pattern": {"conv": 1, "fc": 1}}, 1 / RANK),
        ({"r": 8, "rank_pattern": {"onv": 1, "conv|fc": RANK}}, ALPHA / RANK),
        ({"r": 8, "rank_pattern": {"conv": RANK, "fc": RANK, "x\\.fc": 1}}, ALPHA / RANK),
    ],
)
def test_the_merged_network_says_what_the_adapter_beside_it_says(tmp_path, config, scale):
    module, x = net(), noise(3, 3, 6, 6)
    expected = with_branches(module, ALL, x, scale)
    load_adapter(module, saved(tmp_path / "lora", ALL, **config))
    assert torch.allclose(module(x), expected, atol=1e-5)
    assert not torch.allclose(module(x), net()(x), atol=1e-2)


@pytest.mark.parametrize(
    ("config", "scale"), [({}, ALPHA / RANK), ({"use_rslora": True}, ALPHA / RANK**0.5), ({"lora_alpha": 1}, 1 / RANK)]
)
@pytest.mark.parametrize("ending", ["", ".default", ".default.weight", ".weight"])
def test_with_dora_each_output_feature_gets_the_length_that_its_magnitude_says(tmp_path, config, scale, ending):
    module, x = net(), noise(3, 3, 6, 6)
    expected = dora_in_float64(module, DORA, x, scale)
    named = {f"{name}{ending}" if name.endswith("_vector") else name: value for name, value in DORA.items()}
    load_adapter(module, saved(tmp_path / "dora", named, use_dora=True, **config))
    assert torch.allclose(module(x).double(), expected, atol=1e-5)
    assert torch.allclose(module.fc.weight.norm(dim=1), DORA["base_model.model.fc.lora_magnitude_vector"], atol=1e-6)


def test_dora_with_the_lengths_that_the_sum_has_is_lora(tmp_path):
    lora, dora = net(), net()
    load_adapter(lora, saved(tmp_path / "lora", ALL))
    lengths = {
        f"{name}.lora_magnitude_vector": lora.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1)
        for name in ("conv", "fc")
    }
    load_adapter(dora, saved(tmp_path / "dora", {**ALL, **lengths}, use_dora=True))
    assert all(torch.allclose(one, other) for one, other in zip(lora.parameters(), dora.parameters(), strict=True))


def test_an_output_feature_of_zeros_has_no_direction_for_dora(tmp_path):
    module = net()
    module.fc.weight.data[3] = 0
    tensors = {**pair("fc", 5, 4), "fc.lora_magnitude_vector": noise(5)}
    tensors["base_model.model.fc.lora_B.weight"][3] = 0
    with pytest.raises(InputError, match=r"scales the output features of fc, and feature 3 is 0, which has no direc"):
        load_adapter(module, saved(tmp_path / "dora", tensors, use_dora=True))


@pytest.mark.parametrize("config", [{"r": RANK + 1}, {"rank_pattern": {"conv": 1}}])
def test_a_rank_that_is_not_that_of_the_matrices_is_refused(tmp_path, config):
    with pytest.raises(InputError, match=r"gives (conv|fc) the rank \d, and its matrices have 2, so the scale"):
        load_adapter(net(), saved(tmp_path / "lora", ALL, **config))


@pytest.mark.parametrize(
    "name", ["base_model.model.fc.lora_A.default.weight", "fc.lora_A.weight", "head.modules_to_save.default.weight"]
)
def test_an_adapter_that_holds_a_tensor_under_two_names_is_refused(tmp_path, name):
    tensors = {**ALL, "head.weight": torch.ones(2, 5), name: torch.zeros(2, 5 if "head" in name else 4)}
    with pytest.raises(InputError, match=r"holds .* under another name as well; which of the two is meant"):
        load_adapter(net(), saved(tmp_path / "lora", tensors))


def test_layers_that_were_trained_whole_take_the_place_of_the_old(tmp_path):
    head = {"base_model.model.head.weight": noise(2, 5), "base_model.model.head.bias": noise(2)}
    module = net()
    load_adapter(module, saved(tmp_path / "lora", {**ALL, **head}))
    assert torch.equal(module.head.weight, head["base_model.model.head.weight"])
    assert torch.equal(module.head.bias, head["base_model.model.head.bias"])


@pytest.mark.parametrize("magnitudes", [{}, {"fc.lora_magnitude_vector": noise(5).abs() + 1}])
def test_a_weight_that_is_stored_turned_around_is_adapted_so(tmp_path, magnitudes):
    one, other = net(), net()
    tensors, is_dora = {**pair("fc", 5, 4), **magnitudes}, bool(magnitudes)
    load_adapter(one, saved(tmp_path / "lora", tensors, use_dora=is_dora))
    other.fc.weight = nn.Parameter(other.fc.weight.T.clone())
    load_adapter(other, saved(tmp_path / "turned", tensors, use_dora=is_dora, fan_in_fan_out=True))
    assert torch.allclose(other.fc.weight.T, one.fc.weight)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            ALL,
            {"peft_type": "IA3"},
            r"lora is an adapter of the kind 'IA3'; wanted LORA; merge it where it was trained",
        ),
        (ALL, {"use_qalora": True}, r"lora is a LoRA with use_qalora, which is not merged here; merge it"),
        (ALL, {"use_dora": True}, r"says use_dora, and there is no lora_magnitude_vector of conv; take both from one"),
        (DORA, {}, r"says no use_dora, and there is a lora_magnitude_vector of conv; take both from one save_pretr"),
        (
            {**ALL, "fc.lora_magnitude_vector": noise(4), "conv.lora_magnitude_vector": noise(4)},
            {"use_dora": True},
            r"has magnitudes of \(4,\) for fc, which has 5 output features",
        ),
        (
            {"base_model.model.fc.lora_magnitude_vector": noise(5)},
            {"use_dora": True},
            r"has magnitudes for fc, and no adapter of it; merge it where it was trained",
        ),
        (
            {**DORA, "base_model.model.fc.lora_magnitude_vector.default.weight": noise(5)},
            {"use_dora": True},
            r"holds .*magnitude_vector.* under another name as well; which of the two is meant",
        ),
        *[
            (ALL, config, rf"is not that of a LoRA with a rank `r` and `lora_alpha`: {key}.*; merge it")
            for config, key in (
                ({"r": "two"}, "r: Input should be a valid integer"),
                ({"r": 0}, "r: .*greater than or equal to 1"),
                ({"r": 10**400}, "r: "),
                ({"lora_alpha": 10**400}, "lora_alpha: "),
                ({"lora_alpha": float("nan")}, "lora_alpha: .*finite"),
                ({"lora_alpha": None}, "lora_alpha: "),
                ({"rank_pattern": {"fc": 0}}, "rank_pattern.fc: .*greater than or equal to 1"),
                ({"rank_pattern": {"fc": "x"}}, "rank_pattern.fc: Input should be a valid integer"),
                ({"alpha_pattern": [1]}, "alpha_pattern: .*dictionary"),
                ({"rank_pattern": {"(": 1}}, r"rank_pattern: .*'\(' is no name of a layer; regular expressions are"),
                ({"alpha_pattern": {"([a-z0-9.]+)+!": 1}}, "alpha_pattern: .*is no name of a layer"),
            )
        ],
        (pair("fcc", 5, 4), {}, r"adapts fcc.weight, which the network does not have; did you mean 'fc.weight'"),
        (
            pair("fc", 7, 4),
            {},
            r"adapts fc by matrices of \(7, 2\) and \(2, 4\), which do not give its weight \(5, 4\)",
        ),
        (dict(list(pair("fc", 5, 4).items())[:1]), {}, r"has only one half of the adapter of fc: lora_A"),
        ({"base_model.model.fc.lora_embedding_A": noise(2, 2)}, {}, r"holds fc.lora_embedding_A, a kind of adapter"),
        ({"base_model.model.head.bias": noise(3)}, {}, r"has head.bias \(3,\) where the network has \(2,\)"),
    ],
)
def test_what_cannot_be_merged_is_told(tmp_path, tensors, config, message):
    folder = saved(tmp_path / "lora", tensors, **config)
    with pytest.raises(InputError, match=message):
        load_adapter(net(), folder)


def test_a_folder_that_is_no_adapter_is_told(tmp_path):
    with pytest.raises(InputError, match=r"there is no adapter .*none"):
        load_adapter(net(), tmp_path / "none")
    with pytest.raises(InputError, match=r"adapter_config.json cannot be read as the configuration of an adapter"):
        load_adapter(net(), tmp_path)
    folder = saved(tmp_path / "lora", ALL)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(ALL, folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"lora has no adapter_model.safetensors; save the adapter with save_pretr"):
        load_adapter(net(), folder)
    with pytest.raises(InputError, match=r"is an adapter of a network, not its weights.*adapter = \"lora\""):
        load_weights(net(), folder)


def shards(folder, state, index=None, **more):
    folder.mkdir(exist_ok=True)
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / file)
    listed = {name: file for file, held in parts.items() for name in held} | more
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": listed}) if index is None else index)
    return folder


@pytest.mark.parametrize("word", ["", "model.safetensors.index.json"])
def test_a_checkpoint_in_several_files_is_loaded_whole(tmp_path, word):
    state = net(3).state_dict()
    folder = shards(tmp_path / "w", {f"model.{name}": value for name, value in state.items()})
    save_file({"model.fc.bias": noise(5)}, folder / "other.safetensors")  # not in the index
    module = net()
    load_weights(module, folder / word)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_a_folder_with_one_file_is_that_file(tmp_path, name):
    state = net(3).state_dict()
    save_file(state, tmp_path / name)
    module = net()
    load_weights(module, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"x": "gone.safetensors"}, r"lists 'gone.safetensors' \(1 of 3 files\), which is not beside it"),
        (
            {"x": "model-00001-of-00002.safetensors"},
            r"does not hold 'x', which model.safetensors.index.json says it does",
        ),
        (
            {"x": "../secret.safetensors"},
            r"lists '../secret.safetensors'; wanted names of .safetensors files beside it",
        ),
        ({"x": "w.bin"}, r"lists 'w.bin'; wanted names of .safetensors files"),
        ({"index": "{"}, r"cannot be read as an index of safetensors \(ValueError: EOF"),
        ({"index": "[" * 100_000}, r"cannot be read as an index of safetensors \(ValueError: recursion limit"),
        ({"index": "[]"}, r"cannot be read as an index of safetensors: it holds a list, wanted an object"),
        ({"index": '{"weight_map": []}'}, r"cannot be read as an index of safetensors: it has no `weight_map`"),
        ({"x": "w" * 300 + ".safetensors"}, r"lists 'w{80}' \(1 of 3 files\), which is not beside it"),
        ({"x": "a\n.safetensors"}, r"lists 'a\\n\.safetensors' \(1 of 3 files\), which is not beside it"),
        ({"x": 3}, r"lists '3'; wanted names of .safetensors files"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_told(tmp_path, spoil, message):
    folder = shards(tmp_path / "w", net().state_dict(), **spoil)
    with pytest.raises(InputError, match=message):
        load_weights(net(), folder)


def test_a_folder_without_one_set_of_safetensors_is_told(tmp_path):
    with pytest.raises(InputError, match=r"wanted one with a model.safetensors.*got none; folders are read from safe"):
        load_weights(net(), tmp_path)
    for name in ("a", "b"):
        save_file(net().state_dict(), tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=re.escape("got several (a.safetensors, b.safetensors): name one of them")):
        load_weights(net(), tmp_path)
