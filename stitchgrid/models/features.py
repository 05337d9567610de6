"""Features as a network: activations of the drawn images, read from files where no network can be run.

Such a network has layers and their rows, and nothing behind them: no scores, no halves, no gradient. It does not run on
images: it finds the rows of an image by the image's position in its split.

Shape suffixes: N images.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from stitchgrid.datasets import Images
from stitchgrid.errors import InputError, JobFileError, nearest
from stitchgrid.models.axes import AxisReading
from stitchgrid.models.cuts import Cut, CutNetwork, Operations, make_layer
from stitchgrid.models.feature_files import ROWS, FeatureTable, Rows, find_rows, open_tables
from stitchgrid.records import Layer, Network, NetworkSpec, digest

AXES = {2: ("ND",), 3: ("NTD", "NDT"), 4: ("NCHW", "NHWC")}  # by number of axes, the usual one first
ARGS = ("axes", "order", "rows")
NUM_NOISE = 64
Role = Literal["fit", "eval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePositions:
    """Images by their positions in drawn order."""

    role: Role
    at_N: Tensor

    def part(self, some: slice) -> "ImagePositions":
        """Return some of them."""
        return ImagePositions(role=self.role, at_N=self.at_N[some])


class FeaturesNetwork(CutNetwork):
    """Layers whose activations are looked up in files."""

    way = "features"

    def __init__(
        self,
        layers: Sequence[Layer],
        read: Callable[[Role, str], Tensor],
        device: torch.device,
        *,
        roles: Collection[Role] = ("fit", "eval"),
    ):
        cuts = [Cut(layer=layer, position=position) for position, layer in enumerate(layers)]
        super().__init__(nn.Module(), (3, 1, 1), cuts, Operations(nodes=(), activations=frozenset(), calls=()))
        self._read, self._device, self._roles = read, device, frozenset(roles)
        self._held: dict[tuple[Role, str], Tensor] = {}  # rows of the drawn images, on the CPU

    def rows(self, nodes: Sequence[str], places: ImagePositions) -> tuple[Tensor, ...]:
        """Return the activations of images at these nodes, float32, on the device."""
        return tuple(self.all_rows(node, places.role)[places.at_N.cpu()].to(self._device) for node in nodes)

    def all_rows(self, node: str, role: Role) -> Tensor:
        """Return the activations of all drawn images of a role, float32, on the CPU."""
        if (role, node) not in self._held:
            self._held[role, node] = self._read(role, node)
        return self._held[role, node]

    def has_rows(self, role: Role) -> bool:
        """Return whether there are rows for the images of a role."""
        return role in self._roles

    @property
    def ends_in(self) -> str | None:  # noqa: D102
        return None

    def taps(self, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: ARG002, D102
        return _no_network

    def suffix(self, node: str) -> nn.Module:  # noqa: ARG002, D102
        return _no_network()

    def behind(self, node: str, nodes: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, ...]]:  # noqa: ARG002, D102
        return _no_network


def _no_network(*_: Any) -> NoReturn:
    raise InputError("features are the activations of given images: there is no network behind them that could be run.")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features as a job names them, matched with its images."""

    layers: tuple[Layer, ...]  # the selected ones
    num_layers: int  # all of them
    roles: frozenset[Role]  # the images for which there are rows
    read: Callable[[Role, str], Tensor]
    find_address: Callable[[], str]

    @cached_property
    def address(self) -> str:
        """Digest of all arrays, which are read for it, and of what decides the order of their rows."""
        return self.find_address()


def open_features(spec: NetworkSpec, images: Images) -> Features:
    """Return the features of a network specification.

    Raises:
        JobFileError: If `layers` or `args` name something that does not exist.
        InputError: If files are missing or damaged, or their rows do not match the images.
    """
    args = _args(spec)
    origins = dict(zip(("fit", "eval"), images.origins, strict=True))
    drawn = {"fit": images.fit, "eval": images.eval}
    is_one_split = origins["fit"].split == origins["eval"].split
    num_drawn = {role: len(split.places) for role, split in drawn.items()}
    if is_one_split:
        num_drawn = dict.fromkeys(num_drawn, sum(num_drawn.values()))
    tables, is_shared = open_tables(
        Path(spec.base, spec.weights).expanduser(), [origins[role].split for role in drawn], spec.limits
    )
    found: dict[Role, tuple[FeatureTable, Rows]] = {}
    roles: tuple[Role, ...] = ("eval", "fit")
    for role in roles:
        origin = origins[role]
        table = tables.get(origin.split)
        has_names = table is not None and table.ids is not None and isinstance(table.ids[0], str)
        is_of_eval_alone = is_shared and not is_one_split and not has_names
        if table is None or (role == "fit" and is_of_eval_alone) or not drawn[role].num:
            continue
        rows = find_rows(table, drawn[role], origin, num_drawn=num_drawn[role], order=args.get("rows"))
        found[role] = table, rows
    if "eval" not in found:
        raise InputError(f"features {spec.weights!r} have no rows of split {origins['eval'].split!r}.")
    layers = _layers(found["eval"][0], spec, args)
    _check_alike(found, layers)
    return Features(
        layers=tuple(_chosen(layers, spec.layers)),
        num_layers=len(layers),
        roles=frozenset(found),
        read=partial(_read, found),
        find_address=lambda: digest("features", *(_address(tables[s], args.get("rows")) for s in sorted(tables))),
    )


def features_network(network: Network, images: Images, device: torch.device) -> FeaturesNetwork:
    """Return the features of a resolved network, on a worker.

    Raises:
        InputError: If they are no longer those the sweep was planned with.
    """
    found = open_features(network.spec, images)
    if found.address != network.network_id:
        raise InputError(
            f"the features of model {network.name!r} are not those the sweep was planned with (wanted "
            f"{network.network_id}, got {found.address}); launch the job again."
        )
    return FeaturesNetwork(network.layers, found.read, device, roles=found.roles)


def noise_features(network: Network, device: torch.device) -> FeaturesNetwork:
    """Return features of the same shapes, filled with noise, to measure speed."""

    def read(_: Role, node: str) -> Tensor:
        (layer,) = (layer for layer in network.layers if layer.node == node)
        return torch.randn(NUM_NOISE, *layer.shape, generator=torch.Generator().manual_seed(0))

    return _Cyclic(network.layers, read, device)


class _Cyclic(FeaturesNetwork):
    """Features of a few images, repeated for any number of images."""

    def rows(self, nodes: Sequence[str], places: ImagePositions) -> tuple[Tensor, ...]:
        return super().rows(nodes, ImagePositions(role=places.role, at_N=places.at_N % NUM_NOISE))


def _address(table: FeatureTable, order: str | None) -> str:
    """Return the digest of a table's arrays and of what decides which row belongs to which image."""
    if order is None and table.ids is not None:
        return digest(table.digest(), "ids", *map(repr, table.ids))
    if order is None and table.labels is not None:
        return digest(table.digest(), "labels", table.labels.tobytes())
    return digest(table.digest(), order or "")


def _args(spec: NetworkSpec) -> dict[str, Any]:
    args: dict[str, Any] = json.loads(spec.args)
    if unknown := sorted(args.keys() - set(ARGS)):
        raise JobFileError(f"features take no argument {unknown[0]!r}; {nearest(unknown[0], ARGS)}.")
    if (rows := args.get("rows")) is not None and rows not in ROWS:
        raise JobFileError(f"args.rows: {rows!r} is unknown; one of {', '.join(ROWS)}.")
    axes, known = args.get("axes", {}), [one for some in AXES.values() for one in some]
    words = axes if isinstance(axes, dict) else {"*": axes}
    if wrong := [word for word in words.values() if word not in known]:
        raise JobFileError(f"args.axes: {wrong[0]!r} is unknown; one of {', '.join(known)}, or layers with theirs.")
    order = args.get("order", [])
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise JobFileError(f"args.order: a list of all layers is wanted, from the input on, got {order!r}.")
    return {**args, "axes": words}


def _layers(table: FeatureTable, spec: NetworkSpec, args: Mapping[str, Any]) -> list[Layer]:
    """Return a record of every layer, in order."""
    names = list(args.get("order") or table.layers)
    if sorted(names) != sorted(table.layers):
        odd = sorted(set(names) ^ set(table.layers))[0]
        raise JobFileError(f"args.order has to name every layer of {table.where} once; look at {odd!r}.")
    return [
        _layer(table, name, args["axes"], spec, depth=position / (len(names) - 1) if len(names) > 1 else 1.0)
        for position, name in enumerate(names)
    ]


def _layer(table: FeatureTable, name: str, axes: Mapping[str, str], spec: NetworkSpec, *, depth: float) -> Layer:
    shape, dtype = table.header(name)
    told = next((word for glob, word in axes.items() if fnmatchcase(name, glob)), None)
    usual = AXES.get(len(shape))
    if usual is None or 0 in shape or not dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise InputError(
            f"{table.where}, {name}: numbers of shape (N, D), (N, T, D) or (N, C, H, W) are wanted, one row an image, "
            f"got {dtype} of shape {shape}."
        )
    word = told if told in usual else usual[0]
    prefix, grid = 0, (shape[word.index("H")], shape[word.index("W")]) if "H" in word else None
    tokens = spec.interface.tokens
    if tokens is not None and "T" in word and shape[word.index("T")] == tokens.prefix + tokens.grid[0] * tokens.grid[1]:
        prefix, grid = tokens.prefix, tokens.grid
    reading = AxisReading(axes=word, num_prefix=prefix, grid=grid)
    return make_layer(name=name, node=name, depth=depth, shape=shape[1:], flops=0.0, reading=reading)


def _check_alike(found: Mapping[Role, tuple[FeatureTable, Rows]], layers: Sequence[Layer]) -> None:
    """Refuse layers that are not in both splits, or whose shapes in the two differ."""
    if "fit" not in found:
        return
    (one, _), (other, _) = found["eval"], found["fit"]
    for layer in layers:
        if layer.node not in other.layers:
            raise InputError(f"{other.where} has no layer {layer.node!r}, which {one.where} has.")
        if (shape := other.header(layer.node)[0][1:]) != layer.shape:
            raise InputError(f"layer {layer.node!r} has shape {layer.shape} in {one.where}, {shape} in {other.where}.")


def _chosen(layers: Sequence[Layer], patterns: Sequence[str]) -> list[Layer]:
    chosen: set[str] = set()
    problems = []
    names = [layer.name for layer in layers]
    for pattern in patterns:
        wanted = "*" if pattern in ("blocks", "all") else pattern
        matching = [name for name in names if name == wanted] or [name for name in names if fnmatchcase(name, wanted)]
        chosen.update(matching)
        if not matching:
            problems.append(f"there is no layer {pattern!r}; {nearest(pattern, names)}")
    if problems:
        raise JobFileError("layers that the features do not have", problems)
    return [layer for layer in layers if layer.name in chosen]


def _read(found: Mapping[Role, tuple[FeatureTable, Rows]], role: Role, node: str) -> Tensor:
    if role not in found:
        raise InputError("there are no features of the fit images.")
    table, rows = found[role]
    order = np.argsort(rows, kind="stable")  # a file is read from front to back
    ordered = table.rows(node)(rows[order])
    taken = np.empty_like(ordered)
    taken[order] = ordered
    return _as_tensor(taken)


def _as_tensor(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def has_fit_rows(spec: NetworkSpec, images: Images) -> bool:
    """Return whether there are rows of the fit images."""
    return "fit" in open_features(spec, images).roles
