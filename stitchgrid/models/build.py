"""A network specification -> the network, with its weights; frozen unless it is to be trained."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError, JobFileError, is_out_of_memory, one_line
from stitchgrid.live_networks import LIVE
from stitchgrid.models.architecture import find_function, library_of, line_of, misfit
from stitchgrid.models.freeze import freeze
from stitchgrid.models.memory import count_bytes, memory_told
from stitchgrid.models.process_guard import settings_kept
from stitchgrid.models.published import find_published
from stitchgrid.models.unwrap import unwrapped
from stitchgrid.models.weights import check_finite, load_adapter, load_into, load_weights
from stitchgrid.records import NetworkSpec, Preprocess

_CPU = torch.device("cpu")
_WEIGHTS_ARGUMENTS = {
    "torchvision": ("weights",),
    "timm": ("pretrained", "checkpoint_path"),
    "huggingface": ("pretrained",),
}


def build_network(spec: NetworkSpec, *, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the network of `spec` on the CPU, frozen.

    Args:
        spec: What a job file says of the network.
        state: Its tensors, where they are known already; then `spec.weights` is not looked at.

    Raises:
        JobFileError: If the architecture does not exist or does not take the arguments.
        InputError: If code or weights are missing, invalid, or of another architecture.
    """
    assert not spec.is_made or state is not None, f"{spec.name} is trained by the sweep: its state is an artefact"
    published = None if state is not None else find_published(spec)
    module = make_network(spec, download=published is not None)
    if state is not None:
        load_into(module, state, origin=f"the given state of {spec.name!r}")
    elif published is None and spec.weights not in ("random", LIVE):
        path = Path(spec.base, spec.weights)
        load = partial(load_weights, word=spec.weights, key=spec.weights_key, strip=spec.weights_strip)
        load(module, path, limits=spec.limits)
    if spec.weights_adapter is not None and state is None:
        load_adapter(module, Path(spec.base, spec.weights_adapter), spec.limits)
    check_finite(module, origin=_origin(spec, is_given=state is not None))
    return freeze(module)


def _origin(spec: NetworkSpec, *, is_given: bool) -> str:
    """Return where the weights of a network come from, in words."""
    if is_given:
        return f"the given state of {spec.name!r}"
    if spec.weights == LIVE:
        return "the weights of the module"
    return f"what {spec.architecture} draws" if spec.weights == "random" else f"weights {spec.weights!r}"


def make_network(spec: NetworkSpec, *, download: bool = False) -> nn.Module:
    """Return the network of `spec` as its architecture initialises it under `spec.seed`, not frozen.

    With `download`, published weights are fetched and loaded, by the library that publishes them.

    Raises:
        JobFileError: If the architecture does not exist or does not take the arguments.
        InputError: If code or published weights are missing, or the network does not fit into memory.
    """
    with settings_kept(seed=0):
        function = find_function(spec)
    args = _arguments(spec, download=download)
    if complaint := misfit(function, args):
        raise JobFileError(f"{spec.architecture} does not take args {spec.args}: {complaint}.")
    count = _counter(function, args)
    with memory_told(f"model {spec.name!r}", device=_CPU, count=count), settings_kept(seed=spec.seed):
        made = _call(function, args, spec, download=download)
    return unwrapped(made, spec.architecture)


def _call(function: Callable[..., Any], args: dict[str, Any], spec: NetworkSpec, *, download: bool) -> Any:
    try:
        return function(**args)
    except (KeyboardInterrupt, InputError):
        raise
    except BaseException as problem:  # user's and libraries' code refuse arguments in many ways
        if is_out_of_memory(problem):
            raise
        said = one_line(problem)
        is_refusal = isinstance(problem, TypeError | ValueError | RuntimeError) and not isinstance(problem, OSError)
        if download and library_of(spec) == "timm" and not is_refusal:
            raise InputError(
                f"the weights of {spec.architecture} cannot be downloaded ({said}); fill the cache of Hugging Face's "
                "hub where there is a network, or name a checkpoint file as `weights`."
            ) from problem
        raise JobFileError(f"{spec.architecture} with args {spec.args} failed: {said}{line_of(problem)}.") from problem


def _counter(function: Callable[..., Any], args: dict[str, Any]) -> Callable[[], int | None]:
    """Return a function that counts the bytes of the network without making any of its tensors."""

    def count() -> int | None:
        try:
            with settings_kept(seed=0), torch.device("meta"):
                return count_bytes(function(**args))
        except KeyboardInterrupt:
            raise
        except BaseException:  # its code needs values of its tensors
            return None

    return count


def default_preprocess(spec: NetworkSpec) -> Preprocess:
    """Return the preprocessing published with the weights of `spec`, else none at all."""
    published = find_published(spec)
    return Preprocess() if published is None else published.preprocess()


def _arguments(spec: NetworkSpec, *, download: bool) -> dict[str, Any]:
    """Return the arguments, with those that a library itself adds for its weights, even if they are not downloaded."""
    args: dict[str, Any] = json.loads(spec.args)
    library = library_of(spec)
    if any(word in args for word in _WEIGHTS_ARGUMENTS.get(library or "", ())):
        raise JobFileError(f"{spec.architecture}: name the weights as the model's `weights`, not in its `args`.")
    published = find_published(spec)
    if download and published is not None:
        return {**args, **published.fetching()}
    defaults: dict[str, Any] = {}
    if library == "torchvision":
        defaults["weights"] = None
        if spec.architecture in {"torchvision:googlenet", "torchvision:inception_v3"}:
            defaults["init_weights"] = False  # its own initialisation takes a minute
    if published is not None:
        defaults |= published.implied()
    return {**defaults, **args}
