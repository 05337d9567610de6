"""Networks of timm: their names and weights, their graphs, and how their layers are read."""

import json
import random
from dataclasses import replace

import pytest
import torch
from helpers_models import noise, spec, stirred
from torch import nn

from stitchgrid.errors import InputError, JobFileError, StitchgridError
from stitchgrid.models.build import build_network, default_preprocess, make_network
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.facts import known_facts
from stitchgrid.models.leaves import timm_leaves
from stitchgrid.models.select import select_layers
from stitchgrid.models.weights import save_state, state_digest
from stitchgrid.records import Preprocess

timm = pytest.importorskip("timm")

# architecture, args, side of the images, {layer: (axes, tokens before the grid, grid)}
NETWORKS = [
    ("convnext_atto", {}, 64, {"stages.1.blocks.0": ("NCHW", 0, (8, 8)), "head.fc": ("ND", 0, None)}),
    ("vit_tiny_patch16_224", {"img_size": 48}, 48, {"blocks.3": ("NTD", 1, (3, 3)), "norm": ("NTD", 1, (3, 3))}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 48}, 48, {"blocks.3": ("NTD", 2, (3, 3))}),
    ("vit_little_patch16_reg4_gap_256", {"img_size": 48}, 48, {"blocks.3": ("NTD", 4, (3, 3))}),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "window_size": 7, "depths": [1, 2, 1, 1], "embed_dim": 24},
        56,
        {"layers.0.blocks.0": ("NHWC", 0, (14, 14)), "layers.1.blocks.1": ("NHWC", 0, (7, 7))},
    ),
    ("mixer_s32_224", {"img_size": 64}, 64, {"blocks.1": ("NTD", 0, (2, 2))}),
    ("levit_128s", {"img_size": 64}, 64, {"stages.0.blocks.0.mlp": None, "stages.1.blocks.1": ("NTD", 0, (2, 2))}),
    # not to be traced without the modules and functions that timm says are not to be looked into
    ("tiny_vit_5m_224", {}, 64, {"stages.1.blocks.0": ("NHWC", 0, (8, 8)), "stages.2": ("NCHW", 0, (4, 4))}),
    ("mobilevit_xxs", {}, 64, {"stages.4.1": ("NCHW", 0, (2, 2))}),
    # tokens in another order than row by row, until they are pooled
    (
        "hiera_tiny_224",
        {"img_size": 64},
        64,
        {
            "blocks.0": ("NHWC", 0, (16, 16)),
            "blocks.2": ("NHWC", 0, (8, 8)),
            "blocks.9": ("NHWC", 0, (4, 4)),
            "blocks.11": ("NTD", 0, (2, 2)),
        },
    ),
    # pooled by what a learned query finds
    (
        "vit_base_patch16_siglip_224",
        {"img_size": 48, "embed_dim": 48, "num_heads": 3, "depth": 2},
        48,
        {"blocks.1": ("NTD", 0, (3, 3)), "attn_pool": ("ND", 0, None), "head": ("ND", 0, None)},
    ),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "args", "side", "wanted"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_networks_are_cut_by_their_graph_and_their_layers_read(name, args, side, wanted):
    module = stirred(make_network(spec(f"timm:{name}", num_classes=10, **args)))
    cut = cut_network(module, (3, side, side))
    assert cut.way == "graph"
    layers = {one.layer.name: one.layer for one in cut.cuts}
    found = {name: (layers[name].axes, layers[name].num_prefix, layers[name].grid) for name in wanted if wanted[name]}
    assert found == {name: how for name, how in wanted.items() if how}
    x = noise(2, 3, side, side)
    with torch.no_grad():
        logits = module(x)
        for node in {layers[name].node for name in found}:
            (activation,) = cut.taps([node])(x)
            torch.testing.assert_close(cut.suffix(node)(activation), logits, rtol=1e-4, atol=1e-5)


def test_only_networks_with_parts_of_timm_have_leaves_of_timm():
    part = timm.create_model("resnet18").layer1
    assert timm_leaves(nn.Sequential(nn.Flatten(), nn.Linear(3, 3))) is None
    assert timm_leaves(nn.Sequential(part)) == timm_leaves(part)
    assert timm_leaves(part).modules


def test_an_architecture_with_the_tag_of_its_weights_is_built():
    plain, tagged = (make_network(spec(f"timm:{name}", num_classes=3)) for name in ("resnet18", "resnet18.a1_in1k"))
    assert state_digest(plain) == state_digest(tagged)


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("timm:resnet19", "random", "unknown architecture 'timm:resnet19'; did you mean 'resnet"),
        ("timm:resnet18.a1_in1", "random", "no weights 'a1_in1' of 'resnet18'; did you mean 'a1_in1k'"),
        ("timm:botnet50ts_256", "pretrained", "timm publishes no weights for timm:botnet50ts_256; name a checkpoint"),
        ("timm:resnet18", "missing.pt", "there is no checkpoint .*missing.pt"),
    ],
)
def test_a_wrong_word_is_refused_with_what_would_be_right(architecture, weights, message):
    with pytest.raises((JobFileError, InputError), match=message):
        build_network(spec(architecture, weights=weights))


@pytest.mark.parametrize("word", ["pretrained", "checkpoint_path"])
def test_weights_among_the_arguments_are_refused(word):
    asked = replace(spec("timm:resnet18"), args=json.dumps({word: True}))
    with pytest.raises(JobFileError, match="name the weights as the model's `weights`, not in its `args`"):
        build_network(asked)


def test_a_checkpoint_of_timm_is_loaded(tmp_path):
    trained = make_network(spec("timm:resnet18", seed=5, num_classes=4))
    (tmp_path / "w.safetensors").write_bytes(save_state(trained))
    loaded = build_network(spec("timm:resnet18", base=tmp_path, weights="w.safetensors", num_classes=4))
    assert state_digest(loaded) == state_digest(trained)


def test_pretrained_weights_are_loaded_by_timm_itself(monkeypatch):
    """Timm's download is replaced by a state of the right shapes."""
    import timm.models._builder as builder

    published = timm.create_model("resnet18", pretrained=False)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: published.state_dict())
    asked = spec("timm:resnet18", weights="pretrained")
    downloaded = build_network(asked)
    assert state_digest(downloaded) == state_digest(published)
    assert state_digest(build_network(asked, state=downloaded.state_dict())) == state_digest(published)


def test_pretrained_weights_that_cannot_be_downloaded_are_named_with_a_way_out(monkeypatch):
    import timm.models._builder as builder

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", no_network)
    with pytest.raises(
        InputError, match=r"weights of timm:resnet18 cannot be downloaded \(OSError: no route.*cache.*or name a checkp"
    ):
        build_network(spec("timm:resnet18", weights="pretrained"))


def test_the_preprocessing_published_with_weights_is_found():
    found = default_preprocess(spec("timm:resnet18.a1_in1k", weights="pretrained"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert found == Preprocess(resize=235, crop=224, mean=mean, std=std, interpolation="bicubic")
    assert default_preprocess(spec("timm:resnet18")) == Preprocess()
    squashed = default_preprocess(spec("timm:dm_nfnet_f4.dm_in1k", weights="pretrained"))
    assert (squashed.resize, squashed.crop) == ((403, 403), 384)


def test_a_preprocessing_that_cannot_be_followed_is_named():
    with pytest.raises(JobFileError, match=r"cropped by 'border' to .*give the model another `preprocess`"):
        default_preprocess(spec("timm:deepseek_vit_412m.deepseek_v4_1_flash", weights="pretrained"))


def test_published_preprocessing_gives_images_of_the_size_that_timm_gives():
    """Timm's own transform is the oracle, on an image that is wider than high."""
    from PIL import Image

    from stitchgrid.preprocess import apply_preprocess

    pixels = torch.randint(0, 256, (3, 300, 420), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for name in ("resnet18.a1_in1k", "convnext_atto.d2_in1k", "dm_nfnet_f4.dm_in1k"):
        config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        theirs = timm.data.create_transform(**config)(picture)
        ours = apply_preprocess([pixels], default_preprocess(spec(f"timm:{name}", weights="pretrained")))[0]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().mean() < 0.02  # theirs are rounded to 8 bits


NUM_SAMPLED, LARGEST, SAMPLE_SEED = 100, 60_000_000, 20261130
UNCUT = {"crossvit_18_240": "another path (a shortcut or branch) runs beside it"}  # two branches of tokens


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sample_of_all_architectures_is_cut_at_blocks_with_exact_halves_or_refused_with_the_reason():
    """Drawn by seed from what the installed timm lists, of at most 60 M parameters, at their own image sizes."""
    sizes = {name: known_facts(f"timm:{name}") for name in timm.list_models()}
    names = [name for name, facts in sizes.items() if facts is not None and facts.parameters < LARGEST]
    random.Random(SAMPLE_SEED).shuffle(names)
    wrong = {}
    for name in names[:NUM_SAMPLED]:
        try:
            found = differences_of_halves(name, sizes[name].input_size)
        except StitchgridError as problem:
            if UNCUT.get(name, "?") not in str(problem):
                wrong[name] = str(problem)
            continue
        if not found or max(found) > 1e-6:
            wrong[name] = found
    assert wrong == {}


def differences_of_halves(name, size):
    """Return how far the rest of the network from some blocks on is from the whole, over its largest score."""
    cut = cut_network(stirred(make_network(spec(f"timm:{name}"))), (3, *size))
    blocks = select_layers(cut, ("blocks",))
    x = noise(2, 3, *size)
    with torch.no_grad():
        whole = cut.module(x)
        nodes = [blocks[place].node for place in sorted({0, len(blocks) // 2, len(blocks) - 1})]
        return [
            float((cut.suffix(node)(activation) - whole).abs().max() / whole.abs().max())
            for node, activation in zip(nodes, cut.taps(nodes)(x), strict=True)
        ]
