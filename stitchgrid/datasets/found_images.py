"""Find the images that a user names by a path or name: data set, root and splits for a job file, and counts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stitchgrid.datasets import open_images
from stitchgrid.datasets.image_files import is_image
from stitchgrid.datasets.registry import TORCHVISION, known_datasets, known_splits, needs_root, own_parts
from stitchgrid.errors import InputError, nearest, one_line
from stitchgrid.paths import named_path
from stitchgrid.printable import in_one_line, is_text, printable
from stitchgrid.records import DataSpec

TO_FIT_ON = ("train", "training", "fit", "trainval")  # names of splits for fitting, the preferred first
TO_REPORT_ON = ("test", "val", "valid", "validation", "eval")  # names of splits for evaluation, the preferred first
MOST_LOOKED_AT = 1_000  # most files of a folder that are checked for images
NUM_OPENED = 20  # images that are opened to see whether they have one size


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """Images of a data set, in two splits or one."""

    dataset: str  # as in a job file, with absolute paths
    root: str | None
    fit_split: str
    eval_split: str
    download: bool = False
    num_fit: int = 0  # images of the fit split; the same as `num_eval` if there is only one split
    num_eval: int = 0
    classes: tuple[str, ...] = ()
    is_of_one_size: bool = True

    @property
    def spec(self) -> DataSpec:
        """The images as a `DataSpec`."""
        return DataSpec(
            dataset=self.dataset,
            root=self.root,
            fit_split=self.fit_split,
            eval_split=self.eval_split,
            download=self.download,
        )


def find_images(word: str) -> FoundImages:
    """Return the images that a word names: a folder, an archive, arrays, a known data set, or FILE.py:function.

    A few images are opened, and all are counted.

    Raises:
        InputError: If nothing has that name, or a folder cannot be read or has not the layout of an image folder.
    """
    try:
        return _counted(_named(word))
    except OSError as problem:
        raise InputError(
            f"cannot look for images in {in_one_line(word)[:200]!r} ({one_line(problem, longest=200)}); name a folder "
            "of which everything can be read."
        ) from problem


def _named(word: str) -> FoundImages:
    path = named_path(word)
    if (own := own_parts(word)) is not None:
        return FoundImages(
            dataset=f"{named_path(own[0]).absolute()}:{own[1]}", root=None, fit_split="train", eval_split="test"
        )
    if path.is_dir() and any(one.suffix == ".npz" for one in path.iterdir()):
        return _of_splits(path, [one.stem for one in path.iterdir() if one.suffix == ".npz"], "arrays")
    if path.is_dir():
        return _folder(path.absolute())
    if path.is_file():
        dataset = "arrays" if path.suffix == ".npz" else "imagefolder"
        return FoundImages(dataset=dataset, root=str(path.absolute()), fit_split="train", eval_split="test")
    if (splits := known_splits(word)) is not None:
        found = _of_splits(Path("data").absolute(), list(splits), word)
        is_there = Path("data").is_dir()
        return replace(
            found,
            root=found.root if needs_root(word) else None,
            download=word in TORCHVISION and TORCHVISION[word].can_download and not is_there,
        )
    raise InputError(
        f"found no images {word!r}: there is no such folder or file, and no data set of that name; "
        f"{nearest(word, known_datasets())}, or FILE.py:function."
    )


def _of_splits(root: Path, splits: list[str], dataset: str) -> FoundImages:
    """Return splits for fitting and evaluation by their usual names; else the first two, or the only one for both."""
    names = sorted(splits)
    if no_text := [name for name in names if not is_text(name)]:
        raise InputError(f"{root}: the name of the split {printable(no_text[0])!r} is no text in UTF-8; rename it.")
    fit = next((name for name in TO_FIT_ON if name in names), names[0])
    others = [name for name in names if name != fit] or [fit]
    evaluation = next((name for name in TO_REPORT_ON if name in others), others[0])
    return FoundImages(dataset=dataset, root=str(root), fit_split=fit, eval_split=evaluation)


def _folder(root: Path) -> FoundImages:
    """Return the splits of a folder with files SPLIT/CLASS/FILE, or CLASS/FILE if the folder itself is a split."""
    folders = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")]
    splits = [one.name for one in folders if any(_holds_images(other) for other in one.iterdir() if other.is_dir())]
    if splits:
        return _of_splits(root, splits, "imagefolder")
    classes = [one.name for one in folders if _holds_images(one)]
    if set(classes) & {*TO_FIT_ON, *TO_REPORT_ON}:
        raise InputError(
            f"the images of {root} lie in {', '.join(sorted(classes))}, without a folder for each class; in a split, "
            f"each class is a folder: {sorted(classes)[0]}/CLASS/FILE. If there are no classes, use one folder: "
            f"{sorted(classes)[0]}/all/FILE."
        )
    if classes:
        return FoundImages(dataset="imagefolder", root=str(root.parent), fit_split=root.name, eval_split=root.name)
    got = "images without a folder for each class" if _holds_images(root) else "no images"
    raise InputError(
        f"wanted images in {root}/SPLIT/CLASS/FILE or {root}/CLASS/FILE, got {got}. If there are no classes, use one "
        f"folder: {root}/all/FILE."
    )


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) for name in _some_files(folder))


def _some_files(folder: Path) -> Iterator[str]:
    seen = 0
    for _, _, names in os.walk(folder):
        for name in names:
            yield name
            if (seen := seen + 1) >= MOST_LOOKED_AT:
                return


def _counted(found: FoundImages) -> FoundImages:
    """Return the images with their numbers, their classes, and whether a few of them have one size."""
    one = replace(found.spec, eval_samples=1, fit_samples=1)
    num_fit = open_images(one, need_fit=1).num_fit_listed
    if found.fit_split == found.eval_split:
        num_fit = num_eval = num_fit + 1
    else:
        turned = replace(one, fit_split=one.eval_split, eval_split=one.fit_split)
        num_eval = open_images(turned, need_fit=1).num_fit_listed
    some = open_images(replace(found.spec, eval_samples=min(NUM_OPENED, num_eval)), need_fit=0)
    return replace(
        found,
        num_fit=num_fit,
        num_eval=num_eval,
        classes=some.class_names,
        is_of_one_size=some.eval.size is not None,
    )
