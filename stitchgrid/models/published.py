"""Weights that libraries publish: their names, their preprocessing, and what a network needs for them."""

import contextlib
import math
import re
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from stitchgrid.errors import InputError, JobFileError, nearest
from stitchgrid.models.architecture import find_function, library_of
from stitchgrid.models.huggingface import huggingface_preprocess
from stitchgrid.preprocess import INTERPOLATIONS
from stitchgrid.records import HUGGINGFACE, NetworkSpec, Preprocess, architecture_word

PRETRAINED = "pretrained"  # the word where their names are part of the architecture: timm:NAME.TAG, huggingface:NAME
_TORCHVISION_NAME = re.compile(r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*")  # IMAGENET1K_V1, ResNet18_Weights.DEFAULT


class Published(ABC):
    """One published set of weights."""

    @abstractmethod
    def preprocess(self) -> Preprocess:
        """Return the preprocessing published with the weights."""

    @abstractmethod
    def fetching(self) -> dict[str, Any]:
        """Return the arguments with which the library downloads and loads the weights; downloads torchvision's itself.

        Raises:
            InputError: If the weights cannot be downloaded.
        """

    @abstractmethod
    def implied(self) -> dict[str, Any]:
        """Return the arguments with which the library builds the network for them, without loading anything."""


def find_published(spec: NetworkSpec) -> Published | None:
    """Return the published weights that `spec` names, None where it names none; a file of that name takes precedence.

    Raises:
        JobFileError: If a word looks like a name of published weights and is none.
    """
    library = library_of(spec)
    if library == "torchvision" and _TORCHVISION_NAME.fullmatch(spec.weights) and not _is_file(spec):
        return _OfTorchvision(spec)
    if library == "timm" and spec.weights == PRETRAINED and not _is_file(spec):
        return _OfTimm(spec)
    if library == HUGGINGFACE and spec.weights == PRETRAINED:
        return _OfHuggingFace(spec)
    return None


def _is_file(spec: NetworkSpec) -> bool:
    return Path(spec.base, spec.weights).exists()


class _OfTorchvision(Published):
    def __init__(self, spec: NetworkSpec):
        from torchvision.models import get_model_weights

        find_function(spec)  # raises the error of an unknown architecture
        self.spec = spec
        self.name = architecture_word(spec.architecture).name
        known = get_model_weights(self.name).__members__
        entry = spec.weights.rpartition(".")[2]
        if entry not in known:
            raise JobFileError(f"{spec.architecture} has no weights {spec.weights!r}; {nearest(entry, known)}.")
        self.entry: Any = known[entry]
        if self.entry.meta["categories"] is None:
            raise JobFileError(
                f"the weights {spec.weights} of {spec.architecture} have no head, so they give no class scores; "
                f"{nearest('', set(known) - {entry})}."
            )

    def preprocess(self) -> Preprocess:
        preset = self.entry.transforms()
        return Preprocess(
            resize=_side(preset.resize_size),
            crop=_side(preset.crop_size),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )

    def implied(self) -> dict[str, Any]:
        made: dict[str, Any] = {"num_classes": len(self.entry.meta["categories"])}
        if self.name in {"googlenet", "inception_v3"}:
            made["transform_input"] = True
        if self.name == "googlenet":
            made["aux_logits"] = False
        if self.name.startswith("vit_"):
            made["image_size"] = self.entry.meta["min_size"][0]
        if self.name == "maxvit_t":
            made["input_size"] = self.entry.meta["min_size"]
        return made

    def fetching(self) -> dict[str, Any]:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # where it says what it downloads; stdout is for results
                torch.hub.load_state_dict_from_url(  # into torch's cache; `weights_only` accepts tensors alone
                    self.entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
                )
        except Exception as problem:  # no network, no space, a proxy's page instead of the file, ...
            raise InputError(
                f"the weights {self.spec.weights} of {self.spec.architecture} cannot be downloaded from "
                f"{self.entry.url} ({type(problem).__name__}: {problem}); put the file into "
                f"{torch.hub.get_dir()}/checkpoints, or name a checkpoint file as `weights`."
            ) from problem
        return {"weights": self.entry, "progress": False}


class _OfTimm(Published):
    def __init__(self, spec: NetworkSpec):
        import timm

        find_function(spec)
        self.spec = spec
        self.config: Any = timm.get_pretrained_cfg(architecture_word(spec.architecture).name)
        if self.config is None or not self.config.has_weights:
            raise JobFileError(
                f"timm publishes no weights for {spec.architecture}; name a checkpoint file as `weights`, or 'random'."
            )

    def preprocess(self) -> Preprocess:
        config = self.config
        size = tuple(config.input_size[1:])
        is_plain = config.crop_mode == "squash" or (config.crop_mode == "center" and size[0] == size[1])
        if not is_plain or config.interpolation not in INTERPOLATIONS:
            raise JobFileError(
                f"{self.spec.architecture} wants its images cropped by {config.crop_mode!r} to {size[0]}x{size[1]}, "
                f"{config.interpolation}, which a `preprocess` cannot do; give the model another `preprocess`."
            )
        scaled = tuple(math.floor(side / config.crop_pct) for side in size)
        return Preprocess(
            resize=scaled[0] if config.crop_mode == "center" else (scaled[0], scaled[1]),
            crop=size[0] if size[0] == size[1] else (size[0], size[1]),
            mean=tuple(config.mean),
            std=tuple(config.std),
            interpolation=config.interpolation,
        )

    def implied(self) -> dict[str, Any]:
        return {}  # timm builds a name the same with and without its weights

    def fetching(self) -> dict[str, Any]:
        return {"pretrained": True}


class _OfHuggingFace(Published):
    def __init__(self, spec: NetworkSpec):
        find_function(spec)
        self.place = architecture_word(spec.architecture).name, spec.base

    def preprocess(self) -> Preprocess:
        return huggingface_preprocess(*self.place)

    def implied(self) -> dict[str, Any]:
        return {}

    def fetching(self) -> dict[str, Any]:
        return {"pretrained": True}


def _side(size: list[int]) -> int | tuple[int, int]:
    return size[0] if len(size) == 1 else (size[0], size[1])
