"""The parts of torchvision that stitchgrid uses, imported without torch's compiler.

Importing torchvision imports torch._dynamo, for one function that tells whether a compiler is available. In every
process that takes more time than torchvision itself. A stand-in takes its place until something else uses it.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from stitchgrid.errors import StitchgridError, one_line

_COMPILER = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands in for a module, which is imported when an attribute of it is first used or the one function is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_imported(), name)

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """Import the module, and return its own answer."""
        return bool(_imported().is_compile_supported(device_type))


def _imported() -> ModuleType:
    if isinstance(sys.modules.get(_COMPILER), _Later):
        del sys.modules[_COMPILER]
    return import_module(_COMPILER)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


if "torchvision" not in sys.modules:
    sys.modules.setdefault(_COMPILER, _Later(_COMPILER))

try:
    # Not torchvision.transforms.v2, which imports the compiler itself and computes the same.
    from torchvision.models.feature_extraction import NodePathTracer, _set_default_tracer_kwargs
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
    from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer
    from torchvision.ops import Permute
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize
except Exception as problem:  # a build for another torch fails in many ways: RuntimeError, ImportError, OSError, ...
    raise StitchgridError(
        f"torchvision {_version('torchvision')} cannot be imported with torch {_version('torch')} "
        f"({one_line(problem)}): they do not fit together. Install both again in one command, with the same "
        "--index-url or without one: pip install --force-reinstall torch torchvision"
    ) from problem
finally:
    if isinstance(sys.modules.get(_COMPILER), _Later):
        del sys.modules[_COMPILER]  # later imports get the module itself

#: The modules that torchvision's tracer takes as leaves by default.
default_tracer_kwargs = _set_default_tracer_kwargs

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "EncoderBlock",
    "InterpolationMode",
    "NodePathTracer",
    "Permute",
    "ResNet",
    "VisionTransformer",
    "center_crop",
    "default_tracer_kwargs",
    "resize",
]
