"""A network specification becomes a network, or a message that says what to change."""

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers_models import noise, spec
from torch import nn

from stitchgrid.errors import InputError, JobFileError, is_out_of_memory
from stitchgrid.models.architecture import code_digest
from stitchgrid.models.build import build_network, default_preprocess, make_network
from stitchgrid.models.memory import memory_told, move
from stitchgrid.models.registry import architecture_names, library_names
from stitchgrid.models.weights import load_checkpoint, save_state, state_digest
from stitchgrid.records import Preprocess

OWN_FILE = """
from torch import nn

def net(width=4, num_classes=3):
    body = [nn.Flatten(), nn.Linear(12, width), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*body, nn.Linear(width, num_classes))

def needs(width):
    return net(width)

def breaks():
    raise RuntimeError("no such thing")

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "nets.py").write_text(OWN_FILE)
    return tmp_path


def test_one_seed_gives_one_network_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (build_network(spec("stitchgrid:tiny10", seed=3)) for _ in range(2))
    assert state_digest(first) == state_digest(second)
    assert state_digest(build_network(spec("stitchgrid:tiny10", seed=4))) != state_digest(first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_stays_frozen_whatever_is_asked_of_it(own):
    module = build_network(spec("nets.py:net", base=own))
    module.train()
    module[3].train(True)
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert not module[2].inplace
    x = noise(5, 3, 2, 2)
    assert torch.equal(module(x), module(x))  # dropout is off


def test_a_network_to_be_trained_is_not_frozen(own):
    module = make_network(spec("nets.py:net", base=own))
    assert all(p.requires_grad for p in module.parameters())
    assert module.train().training


@pytest.mark.parametrize("architecture", ["torchvision:squeezenet1_1", "torchvision:googlenet", "stitchgrid:resnet20"])
def test_libraries_networks_are_built_by_name(architecture):
    module = build_network(spec(architecture, num_classes=5))
    assert module(noise(2, 3, 64, 64)).shape == (2, 5)


def test_a_function_of_an_installed_module_is_called():
    module = build_network(spec("torchvision.models.squeezenet:squeezenet1_1", num_classes=4))
    assert module(noise(2, 3, 64, 64)).shape == (2, 4)


def test_args_reach_a_function_of_a_file(own):
    assert build_network(spec("nets.py:net", base=own, width=9))[1].out_features == 9


def test_a_given_state_is_loaded_instead_of_what_the_specification_names():
    trained = build_network(spec("stitchgrid:tiny10", seed=7))
    again = build_network(spec("stitchgrid:tiny10", seed=0, weights="missing.pt"), state=trained.state_dict())
    assert state_digest(again) == state_digest(trained)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_beside_the_job_file_is_loaded(tmp_path, suffix):
    trained = build_network(spec("stitchgrid:tiny10", seed=7))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": trained.state_dict()}, path)
    else:
        path.write_bytes(save_state(trained))
    assert state_digest(build_network(spec("stitchgrid:tiny10", weights=path.name, base=tmp_path))) == state_digest(
        trained
    )


@pytest.mark.parametrize(
    ("architecture", "args", "message"),
    [
        ("stitchgrid:resnet21", {}, "unknown architecture 'stitchgrid:resnet21'; did you mean 'resnet"),
        ("torchvision:resnet19", {}, "unknown architecture 'torchvision:resnet19'; did you mean 'resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "unknown architecture 'torchvision:fasterrcnn"),
        ("resnet18", {}, "unknown architecture 'resnet18'; wanted stitchgrid:NAME.*did you mean"),
        ("stitchgrid:resnet20", {"widht": 8}, r"resnet20 does not take args .*widht.*its arguments are \(.*width"),
        ("torchvision:resnet18", {"num_clases": 8}, r"resnet18 with args .* failed: TypeError.*num_clases"),
    ],
)
def test_a_wrong_word_is_refused_with_what_would_be_right(architecture, args, message):
    with pytest.raises(JobFileError, match=message):
        build_network(spec(architecture, **args))


@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        ("nets.py:nett", JobFileError, "nets.py has no function 'nett'; did you mean 'net'"),
        (
            "nets.py:needs",
            JobFileError,
            r"nets.py:needs does not take args \{\}: missing a required argument: 'width'.*\(width\)",
        ),
        ("nets.py:breaks", JobFileError, r"nets.py:breaks with args \{\} failed: RuntimeError: no such thing"),
        ("nets.py:number", InputError, "nets.py:number returned a int; wanted a torch.nn.Module"),
        ("net.py:net", InputError, "there is no file .*net.py; paths start at the job file"),
        ("broken.py:net", InputError, "broken.py does not run: SyntaxError"),
        ("torchvison:resnet18", InputError, "module 'torchvison' cannot be imported.*did you mean 'torchvision'"),
    ],
)
def test_own_code_that_does_not_give_a_network_is_refused(own, architecture, error, message):
    (own / "broken.py").write_text("def net(:")
    with pytest.raises(error, match=message):
        build_network(spec(architecture, base=own))


def test_weights_among_the_arguments_are_refused():
    asked = replace(spec("torchvision:resnet18"), args='{"weights": "DEFAULT"}')
    with pytest.raises(JobFileError, match="name the weights as the model's `weights`, not in its `args`"):
        build_network(asked)


def test_timm_is_asked_for_only_when_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        JobFileError, match="'timm:vit_tiny_patch16_224' needs timm, which is not installed; pip install timm"
    ):
        build_network(spec("timm:vit_tiny_patch16_224"))
    assert library_names("timm") == []


def test_own_code_is_known_by_its_content_not_by_its_place(own, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "other.py").write_text(OWN_FILE)
    digest = code_digest(spec("nets.py:net", base=own))
    assert code_digest(spec("other.py:net", base=elsewhere)) == digest
    assert code_digest(spec("nets.py:needs", base=own)) != digest
    (own / "nets.py").write_text(OWN_FILE + "\n")
    assert code_digest(spec("nets.py:net", base=own)) != digest


def test_a_file_that_changed_is_loaded_anew(own):
    assert build_network(spec("nets.py:net", base=own))[1].out_features == 4
    (own / "nets.py").write_text(OWN_FILE.replace("width=4", "width=6"))
    assert build_network(spec("nets.py:net", base=own))[1].out_features == 6


def test_library_code_is_known_by_its_word_and_module_code_by_its_content():
    digests = {
        code_digest(spec(word))
        for word in ("stitchgrid:resnet20", "stitchgrid:resnet32", "torchvision.models.squeezenet:squeezenet1_1")
    }
    assert len(digests) == 3
    assert code_digest(spec("stitchgrid:resnet20", seed=1)) in digests


def test_the_preprocessing_published_with_weights_is_found():
    published = default_preprocess(spec("torchvision:resnet18", weights="IMAGENET1K_V1"))
    assert published == Preprocess(
        resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
    )
    assert default_preprocess(spec("torchvision:efficientnet_b0", weights="DEFAULT")).interpolation == "bicubic"
    assert default_preprocess(spec("torchvision:resnet18")) == Preprocess()
    assert default_preprocess(spec("stitchgrid:resnet20", weights="w.pt")) == Preprocess()


def test_unknown_published_weights_are_refused_with_the_known_ones():
    with pytest.raises(JobFileError, match="resnet18 has no weights 'IMAGENET1K_V2'; did you mean 'IMAGENET1K_V1'"):
        build_network(spec("torchvision:resnet18", weights="IMAGENET1K_V2"))


def test_weights_that_cannot_be_downloaded_are_named_with_a_way_out(monkeypatch):
    def no_network(url, **kwargs):
        assert kwargs["weights_only"]
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(
        InputError, match=r"IMAGENET1K_V1 of .*cannot be downloaded from https://.*no route.*checkpoints, or name"
    ):
        build_network(spec("torchvision:squeezenet1_1", weights="IMAGENET1K_V1"))


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_published_weights_give_the_same_network_downloaded_or_given(monkeypatch, tmp_path, name):
    """Torchvision's own loading is the oracle; its cache is filled with random weights of the right shapes."""
    import torchvision

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    kwargs = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(name, weights=None, **kwargs).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *_, **__: torch.load(tmp_path / "w.pt", weights_only=True)
    )
    monkeypatch.setattr(
        torchvision.models._api,
        "load_state_dict_from_url",
        lambda *_, **__: torch.load(tmp_path / "w.pt", weights_only=True),
    )
    expected = torchvision.models.get_model(name, weights=weights).eval()
    downloaded = build_network(spec(f"torchvision:{name}", weights="IMAGENET1K_V1"))
    given = build_network(spec(f"torchvision:{name}", weights="IMAGENET1K_V1"), state=downloaded.state_dict())
    x = noise(2, 3, 64, 64)
    assert torch.equal(downloaded(x), expected(x))
    assert torch.equal(given(x), expected(x))


def test_names_are_listed_by_glob():
    assert architecture_names("stitchgrid:resnet1*") == ["stitchgrid:resnet110", "stitchgrid:resnet18"]
    assert len(architecture_names("torchvision:*")) == 80
    assert {"stitchgrid:resnet50", "torchvision:resnet50"} <= set(architecture_names("resnet50"))
    assert architecture_names("nothing*") == []


def test_importing_the_names_loads_nothing_heavy():
    code = "import stitchgrid.models.registry, sys; print(*sys.modules)"
    root = Path(__file__).parents[2]
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).split()
    assert not {"torch", "torchvision", "numpy"} & set(loaded)


def test_every_torchvision_name_is_a_classifier_that_can_be_asked_for():
    names = library_names("torchvision")
    assert {"vit_b_16", "swin_t", "maxvit_t", "regnet_y_400mf"} <= set(names)
    assert isinstance(make_network(spec("torchvision:mnasnet0_5")), nn.Module)


class Outline(nn.Module):
    """Stands for a RegNet, whose widths are worked out with tensors that need values."""

    def __init__(self, *_, num_classes=1000, **__):
        super().__init__()
        self.num_classes = num_classes


def facts(module):
    """Return the shapes and the settings of a network."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    return shapes, {key: value for key, value in vars(module).items() if isinstance(value, int)}


def test_a_given_state_fits_the_network_that_torchvision_builds_for_every_published_name(monkeypatch):
    """Torchvision's own builders are the oracle, with weights that load nothing and tensors without content."""
    from torchvision.models import get_model, get_model_weights, regnet
    from torchvision.models._api import WeightsEnum

    monkeypatch.setattr(regnet, "RegNet", Outline)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})
    for name in [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]:
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)  # no value is looked at
    wrong, num_seen = [], 0
    for name in library_names("torchvision"):
        for weights in get_model_weights(name):
            if weights.meta["categories"] is None:  # refused
                continue
            num_seen += 1
            with torch.device("cpu" if name.startswith("regnet") else "meta"):
                theirs = get_model(name, weights=weights, progress=False)
                ours = make_network(spec(f"torchvision:{name}", weights=weights.name))
            if facts(ours) != facts(theirs):
                wrong.append(str(weights))
    assert not wrong
    assert num_seen > 100


def test_published_weights_without_a_head_are_refused():
    with pytest.raises(JobFileError, match=r"IMAGENET1K_FEATURES of .*vgg16 have no head.*known: .*IMAGENET1K_V1"):
        build_network(spec("torchvision:vgg16", weights="IMAGENET1K_FEATURES"))


HUGE = """
from torch import nn

def huge(width=10**7):
    return nn.Linear(width, width)

def knows_its_values(width=10**7):
    assert nn.Linear(3, 3).bias.tolist()
    return nn.Linear(width, width)

def gives_up():
    raise MemoryError
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "huge",
            r"model 'net' needs 372,529 GiB for its weights alone, and this machine has [\d,.]+ GiB; make it small",
        ),
        ("knows_its_values", r"model 'net' asked for 372,529 GiB at once, and this machine has"),
        ("gives_up", "model 'net' does not fit into memory, and this machine has"),
    ],
)
def test_a_network_too_large_for_this_machine_is_refused_with_what_it_needs(tmp_path, function, message):
    (tmp_path / "huge.py").write_text(HUGE)
    with pytest.raises(InputError, match=message) as caught:
        make_network(spec(f"huge.py:{function}", base=tmp_path))
    assert is_out_of_memory(caught.value)  # so that workers try once more


def test_a_network_too_large_for_its_device_is_refused_with_what_it_needs(monkeypatch):
    module = nn.Linear(256, 1023, bias=False)
    moved = move(module, torch.device("cpu"), "net")
    assert moved is module

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "to", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 80 * 2**30))
    with pytest.raises(
        InputError, match=r"'net' needs 0.00098 GiB for its weights alone, and 3 GiB of the 80 GiB of cuda:0 are free"
    ):
        move(module, torch.device("cuda:0"), "net")


def test_other_errors_than_a_lack_of_memory_are_left_as_they_are(monkeypatch):
    module = nn.Linear(2, 2)

    def refuse(*_):
        raise RuntimeError("no such device")

    monkeypatch.setattr(module, "to", refuse)
    with pytest.raises(RuntimeError, match="no such device"):
        move(module, torch.device("cpu"), "net")


def test_a_checkpoint_too_large_for_this_machine_is_not_called_damaged(monkeypatch, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pt")

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes.")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError, match=r"checkpoint .*w.pt needs .* GiB for its weights alone, and this machine has"):
        load_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(("kind", "command"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_a_limit_of_the_process_is_told_where_there_is_one(monkeypatch, kind, command):
    limits = {getattr(resource, kind): (2**30, -1)}
    monkeypatch.setattr(resource, "getrlimit", lambda one: limits.get(one, (resource.RLIM_INFINITY, -1)))
    said = rf"this process may take no more than 1 GiB \(a limit of its shell: {command}\), of [\d.]+ GiB"
    with (
        pytest.raises(InputError, match=rf"model 'net' needs 2 GiB for its weights alone, and {said}"),
        memory_told("model 'net'", device=torch.device("cpu"), count=lambda: 2**31),
    ):
        raise MemoryError
