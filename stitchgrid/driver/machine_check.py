"""Checks what a launch needs of this machine: versions, torch, GPUs, Ray, store, disks, cache; one finding each."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

from rich.filesize import decimal

from stitchgrid import __version__
from stitchgrid.errors import NoStoreError, StitchgridError
from stitchgrid.models.facts import installed_version
from stitchgrid.paths import named_path

NEEDED = (
    *("torch", "torchvision", "ray", "duckdb", "pyarrow", "numpy", "scipy", "scikit-learn"),
    *("pydantic", "safetensors", "matplotlib", "rich", "click", "prompt_toolkit", "pygments"),
)
OPTIONAL = {"timm": "timm", "boto3": "s3", "POT": "soft-matching", "pandas": "frames", "polars": "frames"}  # -> extra
LOW_DISK = 1_000_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check: ok, a note, or a failure with its remedy."""

    what: str
    told: str
    state: Literal["ok", "note", "FAIL"] = "ok"

    def __str__(self) -> str:
        return f"{self.state:4}  {self.what}: {self.told}"


def fail(what: str, told: object) -> Finding:
    """Return a finding that `what` fails, with the reason `told` on one line."""
    return Finding(what=what, told=" ".join(str(told).split()), state="FAIL")


def examine_machine(store_uri: str, address: str | None) -> Iterator[Finding]:
    """Yield a finding for each thing that a launch needs of this machine, as soon as it is known.

    Ray is left out where no `address` is given: whether a launch needs it is decided by the job.
    """
    yield _versions()
    yield _torch()
    yield _gpus()
    if address is not None:
        yield examine_ray(address)
    yield _store(store_uri)
    yield from _disks(store_uri)
    yield _cache()


def _versions() -> Finding:
    found = {name: installed_version(name) for name in (*NEEDED, *OPTIONAL)}
    if missing := [name for name in NEEDED if found[name] is None]:
        return fail("versions", f"not installed: {', '.join(missing)}; install stitchgrid again with pip.")
    told = [f"{name} {number}" for name, number in found.items() if number is not None]
    extras = sorted({f"stitchgrid[{OPTIONAL[name]}]" for name in OPTIONAL if found[name] is None})
    more = f"; not installed: {', '.join(extras)}" if extras else ""
    return Finding(
        what="versions", told=f"stitchgrid {__version__}, Python {platform.python_version()}, {', '.join(told)}{more}"
    )


def _torch() -> Finding:
    import torch

    from stitchgrid.cpus import num_cpus

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    try:
        torch.ones(64, 64) @ torch.ones(64, 64)
    except Exception as problem:  # a build for another processor
        return fail("torch", f"{torch.__version__} cannot compute here ({type(problem).__name__}: {problem})")
    return Finding(what="torch", told=f"{torch.__version__}, built {build}; {num_cpus()} CPUs for this process")


def _gpus() -> Finding:
    import torch

    num = torch.cuda.device_count()
    if num:
        all_of = [torch.cuda.get_device_properties(k) for k in range(num)]
        return Finding(what="GPUs", told=", ".join(f"{one.name} ({decimal(one.total_memory)})" for one in all_of))
    if Path("/proc/driver/nvidia/version").exists():
        why = "this torch is built for CPUs" if torch.version.cuda is None else "torch finds none"
        return Finding(what="GPUs", told=f"there is an NVIDIA driver, but {why}", state="note")
    return Finding(what="GPUs", told="none; networks run on the CPU")


def examine_ray(address: str) -> Finding:
    """Return whether a worker of Ray answers at an address; "none" asks for no Ray."""
    if address == "none":
        return Finding(what="Ray", told="not asked for (--address none)")
    from stitchgrid.cluster import call_remotely

    start = perf_counter()
    try:
        call = call_remotely(address, platform.node, workers=1)
    except StitchgridError as problem:
        return fail("Ray", f"{problem} '--address none' works without Ray.")
    if call.problem:
        return fail("Ray", f"{call.problem}. '--address none' works without Ray.")
    seconds = perf_counter() - start
    return Finding(what="Ray", told=f"a worker on {call.answer} answered after {seconds:.0f} s (--address {address})")


def _store(uri: str) -> Finding:
    from stitchgrid.store import Store

    try:
        store = Store.open(uri)
        num = len(store.sweep_names())
    except NoStoreError:
        folder = None if "://" in uri else _there(named_path(uri))
        if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
            return fail("store", f"{uri} does not exist, and cannot be made in {folder}; name another with --store.")
        return Finding(what="store", told=f"{uri} does not exist yet; a launch makes it")
    except StitchgridError as problem:
        return fail("store", problem)
    if "://" not in uri and not os.access(named_path(uri), os.W_OK):
        return Finding(what="store", told=f"{store.uri} can be read, but not written", state="note")
    return Finding(what="store", told=f"{store.uri}, {num} sweep{'s' * (num != 1)}")


def _there(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    whole = path.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def _disks(store_uri: str) -> Iterator[Finding]:
    """Yield how much space is free on the disks of the store and of the cache."""
    from stitchgrid.cache import default_cache

    places = {} if "://" in store_uri else {"disk of the store": named_path(store_uri)}
    with suppress(StitchgridError):  # `_cache` reports it
        places["disk of the cache"] = default_cache()
    for what, path in places.items():
        free = shutil.disk_usage(_there(path)).free
        if free < LOW_DISK:
            yield fail(what, f"{decimal(free)} free at {path}; a launch needs {decimal(LOW_DISK)} and more.")
        else:
            yield Finding(what=what, told=f"{decimal(free)} free")


def _cache() -> Finding:
    from stitchgrid.cache import default_cache

    try:
        folder = default_cache()
    except StitchgridError as problem:
        return fail("cache", problem)
    if not os.access(_there(folder), os.W_OK):
        return Finding(
            what="cache",
            told=f"{folder} cannot be written, so each worker keeps images and weights of its own; name another folder "
            "in STITCHGRID_CACHE",
            state="note",
        )
    return Finding(what="cache", told=str(folder))
