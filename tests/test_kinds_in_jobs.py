"""What a kind needs is looked for before a job starts: images, and packages."""

import sys

import pytest

from stitchgrid.driver.preview import EmptyStore
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import parse_job
from stitchgrid.resolve import Resolution, open_job_images, resolve


def resolved(tmp_path, *matchers: dict[str, object], num_eval: int = 48, layers: object = "all") -> Resolution:
    job = parse_job(
        {
            "name": "needs",
            "data": {
                "dataset": "digits",
                "fit": {"split": "train", "samples": 16},
                "eval": {"split": "test", "samples": num_eval},
            },
            "models": [
                {
                    "name": "net",
                    "architecture": "stitchgrid:resnet20",
                    "args": {"depth": 8, "width": 4},
                    "weights": "random",
                    "layers": layers,
                }
            ],
            "matchers": list(matchers),
        },
        title="",
    )
    return resolve(job, open_job_images(job, cache=tmp_path), EmptyStore())


@pytest.mark.parametrize(
    ("matcher", "message"),
    [
        ({"kind": "mutual_knn"}, "mutual_knn needs 12 images at least, got 11"),
        ({"kind": "jaccard_knn", "k": 10, "samples": 5}, "jaccard_knn needs 12 images at least, got 5"),
        ({"kind": "mutual_knn", "k": 10, "samples": "all"}, "mutual_knn needs 12 images at least, got 11"),
        ({"kind": "cka_unbiased", "samples": 3}, "cka_unbiased needs 4 images at least, got 3"),
    ],
)
def test_a_kind_that_has_too_few_images_is_refused(tmp_path, matcher, message):
    with pytest.raises(JobFileError, match=message):
        resolved(tmp_path, matcher, num_eval=11)


def test_fewer_neighbours_need_fewer_images(tmp_path):
    resolved(tmp_path, {"kind": "mutual_knn", "k": 9}, {"kind": "jaccard_knn", "k": 1}, num_eval=11)


def test_more_neighbours_than_images_looked_at_by_default_are_refused(tmp_path):
    with pytest.raises(JobFileError, match="mutual_knn needs 51 images at least, got 48"):
        resolved(tmp_path, {"kind": "mutual_knn", "k": 49})


def test_soft_matching_without_pot_is_refused_where_widths_differ(tmp_path, monkeypatch):
    resolved(tmp_path, {"kind": "soft_matching"})
    monkeypatch.setitem(sys.modules, "ot", None)
    wanted = (
        r"matchers\[1\]: soft_matching of layers of unequal width needs POT.*pip install 'stitchgrid\[soft-matching\]'"
    )
    with pytest.raises(JobFileError, match=wanted):
        resolved(tmp_path, {"kind": "cka"}, {"kind": "soft_matching"})
    resolved(tmp_path, {"kind": "soft_matching"}, layers=["relu", "layer1.0"])
