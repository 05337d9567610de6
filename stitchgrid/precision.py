"""Where networks run, and in which precision, as a job asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose_device(word: str) -> str:
    """Return the device that a job's word stands for here: "auto" is a GPU where torch finds one."""
    if word != "auto":
        return word
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def running_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let networks run in fp32, tf32 or bf16; products outside of it, those of Gram matrices too, are never TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
