"""Which images a matcher looks at is what the job says, and the same images have the address that they had."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stitchgrid.datasets import Images, open_images
from stitchgrid.driver.preview import EmptyStore, matcher_lines
from stitchgrid.errors import JobFileError, StitchgridError
from stitchgrid.jobfile import Job
from stitchgrid.jobfile.load import load_job
from stitchgrid.jobfile.parse import parse_job
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import DataSpec, Sweep, digest
from stitchgrid.resolve import resolve
from stitchgrid.resolve.images import energy_spec, fit_images_needed
from stitchgrid.resolve.sweep import _sweep
from stitchgrid.shipped_files import shipped_names
from stitchgrid.statistics.needs import images_of

MODELS = [{"name": "a", "architecture": "stitchgrid:resnet20", "args": {"depth": 8, "width": 4}, "weights": "random"}]
TASK_LOSS = {"kind": "task_loss", "epochs": 1}
DIRECT, CKA, PWCCA = {"kind": "direct"}, {"kind": "cka"}, {"kind": "pwcca"}
ENERGY = {"ood": ["energy"], "energy": {"epochs": 1}}
WHOLE = 1297  # images of the digits to fit on


def job(*matchers: dict[str, Any], fit: int | None = None, **more: Any) -> Job:
    data: dict[str, Any] = {"dataset": "digits"} | ({"fit": {"samples": fit}} if fit else {})
    table = {"name": "x", "data": data, "models": MODELS, "grid": {"pairs": "within"}, "matchers": list(matchers)}
    return parse_job({**table, **more}, title="job", base=Path("/"))


@cache
def opened(spec: DataSpec, need_fit: int | None) -> Images:
    return open_images(spec, need_fit=need_fit)


def images_of_job(wanted: Job) -> Images:
    return opened(wanted.data_spec(), fit_images_needed(wanted))


def sweep_of(wanted: Job) -> Sweep:
    """Return the sweep of a job, without its networks, which take longer."""
    images = images_of_job(wanted)
    return _sweep(wanted, wanted.data_spec(), images, (), energy_spec(wanted, images, None))


def addresses(wanted: Job) -> list[str]:
    return [digest(address) for address in sweep_of(wanted).matcher_address]


# Of version 0.1.0, for the digits: by what the matcher asks for, `samples` of fit, and the diagnostics.
DIRECT_WHOLE, DIRECT_200_OF_FIT = "6223d2143c265bcd471c384ce335864a", "788460533b6fea3c6aa19a115cb30ae1"
DIRECT_200, DIRECT_1297 = "9b3f5db66113ab924719539082a42224", "967932c7582ce7ab684bad73dc2da72e"
TRAINED_WHOLE, TRAINED_200 = "d5824a26e0cd9c0b22dafc1d72d71c62", "efef512b684e164595002d3d42b6bc79"
TRAINED_1297 = "bcc3b455553b08f04f00f3669f4f50f6"
CKA_500, PWCCA_500, PWCCA_100 = (
    "0c92c5156fc18f7cde69e614ef16857f",
    "4d4cce1fbe0e64cff703660998a54322",
    "c5a52b78099e3a877e0c4ea0ca56436d",
)
ENERGY_WHOLE, ENERGY_200 = "281910ded42913900abc377f4ac5aab6", "33f069f48c4523cecfd993cb83598ba9"
ENERGY_WHOLE_FIT_200 = "f783ecdff286ef8b8074b81eb86c9bac"


@pytest.mark.parametrize(
    ("wanted", "old"),
    [
        (
            job(DIRECT, TASK_LOSS, {**TASK_LOSS, "samples": 200}, {**DIRECT, "samples": 200}),
            [DIRECT_WHOLE, TRAINED_WHOLE, TRAINED_200, DIRECT_200],
        ),
        (job(CKA, PWCCA, {**PWCCA, "samples": 100}), [CKA_500, PWCCA_500, PWCCA_100]),
        (
            job(DIRECT, {**TASK_LOSS, "samples": 200}, {**TASK_LOSS, "samples": WHOLE}, fit=200),
            [DIRECT_200_OF_FIT, TRAINED_200, TRAINED_1297],
        ),
        (job({**DIRECT, "samples": WHOLE}, fit=200), [DIRECT_1297]),
        (job(DIRECT, TASK_LOSS, fit=WHOLE), [DIRECT_WHOLE, TRAINED_WHOLE]),
        (job(DIRECT, diagnostics=ENERGY), [ENERGY_WHOLE]),
        (job(DIRECT, fit=200, diagnostics={**ENERGY, "energy": {"epochs": 1, "samples": 200}}), [ENERGY_200]),
    ],
)
def test_what_version_0_1_0_named_keeps_its_address(wanted, old):
    assert addresses(wanted) == old


@pytest.mark.parametrize(
    ("wanted", "old"),
    [
        (job({**TASK_LOSS, "samples": "all"}), [TRAINED_WHOLE]),
        (job({**TASK_LOSS, "samples": "all"}, fit=200), [TRAINED_WHOLE]),
        (job(TASK_LOSS, fit=200), [TRAINED_200]),
        (job({**TASK_LOSS, "samples": "fit"}, fit=200), [TRAINED_200]),
        (job({**DIRECT, "samples": "all"}), [DIRECT_WHOLE]),
        (job({**DIRECT, "samples": "all"}, fit=200), [DIRECT_WHOLE]),
        (job({**DIRECT, "samples": "fit"}, fit=200), [DIRECT_200_OF_FIT]),
        (job({**CKA, "samples": "all"}, {**PWCCA, "samples": "all"}), [CKA_500, PWCCA_500]),
        (job(DIRECT, fit=200, diagnostics=ENERGY), [ENERGY_200]),
        (
            job(DIRECT, fit=200, diagnostics={**ENERGY, "energy": {"epochs": 1, "samples": "all"}}),
            [ENERGY_WHOLE_FIT_200],
        ),
    ],
)
def test_what_is_named_anew_has_the_address_of_the_same_images(wanted, old):
    assert addresses(wanted) == old


def test_as_many_images_as_fit_has_hold_for_every_kind():
    wanted = job(DIRECT, TASK_LOSS, {**TASK_LOSS, "samples": "all", "lr": 1e-2}, {**TASK_LOSS, "samples": 50}, fit=200)
    sweep = sweep_of(wanted)
    assert [images_of(sweep, position)[0] for position in range(4)] == [200, 200, WHOLE, 50]
    detectors = sweep_of(job(DIRECT, fit=200, diagnostics=ENERGY)).energy
    assert detectors is not None
    assert detectors.num_fit == 200


def test_a_gram_matrix_may_be_of_the_whole_split():
    wanted = job(
        CKA, {**CKA, "samples": "all"}, data={"dataset": "digits", "eval": {"split": "train"}, "fit": {"split": "test"}}
    )
    sweep = sweep_of(wanted)
    assert [images_of(sweep, position)[1] for position in (0, 1)] == [1000, WHOLE]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (job({**TASK_LOSS, "samples": 5000}, fit=200), r"asks for 5000 samples, but split 'train' has 1297 images"),
        (
            job({**TASK_LOSS, "samples": 5000}, DIRECT, {**TASK_LOSS, "samples": "all"}),
            r"matchers\[0\].samples: task_loss asks for 5000 fit images, and split 'train' has 1297; lower",
        ),
        (
            job(PWCCA, {**CKA, "samples": 501}),
            r"matchers\[1\].samples: cka asks for 501 evaluation images, and split 'test' has 500; lower it, or write",
        ),
        (job(CKA, TASK_LOSS, probes={"samples": 1298}), r"probes.samples: a probe asks for 1298 fit images"),
        (
            job(DIRECT, diagnostics={**ENERGY, "energy": {"samples": 1298}}),
            r"diagnostics.energy.samples: a detector asks for 1298 fit images",
        ),
    ],
)
def test_more_images_than_there_are_are_refused_with_their_number(wanted, message):
    with pytest.raises(StitchgridError, match=message):
        resolve(wanted, images_of_job(wanted), EmptyStore())


@pytest.mark.parametrize(
    ("matcher", "message"),
    [
        ({**DIRECT, "samples": "every"}, r'matchers\[0\].samples: a number of images from 1 on, "all" .*got \'every\''),
        ({**DIRECT, "samples": 0}, r"matchers\[0\].samples: a number of images from 1 on.*got 0"),
        ({**DIRECT, "samples": True}, r"matchers\[0\].samples: a number of images from 1 on.*got True"),
        (
            {**CKA, "samples": "fit"},
            r'matchers\[0\].samples: cka is not fitted: a number of evaluation images, or "all"',
        ),
    ],
)
def test_samples_are_a_number_or_a_word(matcher, message):
    with pytest.raises(JobFileError, match=message):
        job(matcher)


def test_the_same_images_twice_are_refused():
    with pytest.raises(JobFileError, match=r"matchers\[1\]: the same as matchers\[0\]: task_loss"):
        job(TASK_LOSS, {**TASK_LOSS, "samples": 200}, fit=200)
    with pytest.raises(JobFileError, match=r"matchers\[1\]: the same as matchers\[0\]: direct"):
        job(DIRECT, {**DIRECT, "samples": "all"})


@pytest.mark.parametrize("samples", [None, 50, "all"])
@pytest.mark.parametrize("fit", [None, 200])
def test_a_stored_job_asks_for_the_same_images(samples, fit):
    given = {} if samples is None else {"samples": samples}
    wanted = job({**TASK_LOSS, **given}, {**DIRECT, **given}, fit=fit, diagnostics=ENERGY)
    again = parse_job(wanted.to_dict(), title="stored")
    assert again == wanted
    assert again.matcher_specs() == wanted.matcher_specs()


def test_a_job_stored_by_version_0_1_0_means_what_it_meant():
    """There, a trained kind without samples of its own took the whole split, and so did detectors."""
    stored = job(DIRECT, TASK_LOSS, fit=200, diagnostics=ENERGY).to_dict()
    del stored["matchers"][1]["samples"], stored["diagnostics"]["energy"]["samples"]
    again = parse_job(stored, title="stored")
    assert [spec.samples for spec in again.matcher_specs()] == [None, None]
    assert again.energy_recipe().samples is None
    plain = job(DIRECT, TASK_LOSS)
    assert "samples" not in plain.to_dict()["matchers"][1]  # as version 0.1.0 stored it


def test_each_matcher_says_on_how_many_images_and_for_how_long():
    sweep = sweep_of(job(DIRECT, {**TASK_LOSS, "seeds": [0, 1], "samples": 600, "epochs": 3}, CKA, fit=100))
    assert matcher_lines(sweep) == [
        "direct: fitted on 100 images",
        "task_loss (2 times): trained on 600 images for 3 epochs of 3 steps",
        "cka: on 500 images",
    ]


def test_shipped_jobs_say_what_their_trained_matchers_look_at(monkeypatch):
    for name in ("STITCHGRID_DATA", "CIFAR10", "IMAGENET"):
        monkeypatch.setenv(name, "/nowhere")
    for name in shipped_names("jobs", ".toml"):
        shipped = load_job(name)
        trained = [matcher for matcher in shipped.matchers if MATCHERS[matcher.kind].is_trained]
        if shipped.data.fit.samples is not None:
            assert all(matcher.samples is not None for matcher in trained), name
            assert not any(m.energy for m in shipped.matchers) or shipped.diagnostics.energy.samples is not None, name
