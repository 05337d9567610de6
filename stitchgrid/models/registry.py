"""Names of the architectures a job file may use; imports torch only when asked for other libraries' names."""

from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from stitchgrid.errors import InputError, nearest
from stitchgrid.models.facts import known_names
from stitchgrid.paths import named_path
from stitchgrid.records import HUGGINGFACE, NetworkSpec, architecture_word

STITCHGRID = {  # name in a job file -> module:function
    "resnet20": "stitchgrid.models.nets.resnet:resnet20",
    "resnet32": "stitchgrid.models.nets.resnet:resnet32",
    "resnet44": "stitchgrid.models.nets.resnet:resnet44",
    "resnet56": "stitchgrid.models.nets.resnet:resnet56",
    "resnet110": "stitchgrid.models.nets.resnet:resnet110",
    "resnet18": "stitchgrid.models.nets.stem_resnet:resnet18",
    "resnet34": "stitchgrid.models.nets.stem_resnet:resnet34",
    "resnet50": "stitchgrid.models.nets.stem_resnet:resnet50",
    "vit_tiny": "stitchgrid.models.nets.vit:vit_tiny",
    "tiny10": "stitchgrid.models.nets.tiny:tiny10",
}
LIBRARIES = ("stitchgrid", "torchvision", "timm")
SOURCES = (*LIBRARIES, HUGGINGFACE)


def library_names(library: str) -> list[str]:
    """Return the names of a library's classifiers, without the library's prefix; empty when it is not installed.

    >>> library_names("stitchgrid")[:3]
    ['resnet110', 'resnet18', 'resnet20']
    """
    if library == "stitchgrid":
        return sorted(STITCHGRID)
    if find_spec(library) is None:
        return []
    if (known := known_names(library)) is not None:
        return known
    if library == "timm":
        import timm

        return sorted(timm.list_models())
    import torchvision

    return sorted(torchvision.models.list_models(module=torchvision.models))


def timm_tags(name: str) -> list[str]:
    """Return the tags of the weights that timm publishes for one of its architectures."""
    import timm

    return sorted(word.partition(".")[2] for word in timm.list_models(f"{name}.*", pretrained=True))


def architecture_names(pattern: str = "*") -> list[str]:
    """Return every `LIBRARY:NAME` that matches a glob, stitchgrid's own first.

    A pattern without a colon is looked for in the names of every library.

    >>> architecture_names("stitchgrid:vit*")
    ['stitchgrid:vit_tiny']
    """
    wanted = pattern if ":" in pattern else f"*:{pattern}"
    words = (f"{library}:{name}" for library in LIBRARIES for name in library_names(library))
    return [word for word in words if fnmatchcase(word, wanted)]


#: Library -> the weights of its networks where a user names none; "train": trained by a recipe.
USUAL_WEIGHTS = {"torchvision": "DEFAULT", "timm": "pretrained", "stitchgrid": "train"}
#: How the names of checkpoints usually end.
CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def usual_weights(architecture: str) -> str:
    """Return the weights of a network for which a user names none: those of its library; `random` for own code.

    >>> usual_weights("torchvision:resnet18"), usual_weights("nets.py:small")
    ('DEFAULT', 'random')
    """
    return USUAL_WEIGHTS.get(architecture_word(architecture).origin, "random")


def check_weights(architecture: str, weights: str | None, folder: Path) -> None:
    """Check that the weights that a user names for a network are there or published.

    Paths are as seen from the current folder, or from `folder`, that of the job file.

    Raises:
        JobFileError: If the network's library publishes no weights of that name.
        InputError: If there is no such file; the error has the nearest name of a checkpoint beside it.
    """
    origin = architecture_word(architecture).origin
    if weights is None or weights in ("random", "train") or weights == USUAL_WEIGHTS.get(origin):
        return
    path = named_path(weights)
    if (origin, weights) == (HUGGINGFACE, "pretrained") or path.exists() or (folder / path).exists():
        return
    if origin == "torchvision" and path.suffix.lower() not in CHECKPOINTS:
        from stitchgrid.models.published import find_published

        spec = NetworkSpec(name="", entry="", architecture=architecture, weights=weights, base=str(folder))
        if find_published(spec) is not None:
            return
    if not path.absolute().parent.is_dir():
        raise InputError(f"there are no weights {weights}: there is no folder {path.parent}. Nothing was written.")
    there = (one.name for one in path.absolute().parent.iterdir() if one.suffix.lower() in CHECKPOINTS)
    raise InputError(f"there are no weights {weights}; {nearest(path.name, there)}. Nothing was written.")
