"""A network specification -> the network, with its weights; frozen for good unless it is to be trained."""

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError, JobFileError, nearest
from stitchgrid.models.architecture import find_function, is_torchvision, misfit
from stitchgrid.models.freeze import freeze
from stitchgrid.models.weights import load_checkpoint, load_into
from stitchgrid.records import NetworkSpec, Preprocess

_WEIGHTS_NAME = re.compile(r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*")  # IMAGENET1K_V1, ResNet18_Weights.DEFAULT


def build_network(spec: NetworkSpec, *, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the network of `spec` on the CPU, frozen for good.

    Args:
        spec: What a job file says of the network.
        state: Its tensors, where they are known already; then `spec.weights` is not looked at.

    Raises:
        JobFileError: If the architecture does not exist or does not take the arguments.
        InputError: If code or weights are missing, invalid, or of another architecture.
    """
    assert spec.recipe is None or state is not None, f"{spec.name} is trained by the sweep: its state is an artefact"
    published = None if state is not None else _published(spec)
    module = make_network(spec, download=published is not None)
    if state is not None:
        load_into(module, state, origin=f"the given state of {spec.name!r}")
    elif published is None and spec.weights != "random":
        path = _checkpoint_path(spec)
        load_into(module, load_checkpoint(path), origin=f"checkpoint {path}")
    return freeze(module)


def make_network(spec: NetworkSpec, *, download: bool = False) -> nn.Module:
    """Return the network of `spec` as its architecture initialises it under `spec.seed`, not frozen.

    With `download`, torchvision's published weights are fetched and loaded, by torchvision itself.
    """
    function = find_function(spec)
    args: dict[str, Any] = json.loads(spec.args)
    if is_torchvision(spec):
        args = _torchvision_arguments(spec, args, download=download)
    if complaint := misfit(function, args):
        raise JobFileError(f"{spec.architecture} does not take args {spec.args}: {complaint}.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)  # the CPU's alone: other devices' states are not saved
        try:
            module = function(**args)
        except Exception as problem:  # user's and libraries' code refuse arguments in many ways
            raise JobFileError(
                f"{spec.architecture} with args {spec.args} failed: {type(problem).__name__}: {problem}."
            ) from problem
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec.architecture} returned a {type(module).__name__}; wanted a torch.nn.Module.")
    return module


def default_preprocess(spec: NetworkSpec) -> Preprocess:
    """Return the preprocessing published with the weights of `spec`, else none at all."""
    published = _published(spec)
    if published is None:
        return Preprocess()
    preset = published.transforms()
    return Preprocess(
        resize=_side(preset.resize_size),
        crop=_side(preset.crop_size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _side(size: list[int]) -> int | tuple[int, int]:
    return size[0] if len(size) == 1 else (size[0], size[1])


def _published(spec: NetworkSpec) -> Any:
    """Return torchvision's entry of the weights that `spec` names, or None where it names none of torchvision's.

    Raises:
        JobFileError: If it looks like a name of torchvision's weights and is none.
    """
    if not is_torchvision(spec) or not _WEIGHTS_NAME.fullmatch(spec.weights) or _checkpoint_path(spec).exists():
        return None
    from torchvision.models import get_model_weights

    find_function(spec)  # an unknown architecture is named as such
    known = get_model_weights(spec.architecture.partition(":")[2]).__members__
    name = spec.weights.rpartition(".")[2]
    if name not in known:
        raise JobFileError(f"{spec.architecture} has no weights {spec.weights!r}; {nearest(name, known)}.")
    return known[name]


def _checkpoint_path(spec: NetworkSpec) -> Path:
    return Path(spec.base, spec.weights)


def _torchvision_arguments(spec: NetworkSpec, args: dict[str, Any], *, download: bool) -> dict[str, Any]:
    """Return the arguments with what torchvision itself would add for the weights, downloaded here or not."""
    if "weights" in args:
        raise JobFileError(f"{spec.architecture}: name the weights as the model's `weights`, not in its `args`.")
    name = spec.architecture.partition(":")[2]
    is_inception = name in {"googlenet", "inception_v3"}
    published = _published(spec)
    if download:
        _fetch(spec, published)
        return {**args, "weights": published, "progress": False}
    defaults: dict[str, Any] = {"weights": None}
    if is_inception:
        defaults["init_weights"] = False  # its own initialisation takes a minute
    if published is not None:
        defaults["num_classes"] = len(published.meta["categories"])
        if is_inception:
            defaults |= {"transform_input": True, "aux_logits": False}
    return {**defaults, **args}


def _fetch(spec: NetworkSpec, published: Any) -> None:
    """Bring published weights into torch's cache, making sure that they are tensors and nothing else.

    Raises:
        InputError: If they cannot be downloaded.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where it says what it downloads; stdout is for results
            torch.hub.load_state_dict_from_url(
                published.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except Exception as problem:  # no network, no space, a proxy's page instead of the file, ...
        raise InputError(
            f"the weights {spec.weights} of {spec.architecture} cannot be downloaded from {published.url} "
            f"({type(problem).__name__}: {problem}); put the file into {torch.hub.get_dir()}/checkpoints, or name a "
            "checkpoint file as `weights`."
        ) from problem
