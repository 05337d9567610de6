"""Classification data sets of torchvision, by class name."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from stitchgrid.datasets.decoding import remarks_on, to_rgb
from stitchgrid.datasets.folder import stamp_of
from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.pixels import Bounds
from stitchgrid.datasets.registry import TORCHVISION
from stitchgrid.datasets.sources import Decoded, Position, Unreadable, unreadable
from stitchgrid.errors import InputError, nearest
from stitchgrid.records import digest

FOLDER_ATTRIBUTES = ("split_folder", "_base_folder", "_data_dir")  # where a class keeps its own files below root
CLASS_ATTRIBUTES = ("classes", "categories", "all_categories")


class TorchvisionSource:
    """One data set of torchvision; the files of all splits in use must be there, or may be downloaded."""

    def __init__(self, name: str, root: Path, splits: Sequence[str], *, download: bool, bounds: Bounds | None = None):
        self._name = name
        self._root = root
        self._split_names = tuple(dict.fromkeys(splits))
        self._download = download
        self._bounds = bounds

    def signature(self) -> str | None:
        """Return a digest over path and stamp of the files below the folder of the data set."""
        lines: set[str] = set()
        for dataset in self._splits.values():
            folders = [Path(getattr(dataset, name)) for name in FOLDER_ATTRIBUTES if hasattr(dataset, name)]
            for path in sorted((folders or [self._root])[0].rglob("*")):
                with suppress(OSError):  # a link that leads nowhere
                    lines.add(f"{path}\0{stamp_of(path.stat())}")
        return digest(self._name, str(self._root.resolve()), *self._splits, *sorted(lines))

    def listing(self, split: str) -> Listing:
        """Return what the split holds."""
        return Listing(num=len(self._splits[split]), class_names=self._class_names(self._splits[split]))

    def names(self, split: str) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: its images have no names."""
        return ()

    def read(self, wanted: Sequence[Position]) -> Iterator[tuple[Position, Decoded | Unreadable]]:
        """Yield the wanted images as the data set decodes them."""
        for split, index in wanted:
            try:
                image, label = self._splits[split][index]
                rgb, remarks = to_rgb(image, self._bounds), remarks_on(image)
                found = Decoded(pixels=rgb.pixels, label=int(label), depth=rgb.depth, remarks=remarks)
                yield (split, index), found
            except Exception as problem:  # each data set has its own decoders
                yield (split, index), unreadable(f"{split}[{index}]", problem)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        return {split: self._open(split) for split in self._split_names}

    def _open(self, split: str) -> Any:
        import torchvision.datasets

        known = TORCHVISION[self._name]
        if split not in known.splits:
            raise InputError(f"{self._name} has no split {split!r}; {nearest(split, known.splits)}.")
        options = dict(known.splits[split])
        if known.can_download:
            options["download"] = self._download
        try:
            return getattr(torchvision.datasets, self._name)(root=str(self._root), **options)
        except Exception as problem:  # missing files, failed downloads, missing packages: each set has its own errors
            remedy = "or set `download = true` under [data]" if known.can_download else "torchvision cannot download it"
            raise InputError(
                f"torchvision cannot open {self._name}, split {split!r}, under {self._root} "
                f"({type(problem).__name__}: {problem}). Put its files there; {remedy}."
            ) from problem

    def _class_names(self, dataset: Any) -> tuple[str, ...]:
        for attribute in CLASS_ATTRIBUTES:
            if isinstance(names := getattr(dataset, attribute, None), list) and names:
                return tuple(name if isinstance(name, str) else name[0] for name in names)
        return tuple(str(label) for label in range(TORCHVISION[self._name].num_classes or 0))
