"""Which weights a checkpoint gives: the only ones that fit, else those that the job names; never some of several."""

import zipfile
from collections import OrderedDict

import pytest
import torch
from helpers_models import spec
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.models.build import build_network
from stitchgrid.models.weights import load_checkpoint, load_weights, state_digest


def network(width=5, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, width, 3), norm=nn.BatchNorm2d(width), flat=nn.Flatten(), fc=nn.Linear(width, 2)
            )
        )


RAW, OTHER = network().state_dict(), network(seed=1).state_dict()
PARAMETERS = {name: value for name, value in OTHER.items() if "running" not in name and "num_" not in name}


def under(prefix, state, **more):
    return {f"{prefix}{name}": value for name, value in state.items()} | more


def moments(state):
    entries = {n: {"step": 3, "exp_avg": value * 0, "exp_avg_sq": value} for n, value in enumerate(state.values())}
    return {"state": entries, "param_groups": [{"lr": 0.1, "params": list(entries)}]}


def inside(name, part, state):
    """Return the state with a wrapper around one of the modules."""
    return {key.replace(f"{name}.", f"{name}.{part}.", 1): value for key, value in state.items()}


FITTING = {
    "Lightning": {"state_dict": under("model.", RAW), "epoch": 3, "optimizer_states": [moments(RAW)], "loops": {}},
    "Lightning with a loss": {"state_dict": under("net.", RAW) | {"loss.weight": torch.ones(2)}},
    "Lightning of a compiled network": {"state_dict": under("model._orig_mod.", RAW)},
    "torch.compile": under("_orig_mod.", RAW),
    "torch.compile of a part": inside("conv", "_orig_mod", RAW),
    "DataParallel of a part": {"model": under("_orig_mod.", inside("fc", "module", RAW))},
    "DataParallel": {"net": under("module.", RAW), "acc": 91.2, "epoch": 3},
    "DistributedDataParallel of a compiled network": under("module._orig_mod.", RAW),
    "averaged": under("module.", RAW, n_averaged=torch.tensor(7)),
    "model_state_dict": {"model_state_dict": RAW, "optimizer_state_dict": moments(RAW), "loss": torch.tensor(0.1)},
    "DINO": {"teacher": under("backbone.", RAW) | {"head.mlp.0.weight": torch.ones(3, 3)}, "args": {"lr": 0.1}},
    "MoCo": {"state_dict": under("module.encoder_q.", RAW, **{"module.queue": torch.ones(4, 9)})},
    "nested": {"a": {"b": {"c": under("x.y.", RAW)}}},
    "twice the same": {"state_dict": RAW, "model": {name: value.clone() for name, value in RAW.items()}},
    "counters left out": {"model": {name: value for name, value in RAW.items() if "num_" not in name}},
}


def load(tmp_path, content, module=None, **how):
    torch.save(content, tmp_path / "w.pt")
    module = module or network(seed=9)
    load_weights(module, tmp_path / "w.pt", **how)
    return state_digest(module)


@pytest.mark.parametrize("wrapping", FITTING)
def test_the_only_reading_that_fits_is_loaded(tmp_path, wrapping):
    assert load(tmp_path, FITTING[wrapping]) == state_digest(RAW)


SEVERAL = {  # what is in the file, and how each of its sets of weights is named
    "timm": ({"state_dict": RAW, "state_dict_ema": OTHER}, {"state_dict": RAW, "state_dict_ema": OTHER}),
    "model_ema": (
        {"model": RAW, "model_ema": {"module": OTHER, "updates": 3}},
        {"model": RAW, "model_ema.module": OTHER},
    ),
    "student and teacher": (
        {"student": under("module.backbone.", RAW), "teacher": under("backbone.", OTHER)},
        {"student": RAW, "teacher": OTHER},
    ),
    "a class of one's own": (
        {"net": RAW, "ema": {"decay": 0.9, "shadow": PARAMETERS}},
        {"net": RAW, "ema.shadow": None},
    ),
    "torch_ema": (
        {"net": RAW, "ema": {"decay": 0.9, "shadow_params": list(PARAMETERS.values())}},
        {"net": RAW, "shadow_params": None},
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_raw_and_averaged_weights_are_asked_for(tmp_path, kind):
    content, named = SEVERAL[kind]
    with pytest.raises(InputError, match=r"w.pt holds 2 sets of weights that fit Sequential and differ") as caught:
        load(tmp_path, content, word="runs/w.pt")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    keys = {one.split('key = "')[1].split('"')[0] for one in lines}
    assert len(keys) == len(lines) == 2
    assert all(line.startswith('weights = { file = "runs/w.pt", key = "') for line in lines)
    averaged = {**RAW, **PARAMETERS}  # averages of parameters alone go with the statistics of the raw network
    assert {load(tmp_path, content, key=key) for key in keys} == {
        state_digest(state or averaged) for state in named.values()
    }
    assert [load(tmp_path, content, key=key) for key in named] == [
        state_digest(state or averaged) for state in named.values()
    ]


def test_readings_of_one_dictionary_are_told_apart_by_what_is_stripped(tmp_path):
    content = {"state_dict": under("module.encoder_q.", RAW) | under("module.encoder_k.", OTHER)}
    with pytest.raises(InputError, match="2 sets of weights") as caught:
        load(tmp_path, content)
    assert 'key = "state_dict", strip = "module.encoder_k."' in str(caught.value)
    assert load(tmp_path, content, key="state_dict", strip="module.encoder_k.") == state_digest(OTHER)
    assert load(tmp_path, content, strip="module.encoder_q") == state_digest(RAW)


def test_the_file_itself_is_named_by_an_empty_key(tmp_path):
    content = {**RAW, "ema": OTHER}
    with pytest.raises(InputError, match="2 sets of weights") as caught:
        load(tmp_path, content)
    assert 'key = ""' in str(caught.value)
    assert load(tmp_path, content, key="") == state_digest(RAW)
    assert load(tmp_path, content, key="ema") == state_digest(OTHER)


def test_a_head_that_the_network_lacks_is_left_out_only_where_the_job_says_so(tmp_path):
    content = {"model": {**RAW, "predictor.0.weight": torch.ones(2, 2)}}
    with pytest.raises(
        InputError,
        match=r'1 unexpected: predictor.0.weight under the key \'model\'.*To load it without predictor.*key = "model"',
    ):
        load(tmp_path, content)
    assert load(tmp_path, content, key="model") == state_digest(RAW)
    assert load(tmp_path, content, strip="") == state_digest(RAW)


@pytest.mark.parametrize("how", [{}, {"key": "model"}])
def test_layers_of_a_deeper_network_are_never_left_out(tmp_path, how):
    deeper = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), fc=nn.Linear(2, 2)))
    shallow = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(2, 2)), fc=nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"2 unexpected: body\.1\.weight, body\.1\.bias"):
        load(tmp_path, {"model": deeper.state_dict()}, shallow, **how)


def test_the_nearest_readings_are_told_where_none_fits(tmp_path):
    content = {
        "state_dict": under("model.", {k: v for k, v in RAW.items() if k != "fc.bias"}),
        "ema": {"x": torch.ones(1)},
    }
    with pytest.raises(
        InputError,
        match=r"w.pt belongs to another architecture than Sequential: of 8 tensors 1 missing: fc.bias under the key "
        r"'state_dict' without 'model.'\. Check `architecture` and `args`",
    ):
        load(tmp_path, content)
    with pytest.raises(InputError, match=r"6 of another shape: conv.weight \(5, 3, 3, 3\) where the network has \(6,"):
        load(
            tmp_path, {"state_dict": {"conv.weight": RAW["conv.weight"], **under("", RAW)}}, network(width=6).eval()[:2]
        )


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"w.pt has no tensors under the key 'emma'; did you mean 'ema'"):
        load(tmp_path, {"model": RAW, "ema": OTHER}, key="emma")
    with pytest.raises(InputError, match=r"w.pt has no tensor whose name begins with 'net'; leave `strip` out"):
        load(tmp_path, {"model": RAW}, strip="net")


def test_tensors_with_two_names_may_be_stored_once(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    state = dict(module.state_dict())
    expected = state_digest(module)
    del state["1.weight"]
    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    again[1].weight = again[0].weight
    assert load(tmp_path, state, again) == expected


def test_weights_of_another_width_are_told_and_not_what_the_optimiser_kept(tmp_path):
    wide, deep = nn.Conv2d(3, 7, 3), nn.Linear(7, 2)
    state = {f"conv.{name}": one for name, one in wide.state_dict().items()}
    state |= {f"fc.{name}": one for name, one in deep.state_dict().items()}
    state |= {f"more.{k}.weight": torch.zeros(2) for k in range(40)}
    kept = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer": kept}, tmp_path / "w.pt")
    source = (
        "from torch import nn\nfrom collections import OrderedDict\ndef net():\n    return nn.Sequential(OrderedDict("
    )
    (tmp_path / "net.py").write_text(source + "conv=nn.Conv2d(3, 5, 3), flat=nn.Flatten(), fc=nn.Linear(5, 2)))\n")
    with pytest.raises(InputError) as told:
        build_network(spec("net.py:net", base=tmp_path, weights="w.pt"))
    first = str(told.value).partition("Also read")[0]
    assert "conv.weight (7, 3, 3, 3) where the network has (5, 3, 3, 3)" in first
    assert "under the key 'model_state_dict'" in first
    assert "exp_avg" not in first


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.bias", float("nan"), r"fc.bias \(NaN in 1 of 2 values\)"),
        ("norm.running_var", float("nan"), r"norm.running_var \(NaN in 1 of 5 values\)"),
        ("conv.weight", float("inf"), r"conv.weight \(infinity in 1 of 135 values\)"),
        ("fc.weight", -float("inf"), r"fc.weight \(infinity in 1 of 10 values\)"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name, value, message):
    source = (
        "from collections import OrderedDict\nfrom torch import nn\ndef net():\n    return nn.Sequential(OrderedDict("
    )
    source += "conv=nn.Conv2d(3, 5, 3), norm=nn.BatchNorm2d(5), flat=nn.Flatten(), fc=nn.Linear(5, 2)))\n"
    (tmp_path / "net.py").write_text(source)
    state = {key: tensor.clone() for key, tensor in RAW.items()}
    state[name].view(-1)[0] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"weights 'w.pt' is not finite: {message}; take a checkpoint of an"):
        build_network(spec("net.py:net", base=tmp_path, weights="w.pt"))


def test_a_mask_may_hold_infinities(tmp_path):
    source = "import torch\nfrom torch import nn\ndef net():\n    made = nn.Linear(2, 2)\n"
    source += "    made.register_buffer('mask', torch.full((2,), -float('inf')))\n    return made\n"
    (tmp_path / "net.py").write_text(source)
    assert build_network(spec("net.py:net", base=tmp_path)).mask.isinf().all()


def nested(depth):
    content = {"weight": torch.ones(1)}
    for _ in range(depth):
        content = {"model": content}
    return content


def test_dictionaries_within_dictionaries_end(tmp_path):
    with pytest.raises(InputError, match="holds entries 'model'"):
        load(tmp_path, nested(300))
    circle = {"model": {}}
    circle["model"]["model"] = circle
    with pytest.raises(InputError, match="holds entries 'model'"):
        load(tmp_path, circle)


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused_unread(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(1_000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
        with bomb.open("archive/data/1", "w") as file:
            for _ in range(120):
                file.write(bytes(1_000_000))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(
        InputError,
        match=r"bomb.pt is an archive of 0.1 MB that unpacks to 120 MB, more than 20 times .* `unpacking` under",
    ):
        load_checkpoint(tmp_path / "bomb.pt")


# What no network has


@pytest.mark.parametrize(
    "state",
    [
        {"0.weight": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "0.bias": torch.zeros(4)},
        {f"{'m.' * 100_000}0.weight": torch.zeros(4, 4)},
        {f"{'m' * 100_000}.0.weight": torch.zeros(4, 4)},
    ],
    ids=["nested", "parts", "letters"],
)
def test_tensors_that_no_network_has_are_left_out_and_cost_no_time(tmp_path, state):
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt"):
        load_weights(nn.Sequential(nn.Linear(4, 4)), tmp_path / "odd.pt")


def test_a_file_that_cannot_be_read_is_told_by_its_name():
    with pytest.raises(
        InputError, match=r"/proc/self/mem \(0 bytes\) is damaged, truncated or no checkpoint \(OSError"
    ):
        load_weights(nn.Linear(1, 1), "/proc/self/mem")
