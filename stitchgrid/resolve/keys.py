"""Addresses of results that are computed once and kept: networks, their evaluations, probes and detectors."""

from dataclasses import asdict

from stitchgrid.datasets import Images
from stitchgrid.datasets.images import Split
from stitchgrid.models.architecture import code_digest
from stitchgrid.models.training import TWIN_IMAGES
from stitchgrid.records import NetworkSpec, Preprocess, Sweep, canonical, digest

EVALUATION_REVISION = 2  # raised when the proof of networks checks more than before
PROBE_REVISION = 1  # raised when the maths of probes changes
DETECTOR_REVISION = 1  # the same for detectors, and for cells that their scores decide
TWIN_REVISION = 1  # the same for untrained twins
TRAINING_REVISION = 1  # raised when the training loop changes, so that stored networks are not mistaken for new ones


def detector_key(sweep: Sweep, target: int, layer: int) -> str:
    """Return the address of a layer's detector: a digest of all that decides its weights."""
    assert sweep.energy is not None
    network = sweep.networks[target]
    return digest(
        "detector",
        str(DETECTOR_REVISION),
        network.network_id,
        network.layers[layer].node,
        network.layers[layer].layout,
        canonical(asdict(sweep.energy.recipe)),
        sweep.energy.fit_data,
        sweep.energy.outlier_data,
        sweep.precision,
    )


def network_id(spec: NetworkSpec, preprocess: Preprocess, weights_digest: str) -> str:
    """Return the address of a frozen network: what it computes from an image, whatever it is called."""
    called = spec.interface.address
    return digest("network", weights_digest, code_digest(spec), spec.args, preprocess.address, *called)


def training_key(spec: NetworkSpec, preprocess: Preprocess, images: Images) -> str:
    """Return the address of a network that the sweep makes: the recipe, if any, and everything it starts from."""
    if spec.recipe is None:
        seen = twin_images(images)
        return digest(
            "twin",
            str(TWIN_REVISION),
            code_digest(spec),
            spec.args,
            str(spec.seed),
            preprocess.address,
            seen.digest(min(TWIN_IMAGES, seen.num)),
            *spec.interface.address,
        )
    return digest(
        "recipe",
        str(TRAINING_REVISION),
        canonical(asdict(spec.recipe)),
        code_digest(spec),
        spec.args,
        str(spec.seed),
        preprocess.address,
        images.fit.digest(images.fit.num),
        *spec.interface.address,
    )


def twin_images(images: Images) -> Split:
    """Return the images that give untrained twins their statistics: the fit images, else the evaluation images."""
    return images.fit if images.fit.num else images.eval
