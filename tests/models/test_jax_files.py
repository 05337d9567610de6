"""Weights of big_vision and vit_jax in .npz files; the inverse of timm's mapping, written here anew, makes them."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_models import spec
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.build import build_network
from stitchgrid.models.weights import load_weights
from stitchgrid.records import Limits

timm = pytest.importorskip("timm")

SIZE, HEADS, DEPTH = 24, 3, 2
ARGS = {"img_size": 32, "embed_dim": SIZE, "num_heads": HEADS, "depth": DEPTH, "num_classes": 5}
#: layout -> (position of the attention, of the second norm and of the MLP in a block)
LAYOUTS = {"vit_jax": (1, 2, 3), "big_vision": (0, 1, 0), "stacked": (0, 1, 0)}


def vit(seed=0, name="vit_tiny_patch16_224", **args):
    torch.manual_seed(seed)
    module = timm.create_model(name, **{**ARGS, **args}).eval()
    with torch.no_grad():
        for value in module.parameters():  # norms, biases and class tokens, too, differ from one another
            value.add_(0.1 * torch.randn(value.shape))
    return module


def jax_arrays(module, layout):
    """Return the arrays of a vision transformer as Google's code names, turns and splits them."""
    attention, norm, mlp = LAYOUTS[layout]
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    stem = "Transformer/posembed_input/pos_embedding" if layout == "vit_jax" else "pos_embedding"
    found = {
        "embedding/kernel": np.einsum("oihw->hwio", state["patch_embed.proj.weight"]),
        "embedding/bias": state["patch_embed.proj.bias"],
        stem: state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    if "cls_token" in state:
        found["cls"] = state["cls_token"]
    blocks = []
    for block in range(DEPTH):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in state.items()}
        made = {}
        for place, word in ((0, "norm1"), (norm, "norm2")):
            made[f"LayerNorm_{place}/scale"], made[f"LayerNorm_{place}/bias"] = (
                own[f"{word}.weight"],
                own[f"{word}.bias"],
            )
        for place, word in enumerate(("query", "key", "value")):
            rows = slice(place * SIZE, (place + 1) * SIZE)
            where = f"MultiHeadDotProductAttention_{attention}/{word}"
            made[f"{where}/kernel"] = own["attn.qkv.weight"][rows].T.reshape(SIZE, HEADS, SIZE // HEADS)
            made[f"{where}/bias"] = own["attn.qkv.bias"][rows].reshape(HEADS, SIZE // HEADS)
        out = f"MultiHeadDotProductAttention_{attention}/out"
        made[f"{out}/kernel"] = own["attn.proj.weight"].T.reshape(HEADS, SIZE // HEADS, SIZE)
        made[f"{out}/bias"] = own["attn.proj.bias"]
        for place in range(2):
            made[f"MlpBlock_{mlp}/Dense_{place}/kernel"] = own[f"mlp.fc{place + 1}.weight"].T
            made[f"MlpBlock_{mlp}/Dense_{place}/bias"] = own[f"mlp.fc{place + 1}.bias"]
        blocks.append(made)
    if layout == "stacked":
        found |= {f"Transformer/encoderblock/{name}": np.stack([one[name] for one in blocks]) for name in blocks[0]}
    else:
        for block, made in enumerate(blocks):
            found |= {f"Transformer/encoderblock_{block}/{name}": value for name, value in made.items()}
    return found


def wanted(folder, **args):
    """Return what a job says of the network whose weights lie in w.npz."""
    found = spec("timm:vit_tiny_patch16_224", weights="w.npz", **{**ARGS, **args})
    return replace(found, base=str(folder))


def saved(path, arrays, prefix=""):
    np.savez(path, **{f"{prefix}{name}": value for name, value in arrays.items()})
    return path


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        ("vit_jax", ""),
        ("vit_jax", "opt/target/"),
        ("big_vision", "params/"),
        ("stacked", "params/"),
        ("stacked", "params/img/"),
    ],
)
def test_a_file_of_google_gives_timm_its_network(tmp_path, layout, prefix):
    args = {} if layout == "vit_jax" else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    original = vit(**args)
    arrays = jax_arrays(original, layout)
    beside = {"params/img/": {"params/t": np.ones(1), "params/txt/head/bias": np.ones(7)}, "opt/target/": {}}
    np.savez(tmp_path / "w.npz", **{f"{prefix}{name}": one for name, one in arrays.items()}, **beside.get(prefix, {}))
    built = build_network(wanted(tmp_path, **args))
    assert {name: value.tolist() for name, value in built.state_dict().items()} == {
        name: value.tolist() for name, value in original.state_dict().items()
    }
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(built(images), original(images))


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


KERNEL = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
WRONG = {
    "another number of classes": (
        lambda arrays: arrays | {"head/kernel": np.ones((SIZE, 7), "f4"), "head/bias": np.ones(7, "f4")},
        r"belongs to another architecture than VisionTransformer: it holds 33,271 numbers in 40 arrays, and the "
        r"network has 33,221, so something would be resized, left out or missing; the file has "
        r".*head/kernel \(24, 7\).*`num_classes`",
    ),
    "more blocks": (
        lambda arrays: arrays | {"Transformer/encoderblock_2/LayerNorm_0/scale": np.ones(SIZE, "f4")},
        r"it holds 33,245 numbers in 41 arrays, and the network has 33,221",
    ),
    "other images": (
        lambda arrays: arrays | {"Transformer/posembed_input/pos_embedding": np.ones((1, 10, SIZE), "f4")},
        r"pos_embedding \(1, 10, 24\).*`img_size`",
    ),
    "a tensor less": (without("cls"), r"it holds 33,197 numbers in 39 arrays, and the network has 33,221"),
    "another name": (
        lambda arrays: without(KERNEL)(arrays) | {"x": arrays[KERNEL]},
        r"timm cannot load it \(KeyError: .*query/kernel is not a file in the archive",
    ),
    "a head that timm leaves out": (
        lambda arrays: without("head/bias")(arrays) | {"head/other": arrays["head/bias"]},
        r"does not give 2 of the parameters: head.weight, head.bias",
    ),
    "bfloat16": (
        lambda arrays: arrays | {"cls": np.zeros((1, 1, SIZE), "V2")},
        r"cls: wanted floating-point numbers, got \|V2; bfloat16, .* has to be saved as float32",
    ),
    "whole numbers": (
        lambda arrays: arrays | {"cls": np.zeros((1, 1, SIZE), "i4")},
        r"cls: wanted floating-point numbers, got int32",
    ),
    "objects": (
        lambda arrays: arrays | {"cls": np.array([{}] * SIZE).reshape(1, 1, SIZE)},
        r"is damaged, truncated or no checkpoint \(ValueError: cls holds Python objects",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_not_exactly_the_network_is_refused(tmp_path, wrong):
    change, message = WRONG[wrong]
    saved(tmp_path / "w.npz", change(jax_arrays(vit(), "vit_jax")))
    with pytest.raises(InputError, match=message):
        load_weights(vit(seed=1), tmp_path / "w.npz")


def test_numbers_that_are_not_finite_are_told_as_of_other_checkpoints(tmp_path):
    arrays = jax_arrays(vit(), "vit_jax")
    arrays["head/bias"] = np.array([0, 1, np.nan, 3, 4], "f4")
    saved(tmp_path / "w.npz", arrays)
    with pytest.raises(InputError, match=r"weights 'w.npz' is not finite: head.bias \(NaN in 1 of 5 values\)"):
        build_network(wanted(tmp_path))


def test_only_networks_of_timm_take_such_files(tmp_path):
    saved(tmp_path / "w.npz", jax_arrays(vit(), "vit_jax"))
    with pytest.raises(InputError, match=r"timm reads these .*, and Linear is none of them: name the network as"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.npz")
    with pytest.raises(InputError, match=r"and ConvNeXt is none of them"):
        load_weights(timm.create_model("convnext_atto"), tmp_path / "w.npz")
    with pytest.raises(InputError, match=r"an .npz, of which timm knows where the weights are; leave out `key` and"):
        load_weights(vit(), tmp_path / "w.npz", key="params")


def test_limits_hold_before_anything_is_read(tmp_path):
    path = saved(tmp_path / "w.npz", jax_arrays(vit(), "vit_jax"))
    with pytest.raises(InputError, match=r"holds 40 tensors, more than the 39 allowed.*`tensors` under \[limits\]"):
        load_weights(vit(), path, limits=Limits(tensors=39))
    with pytest.raises(InputError, match=r"more than the 1,000 allowed of a checkpoint.*`checkpoint_bytes`"):
        load_weights(vit(), path, limits=Limits(checkpoint_bytes=1000))
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(40_000_000, "f4"))
    with pytest.raises(InputError, match=r"unpacks to 160 MB.*`unpacking` under \[limits\].*Save its arrays with"):
        load_weights(vit(), tmp_path / "bomb.npz")
    with pytest.raises(InputError, match=r"unpacks to 160,000,\d+ bytes, more than the 100,000,000 allowed"):
        load_weights(vit(), tmp_path / "bomb.npz", limits=Limits(unpacking=10**6, checkpoint_bytes=10**8))


def test_a_damaged_file_is_told(tmp_path):
    path = saved(tmp_path / "w.npz", jax_arrays(vit(), "vit_jax"))
    whole = path.read_bytes()
    for content in (b"", b"x" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged, truncated or no checkpoint"):
            load_weights(vit(), path)
    middle = whole.index(b"NUMPY", whole.index(b"Transformer")) + 200
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(InputError, match=r"is damaged, truncated or no checkpoint \(BadZipFile: Bad CRC-32"):
        load_weights(vit(), path)
    with pytest.raises(InputError, match=r"there is no checkpoint .*none.npz"):
        load_weights(vit(), tmp_path / "none.npz")
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(
        117
    )
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("cls.npy", header + b"\n")
    with pytest.raises(InputError, match=r"cls holds fewer bytes than its shape \(1000000000000,\) needs"):
        load_weights(vit(), tmp_path / "short.npz")
