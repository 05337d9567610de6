"""The data sets a job file can name, with their splits. Neither torch nor the data are needed to know them.

A new torchvision set is one line in `TORCHVISION`: the class name, and for each split the arguments that open it. Any
other is a file with its class and an entry of `DATASETS`, from which jobs, messages and the manual know it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionSet:
    """How a classification data set of torchvision is opened."""

    splits: Mapping[str, Mapping[str, Any]]  # split -> keyword arguments of its class
    can_download: bool = True
    num_classes: int | None = None  # where the class does not list its class names


def _by_flag(**also: Any) -> TorchvisionSet:
    return TorchvisionSet(splits={"train": {"train": True, **also}, "test": {"train": False, **also}})


def _by_name(*splits: str, can_download: bool = True, num_classes: int | None = None) -> TorchvisionSet:
    return TorchvisionSet(
        splits={split: {"split": split} for split in splits}, can_download=can_download, num_classes=num_classes
    )


def _undivided(num_classes: int | None = None) -> TorchvisionSet:
    return TorchvisionSet(splits={"all": {}}, num_classes=num_classes)


TORCHVISION: dict[str, TorchvisionSet] = {
    "CIFAR10": _by_flag(),
    "CIFAR100": _by_flag(),
    "Caltech101": _undivided(),
    "Caltech256": _undivided(),
    "Country211": _by_name("train", "valid", "test"),
    "DTD": _by_name("train", "val", "test"),
    "EMNIST": _by_flag(split="balanced"),
    "EuroSAT": _undivided(),
    "FGVCAircraft": _by_name("train", "val", "trainval", "test"),
    "FashionMNIST": _by_flag(),
    "Flowers102": _by_name("train", "val", "test", num_classes=102),
    "Food101": _by_name("train", "test"),
    "GTSRB": _by_name("train", "test", num_classes=43),
    "ImageNet": _by_name("train", "val", can_download=False),
    "Imagenette": _by_name("train", "val"),
    "KMNIST": _by_flag(),
    "MNIST": _by_flag(),
    "OxfordIIITPet": _by_name("trainval", "test"),
    "PCAM": _by_name("train", "val", "test", num_classes=2),
    "Places365": _by_name("train-standard", "train-challenge", "val"),
    "QMNIST": _by_flag(),
    "RenderedSST2": _by_name("train", "val", "test"),
    "SEMEION": _undivided(num_classes=10),
    "STL10": _by_name("train", "test"),
    "SUN397": _undivided(),
    "SVHN": _by_name("train", "test", "extra", num_classes=10),
    "StanfordCars": _by_name("train", "test", can_download=False),
    "USPS": TorchvisionSet(splits={"train": {"train": True}, "test": {"train": False}}, num_classes=10),
}

DIGITS_SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetKind:
    """A kind of data set with a name of its own."""

    where: str  # module:class, called with root and splits, `bounds`, `named`, `limits` and `has_labels`
    says: str  # what it reads, in the manual
    needs_root: bool = True
    splits: tuple[str, ...] | None = None  # None: only its files say them
    takes_keys: bool = False  # and with `keys`: the names that a job gives to its arrays, columns or members
    takes_channels: bool = False  # and with `channels` and `axes`, which a job says of its images
    takes_folder: bool = False  # and with `folder`, at which its paths start

    def load(self) -> Any:
        """Return its class, or the function that opens it."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(f"stitchgrid.datasets.{module}"), name)


DATASETS: dict[str, DatasetKind] = {
    "digits": DatasetKind(
        where="sources:open_digits",
        needs_root=False,
        splits=DIGITS_SPLITS,
        says="the 1,797 handwritten digits that ship with scikit-learn, 8x8 grey; splits `train` and `test`",
    ),
    "imagefolder": DatasetKind(
        where="archives:open_image_folder",
        says=(
            "`root` holds SPLIT/CLASS/FILE: a folder, or the same in a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip, of "
            "which nothing is extracted"
        ),
    ),
    "arrays": DatasetKind(
        where="arrays:ArraysSource",
        takes_keys=True,
        takes_channels=True,
        says=(
            "`root` is a folder of SPLIT.npz with `images` and `labels` (or SPLIT.pt, SPLIT.safetensors, or a "
            "folder SPLIT of .npy files), or one file with SPLIT_images and SPLIT_labels (`images` and `labels` "
            "where fit and eval name the same split); (N, H, W), (N, H, W, C) or (N, C, H, W), with any `channels`, "
            "and `class_names` if they have names"
        ),
    ),
    "list": DatasetKind(
        where="lists:ListSource",
        takes_keys=True,
        takes_folder=True,
        says=(
            "`root` is a folder of SPLIT.csv, .tsv or .txt, or one file with a column `split`: a path and a label a "
            "line. Paths start at the list's folder, or at `folder`, and stay below it"
        ),
    ),
    "parquet": DatasetKind(
        where="parquet:ParquetSource",
        takes_keys=True,
        says=(
            "as the Hugging Face hub keeps data sets: `root` is a folder of SPLIT.parquet, "
            "SPLIT-00000-of-00004.parquet or SPLIT/\\*.parquet, with a column of images (bytes, or `{bytes, path}`) "
            "and one of labels"
        ),
    ),
    "webdataset": DatasetKind(
        where="webdataset:WebDatasetSource",
        takes_keys=True,
        says=(
            "`root` is a folder of SPLIT.tar, SPLIT-000000.tar or SPLIT/\\*.tar, in which the members of a sample "
            "share a name: KEY.jpg with KEY.cls or KEY.json; KEY.jpg comes before KEY.depth.jpg, and a sample with two "
            "members that could be meant is refused; nothing is extracted"
        ),
    ),
}
WITH_KEYS = tuple(name for name, known in DATASETS.items() if known.takes_keys)
WITH_CHANNELS = tuple(name for name, known in DATASETS.items() if known.takes_channels)
WITH_FOLDER = tuple(name for name, known in DATASETS.items() if known.takes_folder)
#: What else a job may name, with what it is.
OTHERS = {
    '`"FILE.py:function"`': (
        "your own: `function(split, **args)` (and `root=` where `[data] root` is given) returns a torch Dataset, or "
        "any sequence, of (image, label): a PIL image, an array or a tensor"
    ),
    f'`"{next(iter(TORCHVISION))}"`, ...': "a data set of torchvision by its class name",
}


def known_datasets() -> tuple[str, ...]:
    """Return every name a job file may give as `dataset`, besides FILE.py:function.

    >>> known_datasets()[:2]
    ('digits', 'imagefolder')
    """
    return (*DATASETS, *TORCHVISION)


def own_parts(dataset: str) -> tuple[str, str] | None:
    """Return file and function of a data set of the user's own, FILE.py:function; None for any other word.

    >>> own_parts("data.py:make"), own_parts("CIFAR10")
    (('data.py', 'make'), None)
    """
    where, _, name = dataset.rpartition(":")
    return (where, name) if where.endswith(".py") and name.isidentifier() else None


def known_splits(dataset: str) -> tuple[str, ...] | None:
    """Return the splits of a data set, None where they are only known from its files.

    >>> known_splits("ImageNet")
    ('train', 'val')
    """
    if dataset in DATASETS:
        return DATASETS[dataset].splits
    return tuple(TORCHVISION[dataset].splits) if dataset in TORCHVISION else None


def needs_root(dataset: str) -> bool:
    """Return whether a data set with a name of its own has files that a job must point to.

    >>> needs_root("arrays"), needs_root("digits"), needs_root("data.py:make")
    (True, False, False)
    """
    return dataset in TORCHVISION or (dataset in DATASETS and DATASETS[dataset].needs_root)
