"""Architectures as lines of a table: size, parameters, and the layers at which they can be cut.

The file `architectures.json` beside this one holds the facts of shipped architectures without arguments, for images of
their usual size. `measure` measured them with the versions of the libraries that the file names. Where these versions
are installed, the file is read instead of importing anything heavy.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from stitchgrid.records import Interface, Layer, NetworkSpec, architecture_word

TABLE = "architectures.json"
COLUMNS = ("name", "depth", "kind", "axes", "shape", "tokens", "parameters")  # of a layer's line


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """A cut of a network, as tables show it to users."""

    name: str
    depth: float  # position among all cuts, in [0, 1]
    kind: str  # map | tokens | vector | other
    axes: str  # of a batch: N images, C and D features, H rows, W columns, T tokens
    shape: str  # of one image's activation
    tokens: str  # the number before a grid, and the grid: "1 + 14x14"; "" for other layers
    parameters: int | None  # of the module of this name; None where no module has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What users are shown of an architecture."""

    parameters: int
    input_size: tuple[int, int]  # height, width
    layers: tuple[LayerFacts, ...] = ()  # its blocks; none where they were not looked for
    notices: tuple[str, ...] = field(default=())  # how it was cut, where that is not the ordinary way


def usual_size(architecture: str) -> tuple[int, int]:
    """Return the image size, height and width, that an architecture of this family was made for.

    >>> usual_size("stitchgrid:tiny10"), usual_size("torchvision:resnet18")
    ((32, 32), (224, 224))
    """
    return (32, 32) if architecture_word(architecture).origin == "stitchgrid" else (224, 224)


def known_facts(architecture: str) -> Facts | None:
    """Return the facts of an architecture without arguments from the shipped table, None where it has none that hold.

    They do not hold where another version of the architecture's library is installed.
    """
    found = _table()["architectures"].get(architecture)
    if found is None or not is_current(architecture_word(architecture).origin):
        return None
    lines = (LayerFacts(**dict(zip(COLUMNS, line, strict=True))) for line in found.get("layers", ()))
    height, width = found["input_size"]
    return Facts(parameters=found["parameters"], input_size=(height, width), layers=tuple(lines))


def known_names(library: str) -> list[str] | None:
    """Return the names of a library's classifiers, sorted; None where the table is of another version of it."""
    if not is_current(library):
        return None
    words = map(architecture_word, _table()["architectures"])
    return sorted(word.name for word in words if word.origin == library)


def known_architectures() -> list[str]:
    """Return the architectures of the table, `LIBRARY:NAME`, whatever versions are installed."""
    return list(_table()["architectures"])


def is_current(library: str) -> bool:
    """Return whether the table is of the version of a library that is installed; stitchgrid's own always are."""
    if library == "stitchgrid":
        return True
    found = installed_version(library)
    return found is not None and found.partition("+")[0] == _table()["versions"].get(library)


@cache  # it is read from a file
def installed_version(name: str) -> str | None:
    """Return the version of a distribution, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _table() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(files("stitchgrid.models").joinpath(TABLE).read_text("utf-8"))
    return found


def measure(
    spec: NetworkSpec, shape: tuple[int, int, int], interface: Interface, *, patterns: tuple[str, ...] = ("blocks",)
) -> Facts:
    """Build an architecture, cut it, and return its facts.

    Args:
        spec: The network.
        shape: Channels, height and width of its images.
        interface: How its forward is called.
        patterns: Which cuts to list, as `layers` in a job file.

    Raises:
        InputError: If it cannot be built or cut.
    """
    from stitchgrid.models.build import make_network
    from stitchgrid.models.cut_network import cut_network, types_notice, way_notice
    from stitchgrid.models.select import select_layers

    module = make_network(spec)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_modules()}
    cut = cut_network(module, shape, interface)
    told = (way_notice(spec.name, cut.way, cut.reason), types_notice(spec.name, cut.types, "fp32"))
    lines = (_line(one.layer, one.name, sizes.get(one.name)) for one in select_layers(cut, patterns))
    return Facts(
        parameters=sizes[""],
        input_size=shape[1:],
        layers=tuple(lines),
        notices=tuple(notice for notice in told if notice),
    )


def _line(layer: Layer, name: str, parameters: int | None) -> LayerFacts:
    has_tokens = layer.grid is not None and layer.kind != "map"
    return LayerFacts(
        name=name,
        depth=round(layer.depth, 4),
        kind=layer.kind,
        axes=layer.axes,
        shape="x".join(map(str, layer.shape)),
        tokens=f"{layer.num_prefix} + {'x'.join(map(str, layer.grid or ()))}" if has_tokens else "",
        parameters=parameters,
    )


def as_entry(facts: Facts) -> dict[str, Any]:
    """Return facts as they stand in the table."""
    layers = [[asdict(line)[name] for name in COLUMNS] for line in facts.layers]
    entry: dict[str, Any] = {"parameters": facts.parameters, "input_size": list(facts.input_size)}
    return entry | ({"layers": layers} if layers else {})
