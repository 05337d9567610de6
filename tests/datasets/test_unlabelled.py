"""Images without labels: what needs none works as ever, what needs them is refused with what to do."""

import pytest
from helpers_flow import run
from helpers_images import write_folder

import stitchgrid as sg
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import load_job, parse_job

JOB = """
name = "{name}"
[data]
dataset = "imagefolder"
root = "images"
labels = "{labels}"
fit = {{ samples = 16 }}
eval = {{ samples = 12 }}
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = {{ depth = 8, width = 4, num_classes = 3 }}
weights = "random"
layers = ["layer1.0", "layer2.0"]
"""
KINDS = '[[matchers]]\nkind = "direct"\n[[matchers]]\nkind = "cka"\n'


def job_of(folder, extra=KINDS, labels="none"):
    (folder / f"{labels}.toml").write_text(JOB.format(name=labels, labels=labels) + extra)
    return folder / f"{labels}.toml"


def test_what_needs_no_labels_has_the_values_that_it_has_with_labels(tmp_path):
    write_folder(tmp_path / "images", {"train": 8, "test": 6}, sizes=lambda _: (8, 8))
    values = {}
    for labels in ("none", "classes"):
        run("launch", job_of(tmp_path, labels=labels), "--store", tmp_path / "grid", "--address", "none")
        for row in sg.open(tmp_path / "grid")[labels].results():
            key = (row["source_layer"], row["target_layer"], row["metric"])
            values.setdefault(labels, {})[key] = row["value"]
    metrics = {key[2] for key in values["none"]}
    assert metrics == {"agreement", "residual", "r2", "variance_ratio", "negative_mass", "cka"}
    for key, value in values["none"].items():  # both list the images in the same order
        assert value == pytest.approx(values["classes"][key], abs=1e-9), key
    stored = parse_job(load_job(str(job_of(tmp_path))).to_dict(), title="stored")
    assert [matcher.metrics for matcher in stored.matchers] == [
        matcher.metrics for matcher in load_job(str(job_of(tmp_path))).matchers
    ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('[[matchers]]\nkind = "task_loss"\n', "task_loss is trained on labels, .* none .*take soft_label"),
        ('[[matchers]]\nkind = "direct"\nmetrics = ["accuracy"]\n', "accuracy need labels, .*; agreement compares"),
        (f"{KINDS}[probes]\n", r"probes are fitted on labels, .*leave \[probes\] out, or give the labels"),
        (f"{KINDS}[recipes.r]\nepochs = 1\n", "networks are trained on labels, .*give checkpoints as `weights`"),
        (f'{KINDS}[diagnostics]\nood = ["energy"]\n', "detectors by energy are .*mahalanobis.* needs none"),
    ],
)  # fmt: skip
def test_what_needs_labels_is_refused_with_what_to_do(tmp_path, extra, message):
    with pytest.raises(JobFileError, match=message):
        load_job(str(job_of(tmp_path, extra)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('labels = "none"\nclasses = ["a"]', "have no classes; leave out `classes` and `class_order`"),
        ('keys = { images = "x" }', "only arrays, list, parquet, webdataset have arrays, columns or members to name"),
        ('folder = "x"', 'only dataset = "list" has paths that start at a folder'),
        ('keys = { image = "x" }', "unknown key.*images"),
    ],
)
def test_keys_of_data_that_mean_nothing_are_refused(tmp_path, data, message):
    text = JOB.format(name="s", labels="classes").replace('labels = "classes"', data) + KINDS
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(JobFileError, match=message):
        load_job(str(tmp_path / "job.toml"))


def test_names_of_columns_and_the_folder_of_a_list_reach_the_images(tmp_path):
    text = (
        JOB.format(name="s", labels="none").replace('"imagefolder"', '"list"').replace('root = "images"', 'root = "l"')
    )
    text = text.replace("labels =", 'folder = "f"\nkeys = { images = "where" }\nlabels =')
    (tmp_path / "job.toml").write_text(text + KINDS)
    spec = load_job(str(tmp_path / "job.toml")).data_spec()
    assert (spec.keys, spec.folder, spec.labels) == ('{"images":"where"}', str(tmp_path / "f"), "none")
