import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import Job, parse_job
from stitchgrid.matchers.metrics import OOD_METRICS
from stitchgrid.matchers.registry import MATCHERS, default_metrics
from stitchgrid.records import DataSpec, Interface, Preprocess, Recipe, Tokens

BASE = Path("/jobs")
STITCHER_METRICS = (
    "accuracy", "loss", "relative_accuracy", "penalty", "agreement", "residual", "r2", "variance_ratio", "negative_mass"
)  # fmt: skip
RESNET = {"name": "resnet", "architecture": "stitchgrid:resnet20", "weights": "random", "seeds": [0, 1]}
VIT = {"name": "vit", "architecture": "stitchgrid:vit_tiny", "weights": "random"}


def table(**changes: Any) -> dict[str, Any]:
    small = {
        "name": "small",
        "data": {"dataset": "digits"},
        "models": [RESNET, VIT],
        "matchers": [{"kind": "direct"}, {"kind": "task_loss"}],
    }
    return copy.deepcopy({**small, **changes})


def parse(**changes: Any) -> Job:
    return parse_job(table(**changes), base=BASE, title="small.toml")


def problems_of(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(JobFileError) as caught:
        parse(**changes)
    return caught.value.problems


def test_of_very_many_problems_the_first_are_shown():
    with pytest.raises(JobFileError) as caught:
        parse(**{f"key{number}": 1 for number in range(5_000)})
    assert len(caught.value.problems) == 5_000
    assert str(caught.value).count("\n") == 201
    assert str(caught.value).endswith("and 4,800 more")


# ---- what a job asks for


def test_a_list_of_samples_is_a_matcher_for_each_number_of_images():
    asked = [{"kind": "direct", "samples": [50, 100, "all"], "rank": ["full", 4]}, {"kind": "cka", "samples": [9]}]
    job = parse(matchers=asked)
    found = [(spec.kind, spec.samples, spec.rank) for spec in job.matcher_specs()]
    assert found == [("direct", n, rank) for n in (50, 100, None) for rank in (None, 4)] + [("cka", 9, None)]
    assert parse_job(job.to_dict(), title="again").matcher_specs() == job.matcher_specs()
    for wrong in ([], [3, 3], [3, True]):
        assert any("samples" in problem for problem in problems_of(matchers=[{"kind": "direct", "samples": wrong}]))
    [problem] = problems_of(matchers=[{"kind": "direct", "samples": [5, 5]}])
    assert problem == "matchers[0].samples: a list of different numbers of images is needed, got [5, 5]"


def test_defaults_are_those_of_the_contract():
    job = parse()
    assert (job.seed, job.numerics.device, job.numerics.precision, job.numerics.batch_size) == (0, "auto", "fp32", 256)
    assert job.data_spec() == DataSpec(dataset="digits")
    vit = job.network_specs()[2]
    assert (vit.name, vit.weights, vit.seed, vit.layers, vit.preprocess, vit.recipe) == (
        "vit", "random", 0, ("blocks",), None, None,
    )  # fmt: skip
    assert vit.base == str(BASE)
    direct, task_loss = job.matcher_specs()
    assert (direct.seed, direct.samples, direct.metrics) == (None, None, STITCHER_METRICS)
    assert direct.values == {"rcond": 1e-12, "resize": "bilinear", "cls": "copy", "pool": "mean"}
    assert task_loss.seed == 0
    assert task_loss.values["epochs"] == 30
    assert task_loss.revision == MATCHERS["task_loss"].revision


def test_what_a_job_says_of_its_images_becomes_their_record():
    data = {"dataset": "imagefolder", "root": "a", "range": [0, 4095], "classes": ["b", "a"]}
    job = parse(data=data)
    assert job.data_spec() == DataSpec(dataset="imagefolder", root="/jobs/a", range=(0, 4095), classes=("b", "a"))
    assert parse_job(job.to_dict(), title="") == job
    own = {"dataset": "sub/own.py:make", "class_order": "natural", "args": {"b": 1, "a": [2]}}
    own["outliers"] = {**own, "split": "x", "range": [0.0, 1.0]}
    del own["outliers"]["class_order"]
    job = parse(data=own, matchers=[{"kind": "direct"}], diagnostics={"ood": ["energy"]})
    record = job.data_spec()
    assert (record.dataset, record.root, record.class_order) == ("/jobs/sub/own.py:make", None, "natural")
    assert record.args == '{"a":[2],"b":1}'
    outliers = job.outliers_spec()
    assert (outliers.dataset, outliers.args, outliers.range) == (record.dataset, record.args, (0, 1))
    assert parse_job(job.to_dict(), title="") == job


def test_a_job_that_says_nothing_more_of_its_images_is_stored_as_it_always_was():
    # Another form would make every sweep of an earlier version a new revision.
    assert parse().to_dict()["data"] == {
        "dataset": "digits",
        "fit": {"split": "train"},
        "eval": {"split": "test"},
        "labels": "classes",
        "on_bad_image": "error",
        "download": False,
    }


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"range": [3, 3]}, "data.range: [LOW, HIGH] are the values of black and white, LOW below HIGH, got"),
        ({"range": [3]}, "data.range[1]: missing, but needed"),
        ({"classes": ["a", "b", "a"]}, "data.classes: a given more than once"),
        ({"classes": ["a"], "class_order": "natural"}, "data.class_order: `classes` gives the order already; leave"),
        ({"class_order": "natrual"}, "data.class_order: 'natrual' is unknown; did you mean 'natural'?"),
        ({"args": {"a": 1}}, "data.args: only FILE.py:function takes arguments, imagefolder does not; leave it out"),
        ({"dataset": "arrys"}, "data.dataset: 'arrys' is unknown; did you mean 'arrays'?"),
        ({"dataset": "own.py"}, "data.dataset: 'own.py' is unknown; known: "),
        ({"dataset": "arrays", "root": None}, "data.root: missing, but needed: where the images of arrays are"),
        ({"outliers": {"dataset": "arrays"}}, "data.outliers.root: missing, but needed: where the images of"),
    ],
)  # fmt: skip
def test_what_a_job_says_of_its_images_is_checked(data, problem):
    table = {"dataset": "imagefolder", "root": "a", **data}
    found = problems_of(data={key: value for key, value in table.items() if value is not None})
    assert any(one.startswith(problem) for one in found), found


def test_diagnostics_add_their_metrics_to_every_stitcher_and_change_nothing_else():
    matchers = [{"kind": "direct", "metrics": ["residual"]}, {"kind": "task_loss"}, {"kind": "cka"}]
    before, after = parse(matchers=matchers), parse(matchers=matchers, diagnostics={"ood": ["mahalanobis"]})
    added = OOD_METRICS["mahalanobis"]
    assert [spec.metrics for spec in after.matcher_specs()] == [
        ("residual", *added), (*STITCHER_METRICS, *added), ("cka",)
    ]  # fmt: skip
    assert [replace(spec, metrics=()) for spec in after.matcher_specs()] == [
        replace(spec, metrics=()) for spec in before.matcher_specs()
    ]
    assert "diagnostics" not in before.to_dict()
    assert parse_job(after.to_dict(), title="") == after


def test_a_matcher_may_ask_for_a_diagnostic_by_itself():
    (spec,) = parse(matchers=[{"kind": "direct", "metrics": ["ood_mahalanobis_auroc", "r2"]}]).matcher_specs()
    assert spec.metrics == ("r2", "ood_mahalanobis_auroc")
    assert default_metrics("direct") == STITCHER_METRICS


def test_seeds_of_a_model_make_one_network_each():
    model = {**RESNET, "weights": "runs/{seed}/{seed}.pt", "args": {"width": 4, "depth": 8}, "seeds": [3, 1]}
    specs = parse(models=[model]).network_specs()
    assert [(spec.name, spec.entry, spec.seed, spec.weights) for spec in specs] == [
        ("resnet/3", "resnet", 3, "runs/3/3.pt"),
        ("resnet/1", "resnet", 1, "runs/1/1.pt"),
    ]
    assert specs[0].args == '{"depth":8,"width":4}'


def test_one_seed_fills_the_weights_and_keeps_the_name():
    [spec] = parse(models=[{**VIT, "seed": 7, "weights": "vit-{seed}.pt"}]).network_specs()
    assert (spec.name, spec.seed, spec.weights) == ("vit", 7, "vit-7.pt")


def test_one_set_of_weights_of_a_checkpoint_is_named():
    weights = {"file": "runs/{seed}.ckpt", "key": "ema", "strip": "model."}
    job = parse(models=[{**RESNET, "weights": weights}])
    assert [(one.weights, one.weights_key, one.weights_strip) for one in job.network_specs()] == [
        ("runs/0.ckpt", "ema", "model."),
        ("runs/1.ckpt", "ema", "model."),
    ]
    assert parse_job(json.loads(json.dumps(job.to_dict())), title="stored") == job
    [spec] = parse(models=[{**VIT, "weights": {"file": "random"}}]).network_specs()
    assert (spec.weights, spec.weights_key, spec.weights_strip) == ("./random", None, None)  # a file of that name


def test_variables_are_expanded_in_the_file_of_a_checkpoint(monkeypatch):
    monkeypatch.setenv("RUNS", "/runs")
    [spec] = parse(models=[{**VIT, "weights": {"file": "${RUNS}/a.pt"}}]).network_specs()
    assert spec.weights == "/runs/a.pt"


def test_variables_and_homes_are_expanded_wherever_a_job_has_a_path(monkeypatch):
    monkeypatch.setenv("RUNS", "/runs")
    monkeypatch.setenv("HOME", "/home/me")
    adapted = {**VIT, "weights": {"file": "pretrained", "adapter": "~/lora"}}
    [spec] = parse(models=[adapted]).network_specs()
    assert spec.weights_adapter == "/home/me/lora"
    listed = parse(data={"dataset": "list", "root": "${RUNS}/l.csv", "folder": "${RUNS}/images"}).data_spec()
    assert (listed.root, listed.folder) == ("/runs/l.csv", "/runs/images")
    own = parse(data={"dataset": "${RUNS}/mine.py:make", "outliers": {"dataset": "~/others.py:make"}})
    assert own.data_spec().dataset == "/runs/mine.py:make"
    assert own.data.outliers.dataset == "/home/me/others.py:make"


def test_a_job_that_version_0_1_0_stored_is_read():
    stored = {
        "base": "/jobs", "name": "small", "seed": 0, "data": {"dataset": "digits", "fit": {"split": "train"}, "eval":
        {"split": "test"}, "labels": "classes", "on_bad_image": "error", "download": False}, "numerics": {"device":
        "auto", "precision": "fp32", "batch_size": 256, "compile": False}, "models": [{"name": "a", "architecture":
        "stitchgrid:tiny10", "args": {}, "weights": "random", "layers": ["blocks"]}, {"name": "b", "architecture":
        "stitchgrid:tiny10", "args": {}, "weights": {"train": "r"}, "seeds": [0, 1], "layers": ["blocks"]}],
        "recipes": {"r": {"epochs": 1, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0005, "batch_size": 128,
        "schedule": "cosine", "augment": "none"}}, "grid": {"pairs": "all"}, "matchers": [{"kind": "cka", "centering":
        "double", "metrics": ["cka"]}]
    }  # fmt: skip
    stored["matchers"] = parse(matchers=[{"kind": "cka"}]).to_dict()["matchers"]
    assert [spec.weights for spec in parse_job(stored, title="stored").network_specs()] == ["random", "", ""]


def test_seeds_of_a_matcher_make_one_spec_each():
    specs = parse(matchers=[{"kind": "task_loss", "seeds": [2, 0], "samples": 50, "epochs": 3}]).matcher_specs()
    assert [(spec.seed, spec.samples, spec.values["epochs"]) for spec in specs] == [(2, 50, 3), (0, 50, 3)]
    assert specs[0].params == specs[1].params


def test_parameters_are_canonical_whether_given_or_left_out():
    given = {"kind": "task_loss", "epochs": 30, "lr": 0.001, "augment": "none"}
    assert parse(matchers=[given]).matcher_specs() == parse(matchers=[{"kind": "task_loss"}]).matcher_specs()
    whole = {"kind": "task_loss", "lr": 1}
    assert parse(matchers=[whole]).matcher_specs()[0].values["lr"] == 1.0
    assert '"lr":1.0' in parse(matchers=[whole]).matcher_specs()[0].params


def test_metrics_come_in_the_order_of_the_kind():
    [spec] = parse(matchers=[{"kind": "direct", "metrics": ["residual", "accuracy"]}]).matcher_specs()
    assert spec.metrics == ("accuracy", "residual")


def test_recipes_become_records_and_adaptive_optimizers_start_slower():
    models = [{**VIT, "weights": {"train": "slow"}}, {**RESNET, "weights": {"train": "plain"}}]
    recipes = {"slow": {"epochs": 2, "optimizer": "adamw"}, "plain": {"epochs": 3}}
    slow, plain, _ = parse(models=models, recipes=recipes).network_specs()
    assert slow.recipe == Recipe(epochs=2, optimizer="adamw", lr=1e-3)
    assert plain.recipe == Recipe(epochs=3)
    assert slow.weights == plain.weights == ""


def test_preprocessing_and_layers_are_passed_on():
    model = {**VIT, "layers": "all", "preprocess": {"resize": [9, 8], "crop": 8, "mean": [0, 0.5, 1], "std": [1, 1, 2]}}
    [spec] = parse(models=[model]).network_specs()
    assert spec.layers == ("all",)
    assert spec.preprocess == Preprocess(resize=(9, 8), crop=8, mean=(0.0, 0.5, 1.0), std=(1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("all", {(f, g) for f in range(3) for g in range(3)}),
        ("within", {(0, 0), (1, 1), (2, 2)}),
        ("across", {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}),
        ([["vit", "resnet"]], {(2, 0), (2, 1)}),
        ([["resnet", "resnet"]], {(0, 0), (0, 1), (1, 0), (1, 1)}),
        ([["resnet/1", "vit"], ["resnet", "vit"]], {(1, 2), (0, 2)}),
    ],
)
def test_pairs_are_ordered_and_each_comes_once(pairs, expected):
    found = parse(grid={"pairs": pairs}).pairs()
    assert set(found) == expected
    assert len(found) == len(expected)


def test_the_root_of_the_images_is_relative_to_the_job_file():
    data = {"dataset": "imagefolder", "root": "../images", "on_bad_image": "skip", "fit": {"samples": 3}}
    assert parse(data=data).data_spec() == DataSpec(
        dataset="imagefolder", root="/images", fit_samples=3, on_bad_image="skip"
    )


def test_environment_variables_are_filled_into_paths(monkeypatch):
    monkeypatch.setenv("IMAGES", "/mnt/images")
    job = parse(
        data={"dataset": "imagefolder", "root": "${IMAGES}/cifar"}, models=[{**VIT, "weights": "${IMAGES}/{seed}.pt"}]
    )
    assert job.data_spec().root == "/mnt/images/cifar"
    assert job.network_specs()[0].weights == "/mnt/images/0.pt"
    assert "${" not in json.dumps(job.to_dict())


def test_parsing_leaves_the_table_alone(monkeypatch):
    monkeypatch.setenv("IMAGES", "/mnt/images")
    given = table(data={"dataset": "imagefolder", "root": "${IMAGES}"})
    before = copy.deepcopy(given)
    parse_job(given, base=BASE, title="small.toml")
    assert given == before


def test_a_stored_job_is_the_same_job():
    job = parse(
        seed=3,
        data={"dataset": "CIFAR10", "root": "x", "download": True, "eval": {"split": "test", "samples": 9}},
        numerics={"precision": "bf16"},
        models=[
            {**RESNET, "weights": {"train": "r"}, "preprocess": {"crop": [7, 8], "std": [1, 2, 3]}},
            {**VIT, "args": {"a": [1, {"b": None}]}, "layers": ["x*", "y"], "seed": 4},
        ],
        recipes={"r": {"epochs": 1, "lr": 0.5}},
        grid={"pairs": [["vit", "resnet/0"]]},
        matchers=[{"kind": "task_loss", "seeds": [0, 5], "metrics": ["r2"]}, {"kind": "cka", "samples": 7}],
    )
    stored = json.loads(json.dumps(job.to_dict()))
    again = parse_job(stored, base=Path("/elsewhere"), title="stored")
    assert again == job
    assert again.base == BASE
    assert again.to_dict() == stored
    assert again.network_specs() == job.network_specs()


# ---- what is refused


PROBLEMS = [
    ({"sead": 1}, "sead: unknown key; did you mean 'seed'?"),
    ({"models": [{**RESNET, "name": "x" * 256}]}, "models[0].name: a name has at most 255 letters, got 256: 'xxx"),
    ({"name": "a b"}, "name: a name is made of letters, digits and . _ -"),
    ({"name": ".."}, "name: a name is made of"),
    ({"seed": -1}, "seed: should be greater than or equal to 0, got -1"),
    ({"seed": True}, "seed: should be a valid integer, got True"),
    ({"data": {"dataset": "CIFAR1"}}, "data.dataset: 'CIFAR1' is unknown; did you mean 'CIFAR10'?"),
    ({"data": {"dataset": "digits", "rot": ""}}, "data.rot: unknown key; did you mean 'root'?"),
    ({"data": {"dataset": "imagefolder"}}, "data.root: missing, but needed: where the images of imagefolder are"),
    ({"data": {}}, "data.dataset: missing, but needed"),
    (
        {"data": {"dataset": "digits", "fit": {"split": "trian"}}},
        "data.fit.split: digits has no split 'trian'; did you mean 'train'?",
    ),
    (
        {"data": {"dataset": "ImageNet", "root": "x"}},
        "data.eval.split: ImageNet has no split 'test'; known: train, val",
    ),
    ({"data": {"dataset": "digits", "fit": {"sample": 3}}}, "data.fit.sample: unknown key; did you mean 'samples'?"),
    (
        {"data": {"dataset": "digits", "eval": {"samples": 0}}},
        "data.eval.samples: should be greater than or equal to 1",
    ),
    ({"data": {"dataset": "digits", "download": True}}, "data.download: digits cannot be downloaded"),
    ({"data": 3}, "data: a table was expected, got 3"),
    (
        {"data": {"dataset": "digits", "on_bad_image": "skp"}},
        "data.on_bad_image: 'skp' is unknown; did you mean 'skip'?",
    ),
    ({"numerics": {"device": "gpu"}}, "numerics.device: 'gpu' is unknown; did you mean 'cpu'?"),
    ({"numerics": {"precison": "fp32"}}, "numerics.precison: unknown key; did you mean 'precision'?"),
    ({"numerics": {"batch_size": "3"}}, "numerics.batch_size: should be a valid integer, got '3'"),
    ({"models": []}, "models: at least one [[models]] is needed"),
    ({"models": {"name": "x"}}, "models: write each as [[models]]"),
    ({"models": [VIT, {**VIT}]}, "models[1].name: 'vit' is also the name of an earlier model"),
    ({"models": [{**VIT, "name": "a/b"}]}, "models[0].name: a name is made of"),
    ({"models": [RESNET, {**VIT, "layer": "x"}]}, "models[1].layer: unknown key; did you mean 'layers'?"),
    (
        {"models": [{**VIT, "architecture": "vit"}]},
        "models[0].architecture: 'vit' is no architecture; it is torchvision:NAME",
    ),
    ({"models": [{"name": "x", "weights": "random"}]}, "models[0].architecture: missing, but needed"),
    ({"models": [{**VIT, "weights": {"train": "R"}}]}, "models[0].weights: no [recipes.R]; known: none"),
    ({"models": [{**VIT, "weights": {"trian": "R"}}]}, "models[0].weights: a checkpoint, a torchvision weights name"),
    (
        {"models": [{key: value for key, value in VIT.items() if key != "weights"}]},
        "models[0].weights: missing, but needed: a checkpoint, a torchvision weights name, "
        '{ train = "RECIPE" }, or "random" for an untrained network',
    ),
    ({"models": [{**VIT, "weights": {"file": "a", "kee": "b"}}]}, "models[0].weights: unknown key 'kee'; did you mean"),
    (
        {"models": [{**VIT, "weights": {"file": "a", "key": 3}}]},
        "models[0].weights: `file`, `key`, `strip`, `adapter` are te",
    ),
    ({"models": [{**VIT, "weights": {"file": "a\n"}}]}, "models[0].weights: a path has no control characters"),
    ({"models": [{**VIT, "weights": {"file": "${UNSET_VARIABLE}/a"}}]}, "models[0].weights.file: environment variab"),
    (
        {"models": [{**RESNET, "weights": {"file": "a.pt", "key": "ema"}}]},
        "models[0].weights: 'a.pt' is the same for all `seeds`; put {seed}",
    ),
    ({"models": [{**VIT, "weights": 3}]}, "models[0].weights: a checkpoint, a torchvision weights name"),
    ({"models": [{**RESNET, "weights": "a.pt"}]}, "models[0].weights: 'a.pt' is the same for all `seeds`; put {seed}"),
    ({"models": [{**RESNET, "seed": 1}]}, "models[0].seed: give `seed` for one network or `seeds` for several"),
    ({"models": [{**RESNET, "seeds": [0, 0]}]}, "models[0].seeds: 0 given more than once"),
    ({"models": [{**RESNET, "seeds": []}]}, "models[0].seeds: should have at least 1 item"),
    (
        {"models": [{**VIT, "preprocess": {"crop": [1]}}]},
        "models[0].preprocess.crop: a number of pixels or [height, width]",
    ),
    (
        {"models": [{**VIT, "preprocess": {"cropp": 1}}]},
        "models[0].preprocess.cropp: unknown key; did you mean 'crop'?",
    ),
    ({"models": [{**VIT, "preprocess": {"mean": [0.5]}}]}, "models[0].preprocess.mean: three numbers are needed"),
    ({"models": [{**VIT, "preprocess": {"std": [1, 1, 0]}}]}, "models[0].preprocess.std: must be greater than 0"),
    (
        {"models": [{**VIT, "preprocess": {"channels": 1, "mean": [1, 1, 1]}}]},
        "models[0].preprocess.mean: one number is needed, for the one channel, got 3",
    ),
    (
        {"models": [{**VIT, "preprocess": {"channels": 0}}]},
        "models[0].preprocess.channels: 1 (luminance), 3 (red, green, blue), or as many as the images have, got 0",
    ),
    (
        {"models": [{**VIT, "preprocess": {"channels": 4, "mean": [1, 1, 1]}}]},
        "models[0].preprocess.mean: 4 numbers are needed, one per channel, got 3",
    ),
    (
        {"data": {"dataset": "digits", "channels": 4}},
        "data.channels: only arrays and FILE.py:function have arrays with channels of any number; leave it out",
    ),
    (
        {"data": {"dataset": "arrays", "root": "a", "channels": 0}},
        "data.channels: should be greater than or equal",
    ),
    ({"data": {"dataset": "arrays", "root": "a", "axes": "NHW"}}, "data.axes: 'NHW' is unknown; did you mean 'NHWC'?"),
    (
        {"data": {"dataset": "digits", "outliers": {"dataset": "digits", "axes": "NCHW"}}},
        "data.outliers.axes: only arrays and FILE.py:function",
    ),
    ({"models": [{**VIT, "output": True}]}, 'models[0].output: a key or attribute such as "logits", or a position'),
    ({"models": [{**VIT, "output": ["a"]}]}, 'models[0].output: a key or attribute such as "logits", or a position'),
    ({"models": [{**VIT, "inputs": [1]}]}, "models[0].inputs: should be an object, got [1]"),
    ({"models": [{**VIT, "tokens": {"prefix": 1}}]}, "models[0].tokens.grid: missing, but needed"),
    ({"models": [{**VIT, "tokens": {"grid": [4]}}]}, "models[0].tokens.grid"),
    ({"models": [{**VIT, "tokens": {"prefix": -1, "grid": [4, 4]}}]}, "models[0].tokens.prefix: should be greater"),
    (
        {"models": [{**VIT, "tokens": {"grid": [4, 4], "prefixes": 1}}]},
        "models[0].tokens.prefixes: unknown key; did you mean 'prefix'?",
    ),
    (
        {"models": [{**VIT, "weights": "${UNSET_VARIABLE}/a"}]},
        "models[0].weights: environment variable UNSET_VARIABLE is not set",
    ),
    (
        {"data": {"dataset": "imagefolder", "root": "${UNSET_VARIABLE}"}},
        "data.root: environment variable UNSET_VARIABLE",
    ),
    ({"recipes": {"R": {"epochs": 3, "epoch": 3}}}, "recipes.R.epoch: unknown key; did you mean 'epochs'?"),
    ({"recipes": {"R": {"epochs": 3, "lr": 0}}}, "recipes.R.lr: should be greater than 0, got 0"),
    (
        {"recipes": {"R": {"epochs": 3, "optimizer": "adan"}}},
        "recipes.R.optimizer: 'adan' is unknown; did you mean 'adam'?",
    ),
    ({"recipes": {"a b": {"epochs": 3}}}, "recipes.a b: a name is made of"),
    ({"recipes": 3}, "recipes: write each as [recipes.NAME]"),
    (
        {"diagnostics": {"ood": ["mahalanobi"]}},
        "diagnostics.ood[0]: 'mahalanobi' is unknown; did you mean 'mahalanobis'?",
    ),
    ({"diagnostics": {"odd": []}}, "diagnostics.odd: unknown key; did you mean 'ood'?"),
    ({"grid": {"pairs": "every"}}, "grid.pairs: 'every' is unknown; known: across, all, within"),
    ({"grid": {"pairs": []}}, "grid.pairs: one of all, within, across, or a list of [source, target], got []"),
    ({"grid": {"pairs": [["vit"]]}}, "grid.pairs: a pair is [source, target], two names of models, got ['vit']"),
    ({"grid": {"pairs": [["vit", "vit"], ["vti", "resnet"]]}}, "grid.pairs[1]: no model 'vti'; did you mean 'vit'?"),
    ({"grid": {"pairs": [["vit", "resnet/2"]]}}, "grid.pairs[0]: no model 'resnet/2'; did you mean 'resnet/"),
    ({"models": [VIT], "grid": {"pairs": "across"}}, "grid.pairs: 'across' needs two networks"),
    ({"matchers": []}, "matchers: at least one [[matchers]] is needed"),
    ({"matchers": [{"kind": "dirct"}]}, "matchers[0].kind: 'dirct' is unknown; did you mean 'direct'?"),
    ({"matchers": [{}]}, "matchers[0].kind: missing, but needed"),
    (
        {"matchers": [{"kind": "cka", "epochs": 3}]},
        "matchers[0].epochs: unknown key; known: kind, metrics, rank, samples",
    ),
    ({"matchers": [{"kind": "task_loss", "epoch": 3}]}, "matchers[0].epoch: unknown key; did you mean 'epochs'?"),
    (
        {"matchers": [{"kind": "task_loss", "epochs": 0}]},
        "matchers[0].epochs: should be greater than or equal to 1, got 0",
    ),
    (
        {"matchers": [{"kind": "cka", "seeds": [0]}]},
        "matchers[0].seeds: cka is not trained, so it has no seeds; leave them out",
    ),
    (
        {"matchers": [{"kind": "direct", "metrics": ["r3"]}]},
        "matchers[0].metrics: direct has no metric 'r3'; did you mean 'r2'?",
    ),
    (
        {"matchers": [{"kind": "direct"}, {"kind": "direct", "metrics": ["r2"]}]},
        "matchers[1]: the same as matchers[0]: direct and equal parameters",
    ),
    (
        {"matchers": [{"kind": "task_loss", "seeds": [0, 1]}, {"kind": "task_loss", "seeds": [1], "epochs": 30}]},
        "matchers[1]: the same as matchers[0]: task_loss with seed 1 and equal parameters",
    ),
]


@pytest.mark.parametrize(("changes", "problem"), PROBLEMS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_job_is_refused_with_place_and_remedy(changes, problem):
    [found] = problems_of(**changes)
    assert found.startswith(problem)


def test_matchers_that_differ_in_any_way_are_kept_apart():
    kinds = [{"kind": "cka"}, {"kind": "cka", "samples": 9}, {"kind": "direct"}, {"kind": "direct", "rcond": 1e-6}]
    assert len(parse(matchers=kinds).matcher_specs()) == 4


def test_every_problem_is_reported_at_once():
    wrong = {
        "name": "a b",
        "sead": 1,
        "data": {"dataset": "digits", "fit": {"split": "trian"}, "rot": ""},
        "numerics": {"device": "gpu", "batch_size": "3"},
        "models": [{**VIT, "layer": "x", "weights": {"train": "R"}}, {**VIT, "architecture": "vit"}],
        "recipes": {"S": {"epoch": 3}},
        "grid": {"pairs": [["vit", "nobody"]]},
        "matchers": [{"kind": "dirct"}, {"kind": "cka", "seeds": [0], "metrics": ["x"]}, {"kind": "direct", "rcnd": 1}],
    }
    places = [problem.split(": ")[0] for problem in problems_of(**wrong)]
    assert sorted(places) == sorted(
        [
            "name", "sead", "data.fit.split", "data.rot", "numerics.device", "numerics.batch_size", "models[0].layer",
            "models[0].weights", "models[1].architecture", "models[1].name", "recipes.S.epochs", "recipes.S.epoch",
            "grid.pairs[0]", "matchers[0].kind", "matchers[1].seeds", "matchers[1].metrics", "matchers[2].rcnd",
        ]
    )  # fmt: skip


def test_the_message_lists_the_problems_below_the_title():
    with pytest.raises(JobFileError, match=r"small.toml\n  - sead: unknown key"):
        parse(sead=1)
    assert JobFileError.exit_code == 2


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["", "x", "cka", "all", "${X}", "a/b", "vit"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "name", "train", "x"]), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["models", "matchers", "data", "fit", "recipes", "r", "grid", "numerics"]), max_size=3
    ),
    position=st.integers(0, 1),
    key=st.sampled_from(
        ["seeds", "weights", "pairs", "new", "metrics", "layers", "preprocess", "kind", "name", "models"]
    ),
    value=json_values,
)
def test_whatever_is_wrong_it_is_a_job_file_error(words, position, key, value):
    wrong = table(recipes={"r": {"epochs": 1}}, grid={"pairs": "all"}, numerics={"device": "cpu"})
    here = wrong
    for word in words:
        inside = here.get(word)
        here = inside[position] if isinstance(inside, list) else inside if isinstance(inside, dict) else here
    here[key] = value
    try:
        job = parse_job(wrong, base=BASE, title="fuzzed")
    except JobFileError as problem:
        assert problem.problems  # noqa: PT017
    else:
        assert parse_job(job.to_dict(), title="again") == job


def test_how_networks_are_called_travels_and_is_stored_only_where_it_is_said():
    called = {
        **VIT,
        "output": 0,
        "inputs": {"meta": [0, 1.5], "mode": "a"},
        "tokens": {"prefix": 1, "grid": [4, 4]},
        "preprocess": {"channels": 1, "mean": [0.5]},
    }
    job = parse(models=[called])
    (found,) = job.network_specs()
    assert found.interface == Interface(
        inputs='{"meta":[0,1.5],"mode":"a"}', output=0, tokens=Tokens(prefix=1, grid=(4, 4))
    )
    assert found.preprocess == Preprocess(channels=1, mean=(0.5,))
    assert parse_job(json.loads(json.dumps(job.to_dict())), title="") == job
    (stored,) = parse(models=[{**VIT, "preprocess": {"crop": 4}}]).to_dict()["models"]
    assert not stored.keys() & {"output", "inputs", "tokens"}
    assert "channels" not in stored["preprocess"]


def test_images_and_preprocessing_may_have_other_channels():
    data = {"dataset": "arrays", "root": "a", "channels": 12, "axes": "NHWC"}
    data["outliers"] = {"dataset": "arrays", "root": "b", "channels": 12}
    model = {**VIT, "preprocess": {"channels": 12, "mean": [0.5] * 12}}
    job = parse(data=data, models=[model], diagnostics={"ood": ["energy"]})
    assert (job.data_spec().channels, job.data_spec().axes) == (12, "NHWC")
    assert (job.outliers_spec().channels, job.outliers_spec().axes) == (12, None)
    assert job.network_specs()[0].preprocess == Preprocess(channels=12, mean=(0.5,) * 12)
    assert parse_job(job.to_dict(), title="") == job
    plain = parse().to_dict()["data"]
    assert not {"channels", "axes"} & plain.keys()  # stored jobs and plans stay what they were
