"""The parts of torchvision that stitchgrid uses, imported without torch's compiler.

Importing torchvision imports torch._dynamo, for one function that tells whether a compiler is available. In every
process that takes more time than torchvision itself. A stand-in takes its place until something else uses it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

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


if "torchvision" not in sys.modules:
    sys.modules.setdefault(_COMPILER, _Later(_COMPILER))

# Not torchvision.transforms.v2, which imports the compiler itself and computes the same.
from torchvision.models.feature_extraction import NodePathTracer, _set_default_tracer_kwargs  # noqa: E402
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # noqa: E402
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer  # noqa: E402
from torchvision.ops import Permute  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms.functional import center_crop, resize  # noqa: E402

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
