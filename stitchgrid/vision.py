"""What is used of torchvision, imported without torch's compiler.

Importing torchvision imports torch._dynamo, for one function of it that tells whether a compiler can be had: more time
than torchvision itself takes, in every process. Until something asks for it, a stand-in takes its place.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for a module that is imported when something of it is wanted, but for the one function."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_imported(), name)

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """Ask the module itself."""
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
    del sys.modules[_COMPILER]  # whoever asks from now on gets the module itself

#: What torchvision's tracer takes for leaves unless it is told.
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
