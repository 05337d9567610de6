"""The images that a job draws."""

from pathlib import Path

from stitchgrid.datasets import Images, open_images
from stitchgrid.datasets.images import Split
from stitchgrid.datasets.user_dataset import as_planned_now
from stitchgrid.errors import JobFileError
from stitchgrid.jobfile import Job
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.models.training import TWIN_IMAGES
from stitchgrid.records import DataSpec, EnergySpec, ProbeSpec


def open_job_images(job: Job, *, cache: Path | None = None) -> Images:
    """Return the images a job uses, decoded as far as its matchers and recipes need them."""
    return open_images(job.data_spec(), need_fit=fit_images_needed(job), wish_fit=fit_images_wished(job), cache=cache)


def fit_images_wished(job: Job) -> int:
    """Return how many fit images the job uses if there are that many: those of untrained twins."""
    return TWIN_IMAGES if any(spec.is_twin for spec in job.network_specs()) else 0


def fit_images_needed(job: Job) -> int | None:
    """Return how many fit images the job uses, None for all of them."""
    specs = job.matcher_specs()
    stitchers = [spec for spec in specs if MATCHERS[spec.kind].family == "stitcher"]
    recipe = job.energy_recipe()
    whole = any(
        spec.samples == "all" or (MATCHERS[spec.kind].is_trained and spec.samples is None) for spec in stitchers
    )
    whole |= recipe is not None and recipe.samples is None
    closed = job.data_spec().fit_samples
    networks = job.network_specs()
    if whole or closed is None or any(spec.recipe for spec in networks):
        return None
    probed = (job.probe_spec() or ProbeSpec()).samples or 0
    detected = recipe.samples or 0 if recipe else 0
    return max([closed, probed, detected, *(spec.samples for spec in stitchers if isinstance(spec.samples, int))])


def open_outliers(spec: DataSpec, *, cache: Path | None = None) -> Split:
    """Return the images of another data set, in drawn order."""
    return open_images(spec, cache=cache, need_fit=0).eval


def energy_spec(job: Job, images: Images, cache: Path | None) -> EnergySpec | None:
    """Return the recipe and the data of a job's detectors; None where it asks for no detectors."""
    recipe, outliers = job.energy_recipe(num_fit=images.num_fit_listed), job.outliers_spec()
    if recipe is None:
        return None
    num_fit = min(recipe.samples or images.fit.num, images.fit.num)
    if num_fit < 2:
        raise JobFileError(f"a detector by energy needs 2 fit images at least, got {num_fit}; raise fit's samples.")
    outliers = None if outliers is None else as_planned_now(outliers)
    other = open_outliers(outliers, cache=cache) if outliers else None
    if other is not None and other.channels != images.fit.channels:
        raise JobFileError(
            f"outliers have {other.channels} channels, and the images {images.fit.channels}; take outliers with the "
            "channels that the networks take (`channels` under [data.outliers])."
        )
    return EnergySpec(
        recipe=recipe,
        num_fit=num_fit,
        fit_data=images.fit.digest(num_fit),
        outliers=outliers,
        outlier_data=other.digest(other.num) if other else "",
    )
