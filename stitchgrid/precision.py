"""The device and the precision in which networks run, as a job asks for them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stitchgrid.errors import InputError


def choose_device(word: str) -> str:
    """Return the device that a job's word stands for here: "auto" is a GPU if torch finds one.

    Raises:
        InputError: If a GPU is asked for and torch finds none.
    """
    if word == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the job asks for a GPU and torch finds none that this process may use; set [numerics] device to "
            '"auto" or "cpu", or check --gpus-per-worker and the build of torch.'
        )
    if word != "auto":
        return word
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def running_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let networks run in fp32, tf32 or bf16 within a block; other products, as of Gram matrices, are never TF32."""
    with running_back_in(precision), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def running_back_in(precision: str) -> Iterator[None]:
    """Let gradients of networks be computed in fp32 or tf32; with bf16 they take the types of the forward pass."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32 = cudnn.allow_tf32 = False


SMALL_FLOPS = 5e8  # per image; in smaller networks the threads of a CPU would mostly wait for each other


@contextmanager
def num_threads_set(num: int) -> Iterator[None]:
    """Let operations on the CPU use `num` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def few_threads(flops: float) -> Iterator[None]:
    """Let a small network, of `flops` operations per image, use one thread; for runs on a few images at a time."""
    with num_threads_set(1 if flops < SMALL_FLOPS else torch.get_num_threads()):
        yield
