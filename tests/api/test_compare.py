"""Networks of a session, compared in its process: the user's own modules, images of every kind, one with launches."""

import gc
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers_flow import run as command
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import stitchgrid as sg
from stitchgrid.errors import InputError, JobFileError, StitchgridError
from stitchgrid.models.nets.resnet import resnet20
from stitchgrid.models.weights import state_digest
from stitchgrid.resolve import networks

LAYERS = ["layer1.0", "layer2.0"]


def net(seed=0, **args):
    torch.manual_seed(seed)
    return resnet20(depth=8, width=4, **args)


def pixels(num=48, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, channels, 8, 8), generator=generator, dtype=torch.uint8)


def labels(num=48):
    return torch.arange(num) % 10


def compare(*args, **how):
    return sg.compare(*args, **{"layers": LAYERS, "progress": False, **how})


def values(run):
    rows = run.sql("select source_model, source_layer, target_model, target_layer, matcher, metric, value from results")
    return {tuple(row.values())[:-1]: row["value"] for row in rows}


def test_a_comparison_says_what_it_computed(tmp_path):
    found = [compare({"f": net()}, pixels(), matchers=["cka"], store=tmp_path / "grid").summary for _ in range(2)]
    assert [(one.num_cells, one.num_done, one.num_computed) for one in found] == [(4, 4, 4), (4, 4, 0)]


# The user's own modules


class Tracker(nn.Module):
    """A network that is being trained."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 10)
        self.last = None

    def forward(self, x):
        x = self.act(self.norm(self.body(x)))
        self.last = x
        return self.fc(self.drop(x.mean((2, 3))))


def test_modules_stay_as_they_are_whatever_happens():
    module, calls = Tracker().train(), []
    module.body.requires_grad_(False)
    module.fc.register_forward_hook(lambda *_: calls.append(1))
    module(torch.rand(4, 3, 8, 8)).sum().backward()  # leaves a graph behind
    before = state_digest(module), module.fc.weight.grad.clone(), module.norm.num_batches_tracked.item()
    parts = {
        name: (part.training, len(part._forward_hooks), vars(part).keys()) for name, part in module.named_modules()
    }
    grads = {name: value.requires_grad for name, value in module.named_parameters()}
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    fast = torch.backends.mha.get_fastpath_enabled()

    compare({"a": module}, pixels(), labels(), layers="all", matchers=["cka", "direct"])
    with pytest.raises(JobFileError, match="nowhere"):
        compare({"a": module}, pixels(), layers="nowhere")

    assert (state_digest(module), module.norm.num_batches_tracked.item()) == (before[0], before[2])
    assert torch.equal(module.fc.weight.grad, before[1])
    assert parts == {
        name: (part.training, len(part._forward_hooks), vars(part).keys()) for name, part in module.named_modules()
    }
    assert module.act.inplace
    assert grads == {name: value.requires_grad for name, value in module.named_parameters()}
    assert places == {name: value.data_ptr() for name, value in module.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), random)
    assert (torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()) == (threads, fast)
    module(torch.rand(4, 3, 8, 8)).sum().backward()  # it can be trained on


def test_weights_that_change_are_another_network(tmp_path):
    module = net()
    first = compare([module], pixels(), store=tmp_path / "grid")
    again = compare([module], pixels(), store=tmp_path / "grid")
    assert values(first) == values(again)
    assert set(first.results()["cell_id"]) == set(again.results()["cell_id"])
    created = again.results()["created_at"]
    with torch.no_grad():
        module.conv1.weight.mul_(1.5)
    changed = compare([module], pixels(), store=tmp_path / "grid")
    assert set(changed.results()["cell_id"]).isdisjoint(again.results()["cell_id"])
    assert max(created) <= min(changed.results()["created_at"])


class Scaled(nn.Module):
    """The same weights compute something else, which only a look at what it computes shows."""

    def __init__(self, by):
        super().__init__()
        torch.manual_seed(0)
        self.by, self.body, self.act, self.fc = by, nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 10)

    def forward(self, x):
        return self.fc((self.act(self.body(x)) - self.by).square().mean((2, 3)))


def test_networks_of_the_same_weights_that_compute_other_things_are_told_apart(tmp_path):
    ids = [
        compare([Scaled(by)], pixels(), layers="all", store=tmp_path / "grid").networks["network_id"]
        for by in (0.1, 0.9, 0.1)
    ]
    assert ids[0] == ids[2] != ids[1]


# The same numbers as a launch


def job(folder, matchers):
    for position in (0, 1):
        safetensors.torch.save_file(net(position).state_dict(), folder / f"{position}.safetensors")
    for name, seed in (("eval", 0), ("fit", 1)):
        arrays = {"images": pixels(seed=seed).numpy(), "labels": labels().numpy()}
        np.savez(folder / f"{name}.npz", **arrays)
    models = "".join(
        f'[[models]]\nname = "{name}"\narchitecture = "stitchgrid:resnet20"\nargs = {{ depth = 8, width = 4 }}\n'
        f'weights = "{position}.safetensors"\nlayers = {LAYERS}\n'
        for position, name in enumerate("ab")
    )
    (folder / "job.toml").write_text(
        'name = "s"\n[data]\ndataset = "arrays"\nroot = "."\nfit = { split = "fit" }\neval = { split = "eval" }\n'
        f'[grid]\npairs = "across"\n{models}{matchers}'
    )
    return folder / "job.toml"


MATCHERS = [
    *({"kind": kind} for kind in ("cka", "procrustes", "direct")),
    {"kind": "task_loss", "epochs": 1, "init": "direct"},  # what is drawn depends on the addresses of the networks
]


def test_values_are_those_of_a_launch_of_the_same_networks(tmp_path):
    text = "".join(
        "[[matchers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in one.items()) for one in MATCHERS
    )
    launched = sg.launch(job(tmp_path, text), tmp_path / "grid", address="none", cpus_per_worker=1)
    modules = {"a": net(0), "b": net(1)}
    compared = compare(modules, pixels(), labels(), fit=(pixels(seed=1), labels()), matchers=MATCHERS)
    assert values(compared) == values(launched)
    assert len(values(compared)) > 50
    wanted, came = launched.networks.df(), compared.networks.df()
    assert came["accuracy"].tolist() == wanted["accuracy"].tolist()


# Images


class Pairs(Dataset):
    """Items of (image, label)."""

    def __init__(self, images, labels, make=lambda image: image):
        self.images, self.labels, self.make = images, labels, make

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.make(self.images[index]), int(self.labels[index])


def as_picture(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "images",
    [
        (pixels(), labels()),
        TensorDataset(pixels(), labels()),
        DataLoader(TensorDataset(pixels(), labels()), batch_size=7, shuffle=True),
        Pairs(pixels(), labels()),
        Pairs(pixels(), labels(), as_picture),
        Pairs(pixels().float() / 255, labels()),
        (pixels().numpy(), labels().numpy()),
        (pixels().double() / 255, labels()),
    ],
    ids=["pair", "tensors", "loader", "dataset", "pictures", "floats", "arrays", "doubles"],
)
def test_images_of_every_kind_give_the_same(images):
    wanted = compare([net()], pixels(), labels(), matchers=["cka", "direct"])
    assert values(compare([net()], images, matchers=["cka", "direct"])) == values(wanted)


def test_images_without_labels_tell_of_agreement_alone():
    run = compare([net()], torch.randn(48, 3, 8, 8), matchers=["direct"])
    metrics = {row["metric"]: row["value"] for row in run.results()}
    assert "agreement" in metrics
    assert metrics.get("accuracy") is None
    assert set(run.networks["accuracy"]) == {None}
    with pytest.raises(
        InputError, match="task_loss needs labels for training, and the images have none; give `labels`"
    ):
        compare([net()], torch.randn(48, 3, 8, 8), matchers=["task_loss"])


def test_labels_may_lack_some_of_the_classes():
    run = compare([net()], pixels(), labels() % 4, matchers=["direct"])
    assert all(0 <= accuracy <= 1 for accuracy in run.networks["accuracy"])


@pytest.mark.parametrize("matchers", [["cka"], ["direct"]])
def test_labels_that_no_network_has_are_refused_in_words_of_python(matchers):
    with pytest.raises(JobFileError) as caught:
        compare({"a": net(), "b": net(1)}, pixels(), labels() + 3, matchers=matchers)
    said = str(caught.value)
    assert "labels must be whole numbers from 0 to 9, as no network has more than 10 classes" in said
    assert "they go from 3 to 12. Give the position" in said
    assert "labels=False to compare without labels" in said
    assert not any(word in said for word in ("[grid]", "[data]"))


def test_classes_by_name_that_no_network_has_are_told_and_cost_only_accuracies(capsys):
    images = Pairs(pixels(), labels() % 4)
    images.classes = ["cat", "dog", "cow", "hen"]
    run = compare([net()], images, matchers=["cka"], progress=True)
    assert "the images have 4 classes, and the networks 10: no network is measured" in capsys.readouterr().err
    assert len(values(run)) == 4
    with pytest.raises(JobFileError, match=r"alone \(`pairs`\), or give labels=False"):
        compare([net()], images, matchers=["direct"])


def test_images_of_any_number_of_channels_are_what_the_network_takes():
    module = nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    run = compare([module], torch.randn(48, 5, 8, 8), layers="all", matchers=["cka"])
    x = torch.randn(48, 5, 8, 8)
    with torch.no_grad():
        act = [module[:end](x).flatten(1).numpy() for end in (1, 4)]
    del run
    found = compare([module], x, layers="all").matrix("a", "a", "cka")
    assert found.values[found.rows.index("0"), found.columns.index("3")] == pytest.approx(
        sg.measures.cka(*act), abs=1e-5
    )


def test_grey_bytes_are_one_channel():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    grey = pixels(channels=1)
    wanted = compare([module], grey.float() / 255, layers="all")
    assert values(compare([module], grey, layers="all")) == values(wanted)


class Scores(dict):
    """What a network of transformers returns, say."""


class Returning(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return Scores(features=x, scores=self.inner(x))


def test_outputs_and_heads_are_said_of_all_networks_or_by_name():
    module = net()
    found = compare(
        {"plain": module, "wrapped": Returning(module)},
        pixels(),
        matchers=["direct"],
        layers={"plain": LAYERS, "wrapped": [f"inner.{layer}" for layer in LAYERS]},
        output={"wrapped": "scores"},
        head={"wrapped": "embedding"},
    )
    rows = found.sql("select distinct target_model as target, metric from results")
    told = {of: {row["metric"] for row in rows if row["target"] == of} for of in ("plain", "wrapped")}
    assert {"agreement"} == told["plain"] & {"agreement", "output_cosine", "output_r2"}
    assert {"output_cosine", "output_r2"} == told["wrapped"] & {"agreement", "output_cosine", "output_r2"}
    same = found.sql("select value from results where metric = 'residual' and target_layer like '%' || source_layer")
    assert len(same) == 2
    assert all(row["value"] < 1e-6 for row in same)


def test_a_folder_of_image_files_is_taken_as_a_job_takes_it(tmp_path):
    for position, image in enumerate(pixels(40)):
        path = tmp_path / "test" / str(position % 10) / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        as_picture(image).save(path)
    run = compare({"a": net(), "b": net(1)}, tmp_path / "test", matchers=["cka", "direct"])
    assert set(run.results()["num_eval"]) == {20}
    assert set(run.networks["num_classes"]) == {10}
    with pytest.raises(InputError, match=r"there is no folder .*none; give one that has a folder of images"):
        compare([net()], tmp_path / "none")
    with pytest.raises(InputError, match="fit must be a folder beside"):
        compare([net()], tmp_path / "test", fit=tmp_path, matchers=["direct"])


@pytest.mark.parametrize(
    ("images", "how", "told"),
    [
        ("text.txt", {}, "there is no folder"),
        (torch.rand(8, 8), {}, r"images has the shape \(8, 8\); wanted \(N, C, H, W\)"),
        (pixels().movedim(1, -1), {}, r"moved by \.movedim\(-1, 1\)"),
        (pixels().long(), {}, "images are int64; wanted uint8 from 0 to 255"),
        (torch.full((8, 3, 8, 8), torch.nan), {}, "images hold inf or NaN"),
        (pixels(8), {"labels": labels(7)}, "images has 8 images and 7 labels"),
        (pixels(8), {"labels": torch.rand(8)}, "labels are whole numbers"),
        (pixels(8), {"samples": 9}, "images has 8 images; 0 of them to fit maps on and 9 to measure on"),
        (pixels(8), {"fit": 8, "matchers": ["direct"]}, "8 of them to fit maps on and 0 to measure on"),
        ({"a": 1}, {}, "images is a dict; wanted a tensor"),
        (iter([1]), {}, "wanted a tensor or array"),
        (torch.rand(8, 3, 8, 8), {"preprocess": {"resize": 4}}, "go to the networks unchanged"),
        (Pairs(["text"] * 4, labels(4)), {}, r"images\[\d\] is no image"),
        (pixels(), {"fit": torch.rand(8, 3, 8, 8), "matchers": ["direct"]}, "images and fit are not alike"),
    ],
)
def test_images_that_cannot_be_taken_are_refused_with_what_was_wanted(images, how, told):
    with pytest.raises(InputError, match=told):
        compare([net()], images, **how)


@pytest.mark.parametrize(
    ("networks", "how", "told"),
    [
        ({}, {}, "at least one network"),
        ({"a": net}, {}, "network 'a' is a function"),
        ({"a": net().state_dict()}, {}, "network 'a' is a OrderedDict, such as a state dict is"),
        ({"a": net()}, {"layers": {"b": "all"}}, "`layers` names 'b', which is not a network; "),
        ({"a": net()}, {"head": {"b": "embedding"}}, "`head` names 'b', which is not a network; "),
        ({"a": net()}, {"matchers": ["ckaa"]}, "did you mean 'cka'|cka"),
        ({"a": net()}, {"device": "cuda"}, "finds none"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(networks, how, told):
    if how.get("device") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((InputError, JobFileError)) as caught:
        compare(networks, pixels(), **how)
    assert re.search(told, str(caught.value) + " ".join(getattr(caught.value, "problems", ())))


# The store


def test_a_store_cannot_make_live_networks_again(tmp_path):
    compare({"a": net(), "b": net(1)}, pixels(), store=tmp_path / "grid", name="mine")
    said = command("resume", "mine", "--store", tmp_path / "grid", "--address", "none", code=2).output
    assert "given to stitchgrid.compare by a Python session" in said
    assert "cannot resume the sweep" in " ".join(said.split())
    with pytest.raises(InputError, match=r"call stitchgrid\.compare again"):
        sg.resume("mine", tmp_path / "grid", address="none")
    elsewhere = sg.open(tmp_path / "grid")["mine"]
    assert elsewhere.matrix("a", "b", "cka").values.shape == (2, 2)
    with pytest.raises(InputError, match="cannot resume the sweep"):
        elsewhere.stitch("a", "layer1.0", "b", "layer1.0", "direct")


def test_a_folder_of_its_own_goes_with_the_run():
    run = compare([net()], pixels())
    folder = Path(run._store.uri)
    assert folder.is_dir()
    assert run.answer()
    assert "<html" in run.atlas().html
    del run
    gc.collect()
    assert not folder.exists()


def test_a_failed_comparison_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(JobFileError):
        compare([nn.Linear(3, 3)], pixels())
    assert not list(tmp_path.glob("stitchgrid-*/compare*"))


def test_live_networks_are_cut_once_however_large_they_are(monkeypatch):
    cut = []
    here = networks.cut_network_on
    noting = lambda *given, **how: cut.append(how["name"]) or here(*given, **how)  # noqa: E731
    monkeypatch.setattr(networks, "cut_network_on", noting)
    monkeypatch.setattr("stitchgrid.models.held.MOST_PARAMETERS", 0)
    run = compare({"a": net(), "b": net(1)}, pixels(), labels(), matchers=["direct"])
    assert cut == ["a", "b"]
    run.stitch("a", "layer1.0", "b", "layer2.0", "direct")
    assert cut == ["a", "b", "a", "b"]  # what lives here may have changed since


def test_passes_that_are_kept_change_no_value(monkeypatch):
    modules, how = {"a": net(), "b": net(1)}, {"matchers": ["cka", "pwcca", "direct"], "batch_size": 10}
    wanted = values(compare(modules, pixels(), labels(), **how))
    monkeypatch.setattr("stitchgrid.engine.kept_passes.MOST_BYTES", 0)
    assert values(compare(modules, pixels(), labels(), **how)) == wanted
    monkeypatch.setattr("stitchgrid.engine.kept_passes.MOST_BYTES", 100_000)  # room for some of the batches
    assert values(compare(modules, pixels(), labels(), **how)) == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_modules_on_a_gpu_stay_there_and_give_what_they_give_on_a_cpu():
    modules = {"a": net().cuda(), "b": net(1).cuda()}
    places = [value.data_ptr() for module in modules.values() for value in module.state_dict().values()]
    run = compare(modules, pixels(), labels(), matchers=["cka", "direct"])
    assert set(run.results()["device"]) == {"cuda"}
    assert places == [value.data_ptr() for module in modules.values() for value in module.state_dict().values()]
    wanted = compare({"a": net(), "b": net(1)}, pixels(), labels(), matchers=["cka"])
    assert run.matrix("a", "b", "cka").values == pytest.approx(wanted.matrix("a", "b", "cka").values, abs=1e-4)
    stitch = run.stitch("a", "layer1.0", "b", "layer2.0", "direct")
    assert stitch.network(torch.rand(4, 3, 8, 8, device="cuda")).shape == (4, 10)


# Stitches


@pytest.mark.parametrize("one", [{"kind": "direct"}, {"kind": "task_loss", "epochs": 1}], ids=["direct", "task_loss"])
def test_a_stitch_is_the_map_that_was_measured(one, tmp_path):
    modules = {"a": net(), "b": net(1)}
    run = compare(modules, pixels(), labels(), matchers=["cka", one])
    kind = one["kind"]
    stitch = run.stitch("a", "layer1.0", "b", "layer2.0", kind)
    where = "source_layer = 'layer1.0' and target_layer = 'layer2.0' and source_model = 'a'"
    rows = run.sql(f"select metric, value from results where matcher = $kind and {where}", kind=kind)
    wanted = dict(zip(rows["metric"], rows["value"], strict=True))
    images = run._live.images.eval
    x, y = images.batch(0, images.num).float() / 255, images.labels
    answers = stitch.network(x).argmax(1)
    assert (answers == y).float().mean().item() == pytest.approx(wanted["accuracy"], abs=1e-6)
    own = modules["b"].eval()(x).argmax(1)
    assert (answers == own).float().mean().item() == pytest.approx(wanted["agreement"], abs=1e-6)
    assert stitch.weight.shape == (4, 8)
    assert stitch.bias.shape == (8,)
    stitch.save(tmp_path / "s.safetensors")
    again = safetensors.torch.load_file(tmp_path / "s.safetensors")
    assert np.array_equal(again["weight"].numpy(), stitch.weight)
    assert np.array_equal(again["bias"].numpy(), stitch.bias)
    assert "layer1.0" in repr(stitch)
    with pytest.raises(InputError, match="cannot write"):
        stitch.save(tmp_path / "none" / "s.safetensors")


def test_a_map_takes_activations_to_the_targets_shape():
    run = compare({"a": net(), "b": net(1)}, pixels(), matchers=["direct"])
    stitch = run.stitch("a", "layer1.0", "b", "layer2.0", "direct")
    a = torch.randn(5, 4, 8, 8)
    assert repr(stitch.map) == "StitchMap(layer1.0 (4, 8, 8) -> layer2.0 (8, 4, 4), features=4 -> 8)"
    came = stitch.map(a)
    assert came.shape == (5, 8, 4, 4)
    rows = nn.functional.interpolate(a.double(), size=(4, 4), mode="bilinear").movedim(1, -1).numpy()
    assert came.movedim(1, -1).detach().numpy() == pytest.approx(rows @ stitch.weight + stitch.bias, abs=1e-5)


def test_a_stitch_of_a_launched_sweep_needs_nothing_but_its_store(tmp_path):
    text = '[[matchers]]\nkind = "ridge"\n[[matchers]]\nkind = "task_loss"\nepochs = 1\nseeds = [0, 1]\n'
    run = sg.launch(job(tmp_path, text), tmp_path / "grid", address="none")
    assert run.stitch("a", "layer1.0", "b", "layer1.0", "ridge").weight.shape == (4, 4)
    first, second = (run.stitch("a", "layer1.0", "b", "layer1.0", "task_loss", seed=seed).weight for seed in (0, 1))
    assert not np.allclose(first, second)
    for given, told in [
        (("a", "layer1.0", "b", "layer1.0", "task_loss"), "choose one task_loss by `seed` and parameters"),
        (("a", "layer1.0", "b", "layer1.0", "cka"), "'cka' is not a stitcher"),
        (("a", "layer1.0", "b", "layer1.0", "direct"), "does not have it"),
        (("a", "layer9", "b", "layer1.0", "ridge"), "network 'a' has no layer 'layer9' in this sweep"),
        (("c", "layer1.0", "b", "layer1.0", "ridge"), "has no network 'c'"),
        (("a", "layer1.0", "a", "layer1.0", "ridge"), "does not compare 'a' with 'a'"),
    ]:
        with pytest.raises(InputError, match=told):
            run.stitch(*given)
    np.savez(tmp_path / "fit.npz", images=pixels(seed=9).numpy(), labels=labels().numpy())
    with pytest.raises(InputError, match="have changed since its values were computed"):
        run.stitch("a", "layer1.0", "b", "layer1.0", "ridge")


def test_a_comparison_loads_no_ray():
    import subprocess

    code = (
        "import sys, torch, stitchgrid as sg; from torch import nn\n"
        "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
        "sg.compare([net], torch.rand(16, 3, 8, 8), layers='all', progress=False); print('ray' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


# Untrained twins


def test_networks_are_held_against_untrained_twins_of_their_own():
    networks = {"a": net(0), "b": net(1)}
    before = {name: state_digest(module) for name, module in networks.items()}
    run = compare(networks, pixels(), labels(), untrained=True)
    assert run.networks["model"] == ["a", "b", "a@untrained", "b@untrained"]
    assert run.networks["is_untrained"] == [False, False, True, True]
    assert {name: state_digest(module) for name, module in networks.items()} == before

    found = values(run)
    twin = net(7)
    torch.manual_seed(0)
    twin.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    by_hand = values(
        compare({"a": networks["a"], "b": networks["b"], "t": twin}, pixels(), labels(), pairs=[("t", "b")])
    )
    key = ("layer1.0", "b", "layer1.0", "cka", "cka")
    assert found["a@untrained", *key] != found["a", *key]
    norms = [one for one in twin.modules() if isinstance(one, nn.BatchNorm2d)]
    assert norms  # their statistics are those of images in a twin, so that the hand-made one comes near, no more
    assert abs(found["a@untrained", *key] - by_hand["t", *key]) < 0.2
    assert all(answer["untrained_value"] is not None for answer in run.sql("select untrained_value from answers"))


def test_twins_without_batch_norms_are_exactly_what_is_drawn():
    def plain(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    run = sg.compare({"f": plain(3), "g": plain(4)}, pixels(), layers="all", untrained=True, progress=False)
    by_hand = sg.compare({"t": plain(0), "g": plain(4)}, pixels(), layers="all", pairs=[("t", "g")], progress=False)
    found, wanted = values(run), values(by_hand)
    for (_, *key), value in wanted.items():
        assert found["f@untrained", *key] == pytest.approx(value, abs=1e-9)


def test_a_twin_that_is_given_is_taken():
    networks, twin = {"a": net(0), "b": net(1)}, net(5)
    before = state_digest(twin)
    run = compare(networks, pixels(), labels(), untrained={"a": twin})
    assert set(run.networks["model"]) == {"a", "b", "a@untrained", "b@untrained"}
    assert state_digest(twin) == before
    other = compare(networks, pixels(), labels(), untrained={"a": net(6)})
    key = ("a@untrained", "layer1.0", "b", "layer1.0", "cka", "cka")
    assert values(run)[key] != values(other)[key]


def test_what_nobody_draws_is_refused_and_the_way_out_works():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(1))
            self.act, self.fc = nn.ReLU(), nn.Linear(4, 10)

        def forward(self, x):
            return self.fc((self.scale * self.act(self.body(x))).mean((2, 3)))

    how = {"layers": "all", "progress": False}
    told = r"scale belongs to Scaled, which has no reset_parameters .* give an untrained module yourself: untrained="
    with pytest.raises(StitchgridError, match=told):
        sg.compare({"s": Scaled()}, pixels(), untrained=True, **how)
    run = sg.compare({"s": Scaled()}, pixels(), untrained={"s": Scaled()}, **how)
    assert "s@untrained" in run.networks["model"]
    with pytest.raises(InputError, match="`untrained` names 't', which is not a network"):
        sg.compare({"s": Scaled()}, pixels(), untrained={"t": Scaled()}, **how)
    with pytest.raises(InputError, match="the untrained twin of 's' is"):
        sg.compare({"s": Scaled()}, pixels(), untrained={"s": Scaled}, **how)


def test_cells_that_diverged_are_told(capfd):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    matcher = {"kind": "task_loss", "epochs": 1, "lr": 1e3}
    sg.compare({"net": net}, torch.rand(64, 3, 8, 8), torch.arange(64) % 5, layers=["1"], matchers=[matcher])
    assert "1 cells of task_loss diverged" in " ".join(capfd.readouterr().err.split())
