"""The data sets a job file can name, with their splits. Neither torch nor the data are needed to know them.

A new torchvision set is one line in `TORCHVISION`: the class name, and for each split the arguments that open it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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

WITH_KEYS = ("arrays", "list", "parquet", "webdataset")  # whose arrays or columns a job can name
DIGITS_SPLITS = ("train", "test")


def known_datasets() -> tuple[str, ...]:
    """Return every name a job file may give as `dataset`, besides FILE.py:function.

    >>> known_datasets()[:2]
    ('digits', 'imagefolder')
    """
    return ("digits", "imagefolder", *WITH_KEYS, *TORCHVISION)


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
    if dataset == "digits":
        return DIGITS_SPLITS
    return tuple(TORCHVISION[dataset].splits) if dataset in TORCHVISION else None
