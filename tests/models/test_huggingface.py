"""Networks of transformers, from folders that save_pretrained wrote; transformers itself is the oracle."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from helpers_models import noise

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import InputError, JobFileError
from stitchgrid.models import huggingface
from stitchgrid.models.architecture import code_digest
from stitchgrid.models.build import build_network, default_preprocess
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.versions import library_versions
from stitchgrid.models.weights import state_digest
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.records import Interface, Limits, NetworkSpec, Preprocess, canonical
from stitchgrid.store import Store

transformers = pytest.importorskip("transformers")

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
EMBEDS = Interface(averages=True)


def saved(folder, module, processor=None):
    module.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder with a classifier, an encoder and a CLIP."""
    base = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL)
    config.num_labels = 10
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    vit = transformers.ViTForImageClassification(config)
    torch.nn.init.normal_(vit.classifier.bias)
    saved(base / "vit", vit, processor)
    saved(base / "dino", transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)))
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = transformers.CLIPConfig(projection_dim=20, vision_config=SMALL, text_config=text)
    saved(base / "clip", transformers.CLIPModel(clip))
    return base


def spec(name, base, weights="pretrained", seed=0, **args):
    return NetworkSpec(
        name="n",
        entry="n",
        architecture=f"huggingface:{name}",
        base=str(base),
        weights=weights,
        seed=seed,
        args=canonical(args),
    )


def test_a_folder_is_the_network_that_was_saved(folders):
    own = transformers.ViTForImageClassification.from_pretrained(folders / "vit").eval()
    module = build_network(spec("vit", folders))
    assert state_digest(module) == state_digest(own)
    cut = cut_network(module, (3, 32, 32))
    images = noise(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(cut.whole(images), own(images).logits)
    assert [c.layer.grid for c in cut.cuts if c.name in {"vit.layers.0", "vit.layers.1"}] == [(4, 4), (4, 4)]
    assert library_versions(spec("vit", folders))["transformers"] == transformers.__version__


def test_random_weights_are_those_that_the_seed_draws(folders):
    one, again, other = (state_digest(build_network(spec("vit", folders, "random", seed))) for seed in (1, 1, 2))
    assert one == again != other


def test_of_a_clip_the_image_part_is_taken_and_its_projection_is_the_output(folders):
    own = transformers.CLIPVisionModelWithProjection.from_pretrained(folders / "clip", projection_dim=20).eval()
    cut = cut_network(build_network(spec("clip", folders)), (3, 32, 32), EMBEDS)
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(cut.whole(images), own(images).image_embeds)
    named = spec("clip", folders, **{"class": "CLIPVisionModel"})
    with torch.no_grad():
        found = cut_network(build_network(named), (3, 32, 32), EMBEDS).whole(images)
        assert torch.equal(found, own.vision_model(images).pooler_output)


def test_a_pooler_without_weights_is_left_out_and_positions_are_averaged(folders, tmp_path):
    own = transformers.ViTModel.from_pretrained(folders / "vit", add_pooling_layer=False).eval()
    module = build_network(spec("vit", folders, **{"class": "ViTModel"}))
    assert module.pooler is None
    images = noise(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"tensor of \(2, 17, 24\).*scores of positions.*head = \"embedding\""):
        cut_network(module, (3, 32, 32))
    with torch.no_grad():
        found = cut_network(module, (3, 32, 32), EMBEDS).whole(images)
        assert torch.allclose(found, own(images).last_hidden_state.mean(1), atol=1e-7)


PROCESSORS = {
    "ViTImageProcessor": {},
    "BitImageProcessor": {},  # shorter side, then a crop
    "DeiTImageProcessor": {},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 224}},  # a crop of a share of the image
    "ConvNextImageProcessor at 384": {},  # none from here on
    "LevitImageProcessor": {},
    "PoolFormerImageProcessor": {},
    "EfficientNetImageProcessor": {},  # divides by the deviation twice
    "SegformerImageProcessor": {},
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_come_out_as_the_image_processor_makes_them(folders, tmp_path, kind):
    processor = getattr(transformers, kind.partition(" ")[0])(**PROCESSORS[kind])
    shutil.copytree(folders / "vit", tmp_path / "n")
    processor.save_pretrained(tmp_path / "n")
    found = default_preprocess(spec("n", tmp_path))
    rows, columns = torch.linspace(0, 4, 420)[:, None], torch.linspace(0, 3, 330)
    pixels = (torch.stack([rows.cos() * columns.sin()] * 3) * 120 + 125).to(torch.uint8)
    theirs = processor(pixels.numpy(), return_tensors="pt")["pixel_values"][0]
    ours = apply_preprocess([pixels], found)[0]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02


def test_an_image_processor_that_cannot_be_followed_or_is_not_there_is_told(folders, tmp_path):
    shutil.copytree(folders / "vit", tmp_path / "n")
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path / "n")  # swaps red and blue
    with pytest.raises(
        JobFileError, match=r"huggingface:n \(MobileViTImageProcessor\) does something that a `preprocess` cannot"
    ):
        default_preprocess(spec("n", tmp_path))
    with pytest.raises(JobFileError, match="huggingface:dino has no image processor that can be read"):
        default_preprocess(spec("dino", folders))
    assert default_preprocess(spec("dino", folders, "random")) == Preprocess()


def test_the_configuration_is_what_an_address_knows_of_the_architecture(folders, tmp_path):
    shutil.copytree(folders / "vit", tmp_path / "elsewhere")
    before = code_digest(spec("vit", folders))
    assert code_digest(spec("elsewhere", tmp_path)) == before
    path = tmp_path / "elsewhere" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "9"}))
    assert code_digest(spec("elsewhere", tmp_path)) == before
    path.write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert code_digest(spec("elsewhere", tmp_path)) != before


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("vit", {"hidden_sise": 8}, "ViTConfig has no 'hidden_sise'; did you mean 'hidden_size'"),
        ("vit", {"class": "BertModel"}, "class 'BertModel' is no network of transformers that takes pixel_values"),
        ("vit", {"class": "AutoModel"}, "class 'AutoModel' is no network"),
        (
            "vit",
            {"num_labels": 3},
            "lack 2 of the tensors .* shapes: classifier.bias, classifier.weight; name the class",
        ),
        ("dino", {"class": "Dinov2ForImageClassification"}, "lack 2 of the tensors of Dinov2ForImageClassification"),
        ("vit", {"pretrained": True}, "name the weights as the model's `weights`, not in its `args`"),
        ("./missing", {}, "is no folder with a config.json, as save_pretrained"),
    ],
)
def test_what_does_not_fit_is_told(folders, name, args, message):
    with pytest.raises((JobFileError, InputError), match=message):
        build_network(spec(name, folders, **args))


def test_pickles_are_never_read(folders, tmp_path):
    shutil.copytree(folders / "vit", tmp_path / "n", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"x": torch.ones(1)}, tmp_path / "n" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"n cannot be read by transformers \(OSError.*model.safetensors"):
        build_network(spec("n", tmp_path))


CODE = """
from dataclasses import replace
from pathlib import Path
Path(__file__).with_name("ran").touch()
"""


@pytest.mark.parametrize("model_type", ["vit", "nobodys"])
def test_code_of_a_folder_is_never_run_and_nobody_is_asked(folders, tmp_path, monkeypatch, model_type):
    folder = tmp_path / "n"
    shutil.copytree(folders / "vit", folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": auto_map}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "own.Processor"}}))
    (folder / "own.py").write_text(
        CODE + "from transformers import ViTConfig as Config, ViTImageProcessor as Processor\nModel = None\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    asked = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    with contextlib.suppress(JobFileError):  # another processor, or none
        default_preprocess(spec("n", tmp_path))
    build_network(spec("n", tmp_path))
    assert not asked
    assert not [*tmp_path.rglob("ran")]


def test_where_transformers_would_ask_it_gives_up(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda text="": pytest.fail("asked"))
    with huggingface._quiet(), pytest.raises(ValueError, match="trust_remote_code"):
        transformers.dynamic_module_utils.resolve_trust_remote_code(None, "x", False, True)
    assert transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0


NAMED = {
    "a file of pickles": {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "architecture": "resnet10t",
        "model_args": {"checkpoint_path": "elsewhere.pth"},
    },
    "a folder of timm's": {"architecture": "local-dir:elsewhere"},
    "a repository of timm's": {"backbone_config": {"backbone": "hf-hub:some/network"}},
    "a file": {"vision_config": {"x": [{"y": "../elsewhere.json"}]}},
    "a file from the root": {"x": "/dev/zero"},
    "a pickle beside it": {"transformers_weights": "elsewhere.bin"},
    "compiled code": {"_attn_implementation": "some/kernel"},
}


@pytest.mark.parametrize("named", NAMED)
def test_a_configuration_that_names_paths_or_code_is_refused(folders, tmp_path, monkeypatch, named):
    shutil.copytree(folders / "vit", tmp_path / "n")
    path = tmp_path / "n" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **NAMED[named]}))
    monkeypatch.setattr(transformers, "ViTForImageClassification", None)  # nothing is made of it
    with pytest.raises(InputError, match=r"config.json names a .*which is not opened"):
        build_network(spec("n", tmp_path))


@pytest.mark.parametrize(
    "asked", [{"num_hidden_layers": 10**9}, {"num_labels": 10**9}, {"y": [{"depths": [2, 10**9]}]}]
)
def test_a_configuration_of_more_layers_or_classes_than_networks_have_is_refused(folders, tmp_path, asked):
    shutil.copytree(folders / "vit", tmp_path / "n")
    path = tmp_path / "n" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **asked}))
    with pytest.raises(
        InputError, match=r"config\.json asks for .* = 1000000000, more than the 10?0,000|1,000,000 of any"
    ):
        build_network(spec("n", tmp_path))


@pytest.mark.parametrize("asked", [{"num_hidden_layers": 9_000}, {"hidden_size": 6_000}])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_configuration_of_a_network_far_larger_than_its_weights_is_refused(folders, tmp_path, asked, weights):
    shutil.copytree(folders / "vit", tmp_path / "n")
    path = tmp_path / "n" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **asked}))
    given = replace(spec("n", tmp_path, weights), limits=Limits(tensors=1_000, checkpoint_bytes=200_000_000))
    with pytest.raises(InputError, match=r"asks for a network of more than 1,000 tensors or [12]00 MB"):
        build_network(given)
    build_network(spec("vit", folders))  # nothing is counted any more


@pytest.mark.parametrize(
    "asked",
    [
        {"size": {"height": 60_000, "width": 60_000}},
        {"do_center_crop": True, "crop_size": {"height": 60_000, "width": 60_000}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 1e-3},
        {"resample": "a"},
        {"image_mean": ["a", 1, 2]},
        {"size": {"height": "a", "width": 32}},
    ],
)
def test_an_image_processor_of_absurd_settings_is_refused_before_it_runs(folders, tmp_path, monkeypatch, asked):
    shutil.copytree(folders / "vit", tmp_path / "n")
    path = tmp_path / "n" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **asked}))
    if "a" not in str(asked):
        monkeypatch.setattr(huggingface, "_difference", lambda *_: pytest.fail("it ran"))
    with pytest.raises(JobFileError, match=r"image processor of huggingface:n has a setting that cannot be followed"):
        default_preprocess(spec("n", tmp_path))


def test_an_image_processor_that_names_paths_is_refused(folders, tmp_path):
    shutil.copytree(folders / "vit", tmp_path / "n")
    (tmp_path / "n" / "preprocessor_config.json").write_text('{"class_info_file": "/dev/zero"}')
    with pytest.raises(InputError, match=r"preprocessor_config.json names a path \(class_info_file = '/dev/zero'\)"):
        default_preprocess(spec("n", tmp_path))


def test_a_hub_that_cannot_be_reached_is_told(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", no_network)
    with pytest.raises(
        InputError, match=r"huggingface:some/vit cannot be read from the Hugging Face hub \(OSError: no"
    ):
        build_network(spec("some/vit", tmp_path))


def test_without_transformers_what_to_install_is_told(folders, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JobFileError, match=r"needs transformers.*pip install stitchgrid\[huggingface\]"):
        build_network(spec("vit", folders))


def test_a_whole_sweep_of_a_classifier_and_an_encoder(folders, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(
        'name = "s"\n[data]\ndataset = "digits"\nfit = { split = "train", samples = 80 }\n'
        'eval = { split = "test", samples = 40 }\n[[matchers]]\nkind = "direct"\n'
        f'[[models]]\nname = "vit"\narchitecture = "huggingface:{folders}/vit"\nweights = "pretrained"\n'
        f'[[models]]\nname = "clip"\narchitecture = "huggingface:{folders}/clip"\nweights = "pretrained"\n'
        'head = "embedding"\npreprocess = { resize = 32 }\n'
    )
    store = str(tmp_path / "grid")
    done = CliRunner().invoke(cli, ["launch", str(path), "--store", store, "--address", "none"])
    assert done.exit_code == 0, done.output
    with Catalog(Store.open(store)) as catalog:
        rows = catalog.query(
            "select metric, max(value) as high, min(value) as low, count(*) as num from results "
            "where metric in ('residual', 'agreement', 'output_cosine') and source_model = target_model "
            "and source_layer = target_layer group by metric"
        ).to_pylist()
    found = {row["metric"]: row for row in rows}
    assert found["residual"]["high"] < 1e-6
    assert found["residual"]["num"] == 2 + 2  # blocks of the classifier, and of CLIP
    assert found["agreement"]["low"] == 1
    assert found["output_cosine"]["low"] > 1 - 1e-6
