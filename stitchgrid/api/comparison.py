"""Compare networks that are live in this process: `stitchgrid.compare`."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import nn

from stitchgrid.api.runs import Run
from stitchgrid.api.torch_settings import as_it_was
from stitchgrid.catalog import Catalog
from stitchgrid.catalog.findings import diverged_cells
from stitchgrid.datasets import Images
from stitchgrid.datasets.archives import open_image_folder
from stitchgrid.datasets.in_memory import draw_given, given
from stitchgrid.display import Display
from stitchgrid.driver import Launch, Placement
from stitchgrid.errors import InputError, nearest
from stitchgrid.jobfile import Job, parse_job
from stitchgrid.live_networks import LIVE, Live
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.models.unwrap import unwrapped_from
from stitchgrid.precision import choose_device
from stitchgrid.private_folder import numbered_folder
from stitchgrid.store import Store

Words = str | Sequence[str]


def compare(
    networks: Mapping[str, nn.Module] | Sequence[nn.Module],
    images: Any,
    labels: Any = None,
    *,
    matchers: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = ("cka",),
    layers: Words | Mapping[str, Words] = "blocks",
    fit: Any = None,
    samples: int | None = None,
    pairs: str | Sequence[tuple[str, str]] | None = None,
    store: str | os.PathLike[str] | None = None,
    name: str = "compare",
    seed: int = 0,
    device: str | None = None,
    precision: str = "fp32",
    batch_size: int = 256,
    preprocess: Mapping[str, Any] | None = None,
    output: str | int | Mapping[str, str | int] | None = None,
    head: str | Mapping[str, str] | None = None,
    groups: int | None = None,
    shuffled: int = 0,
    untrained: bool | Mapping[str, nn.Module] = False,
    retry_failed: bool = False,
    progress: bool = True,
) -> Run:
    """Compare live networks layer by layer, in this process and without Ray.

    A comparison is a launch of a job: it checks the networks in the same way and gives the same flags and the same
    numbers. (One difference: the initial values of a trained map depend on the address of its cell, and a live network
    has an address of its own.) The modules themselves stay as they are: copies that share their weights run, in
    evaluation mode, on the modules' device.

    Args:
        networks: Name -> module that takes images (N, C, H, W) and returns scores (N, K). The networks of a list are
            named a, b, c, ...
        images: The evaluation images: a tensor or array (N, C, H, W), a torch Dataset of (image, label) or of images,
            a DataLoader (its data set is used), a tuple (images, labels), or the path of a folder that has a folder of
            image files for each class. Floating-point images go to the networks unchanged; bytes and image files are
            scaled to [0, 1] first.
        labels: Class of each image, (N,): its position among a network's scores, a whole number from 0 to K - 1.
            None: the labels that the images come with, if any. Without labels, stitched networks are compared with the
            target only. False: labels are ignored.
        matchers: Kinds, or tables as in a job file: {"kind": "task_loss", "epochs": 5}.
        layers: "blocks", "all", a glob or several globs; for all networks, or a mapping by name of network.
        fit: The images on which maps are fitted, if a matcher fits maps. A number: that many of `images`, which are
            then not evaluated (default: half of them). Or other images, in any form that `images` takes; a folder must
            lie beside the folder of `images`.
        samples: How many images are evaluated, drawn by `seed`; None: all of them. Kinds that compare every image with
            every other one, such as cka, still use 1000 of them at most: {"kind": "cka", "samples": "all"} lifts that.
        pairs: "all", "across" (default for several networks), "within" (default for one), or
            [(source, target), ...].
        store: A folder or s3://bucket/prefix that keeps the values; values that it holds already are not computed
            again. None: a temporary folder, removed together with the Run.
        name: Name of the sweep in the store. Other networks or images make the next revision of that sweep.
        seed: Seed of the order of the images, 0 or higher.
        device: "cpu" or "cuda"; None: the device of the modules.
        precision: "fp32", "tf32" or "bf16", for running the networks.
        batch_size: How many images run together; changes only the speed.
        preprocess: resize, crop, mean, std, channels, as in a job file; applies to bytes and image files, for all
            networks.
        output: Which part of what a network returns holds the scores: key, attribute or position; for all networks,
            or a mapping by name of network.
        head: What the scores mean, as a job file's `head` ("embedding": no classes); for all networks, or a mapping by
            name of network. None: stitchgrid finds out.
        groups: Number of groups into which the images are divided, for intervals of all values.
        shuffled: How many times images are shuffled, to see which values chance gives.
        untrained: Whether networks are also compared with their untrained twins: copies whose modules draw their
            parameters anew (`reset_parameters`, generator seeded 0). Or name of network -> a module as it is before
            training, for networks whose modules cannot do so; the other networks get a copy.
        retry_failed: Compute again the cells that failed before.
        progress: Whether messages and progress are shown, on stderr.

    Returns:
        The sweep. A store cannot build live networks again, so `stitchgrid resume` refuses such a sweep and says why:
        call `compare` again instead.

    Raises:
        InputError: If networks, images or labels are missing, are not of a type named above, or do not fit together.
        JobFileError: If matchers, layers or other words are unknown, a network cannot be cut, or labels are numbers
            that no network has as classes.
        StitchgridError: If the store cannot be used.
        KeyboardInterrupt: If it was interrupted; a store that you name keeps what is finished.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    >>> run = compare({"net": net}, torch.rand(32, 3, 8, 8), layers="all", progress=False)
    >>> [round(float(value), 3) for value in run.matrix("net", "net", "cka").values.diagonal()]
    [1.0, 1.0, 1.0, 1.0]
    """
    modules = _modules(networks)
    tables = [{"kind": one} if isinstance(one, str) else dict(one) for one in _listed(matchers)]
    data, held = _images(images, labels, fit, tables, samples=samples, seed=seed)
    if held is not None and held.eval.is_float and preprocess is not None:
        raise InputError(
            "floating-point images go to the networks unchanged: apply `preprocess` to them yourself, or give bytes "
            "(uint8) or a folder."
        )
    where = _device(modules, device)
    if preprocess is None and held is not None and held.is_grey:
        preprocess = {"channels": 1}
    with_table = {"preprocess": dict(preprocess)} if preprocess else {}
    of_networks = {"output": output, "head": head}
    table = {
        "name": name,
        "seed": seed,
        "data": data,
        "numerics": {"device": where.type, "precision": precision, "batch_size": batch_size},
        "models": [
            {
                "name": of,
                "architecture": f"{LIVE}:{of}",
                "weights": LIVE,
                "layers": list(_listed(_said("layers", layers, of, modules) or "blocks")),
                **with_table,
                **_told({word: _said(word, value, of, modules) for word, value in of_networks.items()}),
            }
            for of in modules
        ],
        "grid": {"pairs": _pairs(pairs, modules)},
        "matchers": tables,
        "controls": {"shuffled": shuffled, "untrained": untrained is not False},
        **({"intervals": {"groups": groups}} if groups else {}),
    }
    job = parse_job(table, title="these networks cannot be compared:", base=Path.cwd())
    live = Live(networks=modules, images=held, twins=_twins(untrained, modules))
    return _run(job, live, store, where, progress=progress, retry_failed=retry_failed)


def _run(
    job: Job,
    live: Live,
    store: str | os.PathLike[str] | None,
    device: torch.device,
    *,
    progress: bool,
    retry_failed: bool,
) -> Run:
    folder = os.fspath(numbered_folder("compare")) if store is None else None
    try:
        opened = Store.open(folder or os.fspath(store or ""), create=True)
        where = Placement(address="none", cpus_per_worker=torch.get_num_threads())
        with live.present(), as_it_was(device):
            display = Display(quiet=not progress)
            summary = Launch(job, opened, where, display).run(update=True, retry_failed=retry_failed)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    run = Run(opened, job.name, live=live, summary=summary)
    if progress and any(MATCHERS[matcher.kind].is_trained for matcher in job.matchers):
        with Catalog(opened) as catalog:
            for line in diverged_cells(catalog, job.name):
                display.say(line)
    if folder is not None:
        finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run


def _modules(networks: Mapping[str, nn.Module] | Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Return the modules by name.

    Raises:
        InputError: If there is none, or one is not a module.
    """
    if isinstance(networks, nn.Module):
        networks = [networks]
    if not isinstance(networks, Mapping):
        networks = {chr(ord("a") + position): module for position, module in enumerate(networks)}
    if not networks:
        raise InputError("compare wants at least one network, got none.")
    return {name: unwrapped_from(module, f"network {name!r} is") for name, module in networks.items()}


def _twins(untrained: bool | Mapping[str, nn.Module], names: Mapping[str, Any]) -> dict[str, nn.Module]:
    if isinstance(untrained, bool):
        return {}
    found = {name: _said("untrained", untrained, name, names) for name in names}
    return {
        name: unwrapped_from(twin, f"the untrained twin of {name!r} is")
        for name, twin in found.items()
        if twin is not None
    }


def _listed(value: Any) -> Sequence[Any]:
    return (value,) if isinstance(value, str | Mapping) else tuple(value)


def _said(word: str, value: Any, name: str, names: Mapping[str, Any]) -> Any:
    """Return the value of an argument for one network: the one value for all networks, else by name, else None.

    Raises:
        InputError: If the argument names an unknown network.
    """
    if not isinstance(value, Mapping):
        return value
    if unknown := [one for one in value if one not in names]:
        raise InputError(f"`{word}` names {unknown[0]!r}, which is not a network; {nearest(unknown[0], names)}.")
    return value.get(name)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {word: value for word, value in values.items() if value is not None}


def _pairs(pairs: str | Sequence[tuple[str, str]] | None, names: Mapping[str, Any]) -> Any:
    if pairs is None:
        return "across" if len(names) > 1 else "within"
    return pairs if isinstance(pairs, str) else [list(pair) for pair in pairs]


def _device(modules: Mapping[str, nn.Module], asked: str | None) -> torch.device:
    """Return the device on which networks run.

    Raises:
        InputError: If the modules lie on several devices and `device` does not choose one.
    """
    if asked is not None:
        return torch.device(choose_device(asked))
    found = {p.device for module in modules.values() for p in (*module.parameters(), *module.buffers())}
    if len(found) > 1:
        raise InputError(
            f"the networks lie on {', '.join(sorted(map(str, found)))}; choose where they run: device="
            '"cpu" or device="cuda".'
        )
    return found.pop() if found else torch.device("cpu")


def _images(
    images: Any, labels: Any, fit: Any, matchers: Sequence[Mapping[str, Any]], *, samples: int | None, seed: int
) -> tuple[dict[str, Any], Images | None]:
    """Return the job's [data], and the live images (None where the images come from files)."""
    kinds = [MATCHERS[one["kind"]] for one in matchers if one.get("kind") in MATCHERS]
    fits = any(about.family == "stitcher" for about in kinds)
    if isinstance(images, str | os.PathLike):
        return _folder(Path(images), labels, fit, fits=fits, samples=samples), None
    seen = given("images", images, None if labels is False else labels)
    if fit is None:
        fit = (seen.num if samples is None else min(seen.num, 2 * samples)) // 2 if fits else 0
    if not isinstance(fit, int):
        fit = given("fit", fit)
    found = draw_given(seen, fit if fits else 0, seed=seed, num=samples, labelled=labels is not False)
    if needing := [about.kind for about in kinds if about.needs_labels and not found.is_labelled]:
        raise InputError(f"{', '.join(needing)} needs labels for training, and the images have none; give `labels`.")
    splits = {"fit": {"split": "fit"}, "eval": {"split": "eval"}}
    return {"dataset": LIVE, **splits, **_labels(found.is_labelled)}, found


def _labels(are_known: bool) -> dict[str, str]:
    return {} if are_known else {"labels": "agreement"}


def _folder(path: Path, labels: Any, fit: Any, *, fits: bool, samples: int | None) -> dict[str, Any]:
    """Return the job's [data] for a folder of images in which each folder is a class.

    Raises:
        InputError: If there is no such folder, or the folder of `fit` does not lie beside it.
    """
    if labels is not None and labels is not False:
        raise InputError("the classes of a folder's images are the folders in it; leave `labels` out.")
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; give one that has a folder of images for each class.")
    data: dict[str, Any] = {"dataset": "imagefolder", "root": str(path.parent), **_labels(labels is not False)}
    if isinstance(fit, str | os.PathLike):
        other = Path(fit).expanduser().resolve()
        if other.parent != path.parent:
            raise InputError(f"fit must be a folder beside {path}, got {other}; move or link it there.")
        return {**data, "eval": _split(path, samples), "fit": _split(other, None)}
    if fit is not None and not isinstance(fit, int):
        raise InputError("if `images` is a folder, `fit` must be a number of its images, or a folder beside it.")
    if not fits:
        return {**data, "eval": _split(path, samples), "fit": _split(path, None)}
    num = open_image_folder(path.parent, [path.name]).listing(path.name).num
    fit = (num if samples is None else min(num, 2 * samples)) // 2 if fit is None else fit
    return {**data, "eval": _split(path, num - fit if samples is None else samples), "fit": _split(path, fit)}


def _split(path: Path, samples: int | None) -> dict[str, Any]:
    return {"split": path.name, **({} if samples is None else {"samples": samples})}
