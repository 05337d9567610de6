"""Features as a network: activations from files stand for the network that made them, wherever no network is run."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers_flow import run
from helpers_images import write_folder

import stitchgrid as sg
from stitchgrid.driver.preview import EmptyStore
from stitchgrid.jobfile import load_job
from stitchgrid.models.build import build_network
from stitchgrid.models.cut_network import cut_network
from stitchgrid.models.features import features_network, open_features
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.records import Preprocess
from stitchgrid.resolve import open_job_images, resolve

LAYERS = ("layer1.0", "layer2.0", "layer3.0")
HEAD = """
name = "s"
[data]
dataset = "digits"
fit = { samples = 40 }
eval = { samples = 32 }
"""
NET = """
[[models]]
name = "{name}"
architecture = "stitchgrid:resnet20"
args = {{ depth = 8, width = 4 }}
weights = "random"
seed = {seed}
layers = ["layer1.0", "layer2.0", "layer3.0"]
"""
NETS = NET.format(name="real", seed=0) + NET.format(name="other", seed=1)
PAIRS = '[grid]\npairs = [["real", "other"], ["given", "other"], ["other", "real"], ["other", "given"]]\n'
GIVEN = """
[[models]]
name = "given"
architecture = "features"
"""


def matchers(*kinds):
    return "".join(f'[[matchers]]\nkind = "{kind}"\n' for kind in kinds)


def write_job(folder, *parts, name="job.toml"):
    (folder / name).write_text("".join(parts))
    return folder / name


def activations(job):
    """Return what the first network of a job makes of its drawn images: {role: {layer: array}}, and the images."""
    loaded = load_job(str(job))
    images, spec = open_job_images(loaded), loaded.network_specs()[0]
    network = cut_network(build_network(spec), (3, 8, 8))
    node = {cut.name: cut.node for cut in network.cuts}
    found = {}
    for role, split in (("fit", images.fit), ("eval", images.eval)):
        with torch.no_grad():
            taken = network.taps([node[name] for name in LAYERS])(
                apply_preprocess(split.batch(0, split.num), Preprocess())
            )
        found[role] = {name: a.numpy() for name, a in zip(LAYERS, taken, strict=True)}
    return found, images


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return activations(write_job(tmp_path_factory.mktemp("made"), HEAD, NETS, matchers("cka")))


def write_drawn(folder, made):
    found, _ = made
    for role, split in (("fit", "train"), ("eval", "test")):
        np.savez(folder / f"{split}.npz", **found[role])


def spec_of(folder, images_job, **changes):
    """Return the specification of the features of a job."""
    text = "\n".join(f"{key} = {value}" for key, value in {"weights": '"."', **changes}.items())
    job = write_job(folder, images_job, GIVEN, text, "\n", matchers("cka"))
    return load_job(str(job)).network_specs()[-1]


# ---- values


def test_features_give_the_values_of_the_network_that_made_them(tmp_path, made):
    write_drawn(tmp_path, made)
    kinds = ("direct", "ridge", "cka", "pwcca")
    job = write_job(tmp_path, HEAD, NETS, GIVEN, 'features = "."\n', PAIRS, matchers(*kinds))
    run("launch", job, "--store", tmp_path / "grid", "--address", "none")
    rows = sg.open(tmp_path / "grid")["s"].results()
    values = {}
    for row in rows:
        key = (row["source_layer"], row["target_layer"], row["matcher"], row["metric"])
        values.setdefault((row["source_model"], row["target_model"]), {})[key] = row["value"]
    for pair, like in (
        (("given", "other"), ("real", "other")),
        (("other", "given"), ("other", "real")),
    ):
        assert values[pair].keys() <= values[like].keys()
        for key, value in values[pair].items():
            assert value == pytest.approx(values[like][key], rel=1e-6, abs=1e-6), (pair, key)
    assert {key[3] for key in values["given", "other"]} == {key[3] for key in values["real", "other"]}
    without_tail = {"residual", "r2", "strength", "cka", "pwcca", "pwcca_reverse"}
    assert {key[3] for key in values["other", "given"]} == without_tail
    assert not any("unlabelled" in (row["flags"] or ()) for row in rows if row["target_model"] == "given")


def test_a_trained_map_starts_at_features_and_probes_look_at_them(tmp_path, made):
    write_drawn(tmp_path, made)
    job = write_job(
        tmp_path,
        HEAD,
        NETS,
        GIVEN,
        'weights = "{split}.npz"\n',
        '[grid]\npairs = [["given", "other"], ["real", "other"]]\n[probes]\n',
        '[[matchers]]\nkind = "task_loss"\nepochs = 1\nbatch_size = 20\ninit = "direct"\n',
    )
    run("launch", job, "--store", tmp_path / "grid", "--address", "none")
    found = sg.open(tmp_path / "grid")["s"]
    by_source = {}
    for row in found.results():
        key = (row["source_layer"], row["target_layer"], row["metric"])
        by_source.setdefault(row["source_model"], {})[key] = row["value"]
    assert by_source["given"] == pytest.approx(by_source["real"], rel=1e-5, abs=1e-6, nan_ok=True)
    probed = found.sql("select layer, model, accuracy from probes where model in ('real', 'given') order by all")
    real, given = (
        {row["layer"]: row["accuracy"] for row in probed if row["model"] == name} for name in ("real", "given")
    )
    assert given == real


# ---- which row is whose


def test_every_form_of_the_same_features_has_one_address(tmp_path, made):
    found, images = made
    by_role = {"train": found["fit"], "test": found["eval"]}
    forms = {}
    for form in ("npz", "safetensors", "npy", "pt", "one file"):
        folder = tmp_path / form
        folder.mkdir()
        for split, layers in by_role.items():
            if form == "npz":
                np.savez_compressed(folder / f"{split}.npz", **layers)
            elif form == "safetensors":
                safetensors.numpy.save_file(layers, folder / f"{split}.safetensors")
            elif form == "pt":
                torch.save({name: torch.from_numpy(a) for name, a in layers.items()}, folder / f"{split}.pt")
            elif form == "npy":
                (folder / split).mkdir()
                for name, a in layers.items():
                    np.save(folder / split / f"{name}.npy", a)
        if form == "one file":
            named = {f"{split}/{name}": a for split, layers in by_role.items() for name, a in layers.items()}
            np.savez(folder / "all.npz", **named)
        where = '"all.npz"' if form == "one file" else '"."'
        forms[form] = open_features(spec_of(folder, HEAD, weights=where), images)
    assert len({one.address for one in forms.values()}) == 1
    assert all([layer.name for layer in one.layers] == list(LAYERS) for one in forms.values())
    other = dict(by_role["test"]) | {"layer1.0": by_role["test"]["layer1.0"] + 1}
    np.savez(tmp_path / "npz" / "test.npz", **other)
    assert open_features(spec_of(tmp_path / "npz", HEAD), images).address != forms["npz"].address


def listed_rows(images, role, rows):
    """Return rows of drawn images as those of the whole split, in sorted order; rows of other images are noise."""
    split, origin = getattr(images, role), images.origins[role == "eval"]
    whole = np.random.default_rng(0).normal(size=(origin.num, *rows.shape[1:])).astype(rows.dtype)
    whole[split.places] = rows
    return whole


@pytest.mark.parametrize("form", ["drawn", "listed", "positions", "texts"])
def test_rows_are_found_in_drawn_order_in_sorted_order_and_by_ids(tmp_path, made, form):
    found, images = made
    shuffled = np.random.default_rng(1).permutation
    for role, split in (("fit", "train"), ("eval", "test")):
        rows, ids = found[role]["layer2.0"], getattr(images, role).places
        if form == "listed":
            rows = listed_rows(images, role, rows)
        written = {"layer2.0": rows}
        if form in ("positions", "texts"):
            order = shuffled(len(rows))
            written = {"layer2.0": rows[order], "ids": ids[order] if form == "positions" else ids[order].astype(str)}
        np.savez(tmp_path / f"{split}.npz", **written)
    features = open_features(spec_of(tmp_path, HEAD), images)
    for role in ("fit", "eval"):
        np.testing.assert_array_equal(features.read(role, "layer2.0").numpy(), found[role]["layer2.0"])


def test_ids_of_an_image_folder_are_paths_and_one_table_may_serve_both_splits(tmp_path):
    write_folder(tmp_path / "images")
    head = (
        'name = "s"\n[data]\ndataset = "imagefolder"\nroot = "images"\nfit = { samples = 9 }\neval = { samples = 7 }\n'
    )
    table = sg.images(write_job(tmp_path, head, GIVEN, 'weights = "f.npz"\n', '[[matchers]]\nkind = "direct"\n'))
    assert table.columns == ["role", "drawn", "split", "listed", "id", "label"]
    assert len(table) == 16
    rows = list(table)
    assert all(row["id"].startswith(f"{row['split']}/{row['label']}/") for row in rows)
    assert [row["drawn"] for row in rows] == [*range(9), *range(7)]
    order = np.random.default_rng(0).permutation(16)
    values = np.arange(16, dtype=np.float32)[:, None]
    ids = np.array([rows[k]["id"] for k in order])
    np.savez(tmp_path / "f.npz", layer=values[order], ids=ids)
    job = load_job(str(tmp_path / "job.toml"))
    features = open_features(job.network_specs()[0], open_job_images(job))
    assert features.read("fit", "layer")[:, 0].tolist() == list(range(9))
    assert features.read("eval", "layer")[:, 0].tolist() == list(range(9, 16))
    run("plan", tmp_path / "job.toml", "--images", tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_text().splitlines()[1].split(",")[4] == rows[0]["id"]
    np.savez(tmp_path / "f.npz", layer=values[order][1:], ids=ids[1:])
    with pytest.raises(sg.errors.InputError, match=r"has no row for image '\w+/\w+/00\d\.png' \(position \d+ of split"):
        open_features(job.network_specs()[0], open_job_images(job))
    np.savez(tmp_path / "f.npz", layer=values[order], ids=np.array([*ids[1:], ids[1]]))
    with pytest.raises(sg.errors.InputError, match=r"id '.*' stands twice"):
        open_features(job.network_specs()[0], open_job_images(job))


def test_ids_may_stand_in_a_text_beside_the_arrays(tmp_path, made):
    found, images = made
    rows = found["eval"]["layer3.0"][::-1]
    safetensors.numpy.save_file({"layer3.0": np.ascontiguousarray(rows)}, tmp_path / "test.safetensors")
    ids = tmp_path / "test.ids.txt"
    ids.write_text("".join(f"{place}\n" for place in images.eval.places[::-1]))
    features = open_features(spec_of(tmp_path, HEAD), images)
    np.testing.assert_array_equal(features.read("eval", "layer3.0").numpy(), found["eval"]["layer3.0"])
    ids.write_bytes(b"\xff\xfe")
    with pytest.raises(sg.errors.InputError, match=r"cannot read .*ids\.txt as ids in UTF-8"):
        open_features(spec_of(tmp_path, HEAD), images)
    ids.write_bytes(b"x" * 1_000_000)
    with pytest.raises(sg.errors.InputError, match="is larger than 32 ids would be"):
        open_features(spec_of(tmp_path, HEAD), images)


def test_an_order_that_nothing_tells_is_asked_for_and_labels_can_tell_it(tmp_path):
    whole = HEAD.replace("samples = 40", "samples = 30").replace("eval = { samples = 32 }", 'eval = { split = "test" }')
    images = open_job_images(load_job(str(write_job(tmp_path, whole, NETS, matchers("cka")))))
    drawn = np.arange(500, dtype=np.float32)[:, None]
    np.savez(tmp_path / "f.npz", layer=drawn)
    with pytest.raises(sg.errors.InputError, match=r"500 rows.*it is not clear .*args = \{ rows = \"split\" \}"):
        open_features(spec_of(tmp_path, whole, weights='"f.npz"'), images)
    for order, wanted in (("drawn", drawn), ("split", drawn[images.eval.places])):
        spec = spec_of(tmp_path, whole, weights='"f.npz"', args=f'{{ rows = "{order}" }}')
        np.testing.assert_array_equal(open_features(spec, images).read("eval", "layer").numpy(), wanted)
    labels = images.eval.labels.numpy()
    np.savez(tmp_path / "f.npz", layer=drawn, labels=labels)
    found = open_features(spec_of(tmp_path, whole, weights='"f.npz"'), images)
    np.testing.assert_array_equal(found.read("eval", "layer").numpy(), drawn)
    np.savez(tmp_path / "f.npz", layer=drawn, labels=labels[::-1])
    with pytest.raises(sg.errors.InputError, match="its `labels` are not those of the images"):
        open_features(spec_of(tmp_path, whole, weights='"f.npz"'), images)


def test_one_split_for_both_is_drawn_once_with_the_evaluation_images_first(tmp_path):
    head = HEAD.replace("samples = 40", 'split = "test", samples = 5').replace("samples = 32", "samples = 7")
    job = load_job(str(write_job(tmp_path, head, GIVEN, 'weights = "f.npy"\n', '[[matchers]]\nkind = "direct"\n')))
    np.save(tmp_path / "f.npy", np.arange(12.0)[:, None])
    found = open_features(job.network_specs()[0], open_job_images(job))
    assert found.read("eval", "f")[:, 0].tolist() == list(range(7))
    assert found.read("fit", "f")[:, 0].tolist() == list(range(7, 12))


# ---- layers


def test_axes_order_and_tokens_can_be_said(tmp_path, made):
    _, images = made
    held = {"last": (4,), "first": (5, 6, 3), "words": (10, 7)}
    written = {name: np.zeros((32, *shape), np.float16) for name, shape in held.items()}
    np.savez(tmp_path / "test.npz", **written)
    args = '{ order = ["first", "words", "last"], axes = { first = "NHWC" } }'
    spec = spec_of(tmp_path, HEAD, args=args, tokens="{ prefix = 1, grid = [3, 3] }")
    first, words, last = open_features(spec, images).layers
    assert (first.axes, first.width, first.grid, first.depth) == ("NHWC", 3, (5, 6), 0.0)
    assert (words.axes, words.num_prefix, words.grid, words.depth) == ("NTD", 1, (3, 3), 0.5)
    assert (last.axes, last.kind, last.depth) == ("ND", "vector", 1.0)
    chosen = open_features(spec_of(tmp_path, HEAD, layers='["w*"]'), images)
    assert [layer.name for layer in chosen.layers] == ["words"]


# ---- refusals


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ({"a": np.zeros((31, 2))}, {}, r"31 rows, and split 'test' lists 500 images, of which 32 are drawn; give one"),
        ({"a": np.zeros((32, 2)), "b": np.zeros((33, 2))}, {}, r"32 rows at 'a' and 33 at 'b'; every layer needs one"),
        ({"a": np.zeros(32)}, {}, r"a: numbers of shape \(N, D\), .* got float64 of shape \(32,\)"),
        ({"a": np.array(["x"] * 32)[:, None]}, {}, r"a: numbers of shape .* got <U1"),
        ({"a": np.zeros((32, 2), complex)}, {}, "numbers of shape .* got complex128"),
        ({"ids": np.arange(32)}, {}, "holds no arrays of layers"),
        ({"a": np.zeros((32, 2)), "ids": np.arange(3)}, {}, "3 ids and 32 rows; one id a row is needed"),
        ({"a": np.zeros((2, 2)), "ids": np.array([b"\xff", b"a"])}, {}, "ids: wanted texts in UTF-8"),
        ({"a": np.zeros((1, 2)), "ids": np.full(1, 0xD800, "u4").view("U1")}, {}, r"ids: .* is no text in UTF-8"),
        ({"a": np.zeros((1, 2)), "ids": np.full(1, 0xFFFFFF, "u4").view("U1")}, {}, "ids: wanted texts in UTF-8"),
        ({"a": np.zeros((0, 2)), "ids": np.array([], "U1")}, {}, "holds no rows"),
        ({"a" * 256: np.zeros((32, 2))}, {}, "is no name of a layer; wanted a text of 1 to 255 characters"),
        ({"a": np.zeros((32, 2))}, {"layers": '["b"]'}, "there is no layer 'b'"),
        ({"a": np.zeros((32, 2))}, {"args": "{ row = 1 }"}, "features take no argument 'row'; did you mean 'rows'"),
        ({"a": np.zeros((32, 2))}, {"args": '{ axes = "NXYZ" }'}, "args.axes: 'NXYZ' is unknown"),
        ({"a": np.zeros((32, 2))}, {"args": '{ order = ["b"] }'}, "args.order has to name every layer .* look at 'a'"),
        ({"a": np.zeros((32, 2))}, {"weights": '"nowhere.npz"'}, r"there are no features .*nowhere\.npz"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_used_are_refused(tmp_path, made, arrays, changes, message):
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises((sg.errors.InputError, sg.errors.JobFileError), match=message):
        open_features(spec_of(tmp_path, HEAD, **changes), made[1])


def test_objects_are_not_unpickled(tmp_path, made):
    np.savez(tmp_path / "test.npz", a=np.array([{}] * 32))
    with pytest.raises(sg.errors.InputError, match="wanted one array of numbers, got object"):
        open_features(spec_of(tmp_path, HEAD), made[1])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (matchers("task_loss"), "'given' is features: no network lies behind its layers, so task_loss cannot be"),
        ('[[matchers]]\nkind = "direct"\nmetrics = ["accuracy", "residual"]\n', "accuracy of direct into it cannot be"),
        ('[[matchers]]\nkind = "task_loss"\naugment = "crop4_flip"\n[grid]\npairs = [["given", "other"]]\n',
         r"features of the images as they are, and task_loss augments them"),
    ],
)  # fmt: skip
def test_what_needs_a_network_behind_the_layers_is_refused_before_anything_runs(tmp_path, made, extra, message):
    write_drawn(tmp_path, made)
    job = write_job(tmp_path, HEAD, NETS, GIVEN, 'weights = "."\n', extra)
    said = run("plan", job, "--store", tmp_path / "grid", code=2).output
    assert message in " ".join(said.split())


def test_maps_need_features_of_the_fit_images(tmp_path, made):
    np.savez(tmp_path / "test.npz", **made[0]["eval"])
    job = write_job(tmp_path, HEAD, NETS, GIVEN, 'weights = "."\n', matchers("direct", "cka"))
    said = run("plan", job, "--store", tmp_path / "grid", code=2).output
    assert "has features of split 'test' alone, and maps, probes and ranks are fitted on split 'train'" in said
    run(
        "plan", write_job(tmp_path, HEAD, NETS, GIVEN, 'weights = "."\n', matchers("cka")), "--store", tmp_path / "grid"
    )


def test_there_is_nothing_to_time(tmp_path, made):
    write_drawn(tmp_path, made)
    job = write_job(tmp_path, HEAD, NETS, GIVEN, 'weights = "."\n', matchers("cka"))
    said = run("bench", job, "--store", tmp_path / "grid", code=2).output
    assert "given: activations from files have no network that could be timed" in said


def test_features_that_changed_since_the_sweep_was_planned_are_not_taken(tmp_path, made):
    found, images = made
    write_drawn(tmp_path, made)
    job = load_job(str(write_job(tmp_path, HEAD, NETS, GIVEN, 'weights = "."\n', matchers("cka"))))
    record = next(n for n in resolve(job, images, EmptyStore()).sweep.networks if n.name == "given")
    assert features_network(record, images, torch.device("cpu")).has_rows("fit")
    np.savez(tmp_path / "test.npz", **{name: a * 2 for name, a in found["eval"].items()})
    with pytest.raises(
        sg.errors.InputError, match="features of model 'given' are not those the sweep was planned with"
    ):
        features_network(record, images, torch.device("cpu"))


@pytest.mark.parametrize("key", ['head = "logits"', "preprocess = { resize = 4 }", 'weights = "random"', "seed = 3"])
def test_keys_that_say_how_a_network_is_run_are_refused(tmp_path, key):
    given = "" if "weights" in key else 'weights = "x.npz"\n'
    job = write_job(tmp_path, HEAD, GIVEN, f"{given}{key}\n", matchers("cka"))
    with pytest.raises(
        sg.errors.JobFileError,
        match=r"features are read from files, and no network is run|a file or folder of activations",
    ):
        load_job(str(job))


def test_rows_that_are_not_finite_cost_their_own_cells(tmp_path, made):
    found = {name: a.copy() for name, a in made[0]["eval"].items()}
    found["layer2.0"][3, 0, 0, 0] = np.inf
    np.savez(tmp_path / "test.npz", **found)
    job = write_job(tmp_path, HEAD, NETS, GIVEN, 'weights = "."\n', matchers("cka"))
    said = run("launch", job, "--store", tmp_path / "grid", "--address", "none", code=1).output
    assert "its rows at layer2.0 are infinite or NaN for 1 of 32 eval images, the first of them at position 3" in said
    status = json.loads(run("status", "s", "--store", tmp_path / "grid", "--format", "json").output)
    assert "given" in json.dumps(status)
