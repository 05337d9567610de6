"""Fit a map of a sweep again from its job: as arrays, as a module, and as the stitched network."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from stitchgrid.api.tables import Array
from stitchgrid.api.torch_settings import as_it_was
from stitchgrid.driver.revision import HeldCode, check_same_code
from stitchgrid.engine.shard import fit_alone
from stitchgrid.engine.stitched import FittedStitch, stitch_rows
from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import InputError, nearest
from stitchgrid.jobfile import parse_job
from stitchgrid.live_networks import Live
from stitchgrid.matchers.alignment import install
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.matchers.stitchers.affine import AffineMap
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.held import holding_cuts
from stitchgrid.paths import write_whole
from stitchgrid.precision import choose_device, running_in
from stitchgrid.records import Cell, Layer, Network, Sweep, canonical
from stitchgrid.resolve import open_job_images, resolve
from stitchgrid.store import Store
from stitchgrid.worker import Worker


class StitchMap(nn.Module):
    """A map from activations of the source's layer to activations of the target's layer, in the target's shape.

    Attributes:
        weight: W (D, E) of an affine map T(a) = a W + b of rows, float64; a map that is not affine has `adapter`.
        bias: b (E,), float64, of an affine map.
    """

    def __init__(self, stitch: FittedStitch, source: Layer, target: Layer):
        super().__init__()
        self._rules: Rules = stitch.rules
        self._layers = source, target
        if isinstance(stitch.map, AffineMap):
            exact = stitch.map.frozen()
            self.weight = nn.Parameter(exact.weight_DE.clone())
            self.bias = nn.Parameter(exact.bias_E.clone())
        else:
            self.adapter = stitch.map.frozen()

    @property
    def is_affine(self) -> bool:
        """Whether it has W and b."""
        return not hasattr(self, "adapter")

    def extra_repr(self) -> str:
        """Return where the map begins and ends, the shapes of one image's activations there, and their features."""
        source, target = self._layers
        return (
            f"{source.name} {tuple(source.shape)} -> {target.name} {tuple(target.shape)}, "
            f"features={source.width} -> {target.width}"
        )

    def forward(self, a: Tensor) -> Tensor:
        """Return T(A) for activations A (N, ...) of the source's layer, in the floating-point type of A."""
        source, target = self._layers
        found = AffineMap(weight_DE=self.weight, bias_E=self.bias) if self.is_affine else self.adapter
        work = self.weight.dtype if self.is_affine else torch.float32
        return install(stitch_rows(found, a.to(work), source, target, self._rules).to(a.dtype).contiguous(), target)


class StitchedNetwork(nn.Module):
    """The source up to a layer, the map, and the target from its layer on: images (N, C, H, W) -> scores (N, K).

    Give it images after the source's preprocessing.
    """

    def __init__(self, source: CutNetwork, target: CutNetwork, stitch_map: StitchMap, precision: str):
        super().__init__()
        self.source, self.target, self.map = source.module, target.module, stitch_map
        layers = stitch_map._layers
        self._head, self.tail = source.taps([layers[0].node]), target.suffix(layers[1].node)
        self._precision = precision

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (N, K), float32, of the target's tail on the mapped activations of the source."""
        images = images.contiguous(memory_format=torch.channels_last)
        with running_in(self._precision, images.device):
            (a,) = self._head(images)
            mapped = self.map(a.float())
            scores: Tensor = self.tail(mapped)
        return scores.float()


class NetworkStitch:
    """One fitted map of a sweep.

    Attributes:
        map: The map, as a module from the source's activations to the target's.
        network: The stitched network, as a module.
        source: (network, layer) where the stitch begins.
        target: (network, layer) where it ends.
        matcher: The kind that found the map.
    """

    def __init__(self, stitch: FittedStitch, work: Workspace):
        cell, sweep = stitch.cell, work.sweep
        layers = work.layer(cell.source_key), work.layer(cell.target_key)
        self.source = (sweep.networks[cell.source].name, layers[0].name)
        self.target = (sweep.networks[cell.target].name, layers[1].name)
        self.matcher, self._params = sweep.matchers[cell.matcher].kind, sweep.matchers[cell.matcher].params
        self.map = StitchMap(stitch, *layers).to(work.device)
        self.network = StitchedNetwork(
            work.network(cell.source), work.network(cell.target), self.map, sweep.precision
        ).eval()

    @property
    def weight(self) -> Array:
        """W (D, E) of T(a) = a W + b, float64.

        Raises:
            InputError: If the map is not affine.
        """
        return self._affine("weight")

    @property
    def bias(self) -> Array:
        """Bias b (E,) of T(a) = a W + b, float64.

        Raises:
            InputError: If the map is not affine.
        """
        return self._affine("bias")

    def _affine(self, name: str) -> Array:
        if not self.map.is_affine:
            raise InputError(
                f"the map has no {name}: it is not affine, its adapter is {json.loads(self._params)['adapter']!r}; "
                ".map holds its tensors, and .save() writes them."
            )
        found: Array = getattr(self.map, name).detach().cpu().numpy()
        return found.copy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tensors of the map as .safetensors, atomically: `weight` and `bias` if it is affine.

        The metadata of the file names source, target, matcher and parameters.

        Raises:
            InputError: If it cannot be written.
        """
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.map.state_dict().items()}
        told = {
            "source": ":".join(self.source),
            "target": ":".join(self.target),
            "matcher": self.matcher,
            "params": self._params,
        }
        try:
            write_whole(Path(path), safetensors.torch.save(tensors, metadata=told))
        except OSError as problem:
            raise InputError(f"cannot write {path}: {problem.strerror}; name another file.") from problem

    def __repr__(self) -> str:
        return f"<{self.matcher}: {' '.join(self.source)} -> {' '.join(self.target)}>"


def fit_again(
    store: Store,
    sweep: str,
    live: Live | None,
    source: tuple[str, str],
    target: tuple[str, str],
    matcher: str,
    *,
    seed: int | None,
    device: str | None,
    params: dict[str, Any],
) -> NetworkStitch:
    """Return the map of one cell of a stored sweep; arguments and errors are those of `Run.stitch`."""
    job = parse_job(store.read_job(sweep), title=f"the stored job of sweep {sweep!r}")
    word = device or job.numerics.device
    where, code = torch.device(choose_device(word)), HeldCode(job)
    with live.present() if live else nullcontext(), holding_cuts(), as_it_was(where), code.running():
        if live is None:
            check_same_code(store, job)
        images = open_job_images(job)
        found = resolve(job, images, store, update=live is not None)
        if found.to_make:
            raise InputError(f"sweep {sweep!r} has networks that are not trained yet; resume it first.")
        cell = _cell(found.sweep, source, target, _matcher(found.sweep, matcher, seed, params))
        if cell.cell_id not in _planned(store, sweep):
            raise InputError(
                f"the networks, images or code of sweep {sweep!r} have changed since its values were computed; launch "
                "the job again with update=True, and use the run that it returns."
            )
        worker = Worker(store=store.uri, device=where.type, threads=torch.get_num_threads())
        work = worker.workspace(found.sweep)
        return NetworkStitch(fit_alone(work, cell), work)


def _planned(store: Store, sweep: str) -> set[str]:
    plan = store.read_plan(sweep)
    return set() if plan is None else set(plan.cells["cell_id"].to_pylist())


def _matcher(sweep: Sweep, kind: str, seed: int | None, params: dict[str, Any]) -> int:
    """Return the position of the matcher of a kind that seed and parameters choose.

    Raises:
        InputError: If the kind is not a stitcher, or seed and parameters do not choose exactly one matcher.
    """
    if kind not in MATCHERS or MATCHERS[kind].family != "stitcher":
        kinds = [name for name, about in MATCHERS.items() if about.family == "stitcher"]
        raise InputError(f"{kind!r} is not a stitcher, so it fits no map; {nearest(kind, kinds)}.")
    of_kind = [position for position, spec in enumerate(sweep.matchers) if spec.kind == kind]
    fitting = [
        position
        for position in of_kind
        if seed in (None, sweep.matchers[position].seed)
        and params.items() <= {**sweep.matchers[position].values, "samples": sweep.matchers[position].samples}.items()
    ]
    if len(fitting) == 1:
        return fitting[0]
    there = [
        canonical({**sweep.matchers[p].values, "seed": sweep.matchers[p].seed, "samples": sweep.matchers[p].samples})
        for p in fitting or of_kind
    ]
    has = f"has it as {'; '.join(there)}" if there else "does not have it"
    raise InputError(f"choose one {kind} by `seed` and parameters; sweep {sweep.name!r} {has}.")


def _cell(sweep: Sweep, source: tuple[str, str], target: tuple[str, str], matcher: int) -> Cell:
    names = [network.name for network in sweep.networks]
    for name, _ in (source, target):
        if name not in names:
            raise InputError(f"sweep {sweep.name!r} has no network {name!r}; {nearest(name, names)}.")
    f, g = names.index(source[0]), names.index(target[0])
    if (f, g) not in sweep.pairs:
        raise InputError(f"sweep {sweep.name!r} does not compare {source[0]!r} with {target[0]!r} as its target.")
    layers = (_layer(sweep.networks[f], source[1]), _layer(sweep.networks[g], target[1]))
    return sweep.cell(f, layers[0], g, layers[1], matcher)


def _layer(network: Network, name: str) -> int:
    for position, layer in enumerate(network.layers):
        if name in (layer.name, layer.node):
            return position
    known = [layer.name for layer in network.layers]
    raise InputError(f"network {network.name!r} has no layer {name!r} in this sweep; {nearest(name, known)}.")
